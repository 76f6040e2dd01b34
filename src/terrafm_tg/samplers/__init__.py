"""Samplers of index rows: weighted by land cover, aware of ranks."""

from .land_cover import LandCoverSampler

__all__ = ["LandCoverSampler"]
