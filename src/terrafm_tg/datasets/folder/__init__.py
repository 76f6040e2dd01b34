"""A folder of GeoTIFFs per modality."""
