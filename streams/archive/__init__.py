"""Topics as MCAP segments, and back."""
