"""Samplers of index rows: weighted by land cover, climate and region, aware of ranks."""

from .land_cover import LandCoverSampler

__all__ = ["LandCoverSampler"]
