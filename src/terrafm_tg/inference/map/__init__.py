"""Maps of a fine-tuned head: classes, probabilities, entropy, numbers, polygons and pictures of scenes."""

from .run import MapResult, MapRun, make_maps

__all__ = ["MapResult", "MapRun", "make_maps"]
