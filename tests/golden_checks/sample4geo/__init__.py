"""Sample4Geo."""
