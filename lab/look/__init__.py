"""Looking into MCAP files."""
