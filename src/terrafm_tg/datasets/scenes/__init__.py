"""Sentinel-1 and Sentinel-2 scenes as providers name them."""
