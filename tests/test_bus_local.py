"""To be merged."""
