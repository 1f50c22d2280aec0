"""Where bundles are, and which of them serves."""
