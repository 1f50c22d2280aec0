"""What makes, prepares and looks at recordings."""
