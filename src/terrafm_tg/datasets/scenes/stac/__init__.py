"""Scenes from STAC."""
