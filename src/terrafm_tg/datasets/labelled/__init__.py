"""Labelled Sentinel-1 and Sentinel-2 datasets."""
