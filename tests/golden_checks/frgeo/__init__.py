"""FRGeo and TransGeo."""
