"""The land-cover legend of ESA WorldCover, with the ocean that it lacks, and the majority class of a tile."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LandCover:
    """One class of the legend: its code in the files, its name and its color in the published map."""

    code: int
    name: str
    color: tuple[int, int, int]


#: The legend of the map, in the order of the class indices 0 to 10.
CLASSES: tuple[LandCover, ...] = (
    LandCover(10, "Tree cover", (0, 100, 0)),
    LandCover(20, "Shrubland", (255, 187, 34)),
    LandCover(30, "Grassland", (255, 255, 76)),
    LandCover(40, "Cropland", (240, 150, 255)),
    LandCover(50, "Built-up", (250, 0, 0)),
    LandCover(60, "Bare / sparse vegetation", (180, 180, 180)),
    LandCover(70, "Snow and ice", (240, 240, 240)),
    LandCover(80, "Permanent water bodies", (0, 100, 200)),
    LandCover(90, "Herbaceous wetland", (0, 150, 160)),
    LandCover(95, "Mangroves", (0, 207, 117)),
    LandCover(100, "Moss and lichen", (250, 230, 160)),
)
#: Index of the class that the map lacks; see :func:`majorities`.
OCEAN = 11
#: Land cover that is not known.
UNKNOWN = -1
#: Names of the classes 0 to 11.
CLASS_NAMES: tuple[str, ...] = (*(c.name for c in CLASSES), "Ocean")
#: Index of permanent water.
WATER = 7
#: The map ends here; further south nothing is ocean by absence.
SOUTHERN_LIMIT = -60.0


def count_codes(codes: np.ndarray) -> np.ndarray:
    """Counts a map's codes (uint8, any shape) by class: int64 (12,), the last those of no class, as without data."""
    counts = np.bincount(codes.ravel(), minlength=256)
    known = counts[[c.code for c in CLASSES]]
    return np.append(known, counts.sum() - known.sum())


def majorities(histograms: np.ndarray, latitudes: np.ndarray) -> np.ndarray:
    """Decides the land cover of tiles by their histograms, with the ocean that WorldCover's legend lacks.

    The most frequent of the 12 counts decides. It is *ocean* where that is "no data" (the map has none over
    open sea), or water that, with "no data", fills at least 95 % of the tile; of these,
    :func:`~terrafm_tg.datasets.esa_worldcover.set_lakes` tells large lakes from the sea by where they lie. South
    of 60° S, where the map ends, nothing is ocean by absence.

    Args:
        histograms: (n, 12) counts as from :meth:`terrafm_tg.datasets.ESAWorldCover.histogram`.
        latitudes: (n,) of the tiles' centers, in degrees.

    Returns:
        int8 (n,): class index 0 to 10, 11 for ocean, -1 where it is not known.
    """
    total, top = histograms.sum(axis=1), histograms.argmax(axis=1)
    water = (histograms[:, WATER] + histograms[:, OCEAN]) >= 0.95 * total
    classes = np.where((top == WATER) & water, OCEAN, top)
    south = latitudes < SOUTHERN_LIMIT
    classes[south] = np.where(top[south] == OCEAN, UNKNOWN, top[south])
    return np.where(total == 0, UNKNOWN, classes).astype(np.int8)
