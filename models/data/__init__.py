"""What models learn from: labelled windows, on disk, split and varied."""
