"""A recipe: from a TOML file to a chain."""
