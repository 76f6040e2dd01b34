"""What a view shows: uniform numbers turned into crop boxes and modality sets (`paper.md`, Pretraining)."""

from itertools import product

import numpy as np
from numpy.typing import NDArray

#: Uniform numbers that one crop uses.
CROP_DRAWS = 5


def draw_boxes(
    uniform: NDArray[np.float64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Crop boxes and one of the eight orientations of the square.

    The area is uniform in ``scale`` and exact: the aspect ratio is log-uniform within the part of ``ratio``
    with which the box still fits into the tile, where torchvision would retry or fall back.

    Args:
        uniform: Numbers in [0, 1), shape (..., `CROP_DRAWS`).
        scale: Smallest and largest share of the tile's area.
        ratio: Smallest and largest width / height.

    Returns:
        Boxes (..., 4) as the top, bottom, left and right of the view in fractions of the tile, top > bottom
        where the view is flipped upside down and left > right where it is mirrored; and whether rows and
        columns are then exchanged (...).
    """
    area = scale[0] + (scale[1] - scale[0]) * uniform[..., 0]
    low = np.log(np.clip(ratio[0], area, 1 / area))
    high = np.log(np.clip(ratio[1], area, 1 / area))
    aspect = np.exp(low + (high - low) * uniform[..., 1])
    side = np.minimum(np.sqrt(np.stack([area / aspect, area * aspect], -1)), 1.0)  # height, width
    start = (1 - side) * uniform[..., 2:4]
    edges = np.stack([start, start + side], -1)  # (..., 2 axes, 2 ends)
    orientation = (8 * uniform[..., 4]).astype(np.int64)
    flipped = np.stack([orientation & 1, orientation & 2], -1).astype(bool)
    edges = np.where(flipped[..., None], edges[..., ::-1], edges)
    return edges.reshape(*edges.shape[:-2], 4), (orientation & 4).astype(bool)


def draw_modalities(
    uniform: NDArray[np.float64], available: NDArray[np.bool_], probability: float, fuse: bool = True
) -> NDArray[np.bool_]:
    """The modalities of each view: each kept with ``probability``, on condition that at least one is.

    At 0.5 that is uniform over the non-empty sets of what the sample has.

    Args:
        uniform: Numbers in [0, 1), shape (..., B).
        available: Which of the M modalities each sample has, (B, M), at least one each.
        probability: Chance of each modality, above 0.
        fuse: Whether a view may show several modalities; otherwise it shows one, each equally often.

    Returns:
        Which modalities each view shows, (..., B, M).
    """
    count = available.shape[1]
    subsets = np.array(list(product([False, True], repeat=count)))[1:]  # (2^M - 1, M)
    kept = subsets.sum(1)
    possible = ~(subsets & ~available[:, None]).any(2)  # (B, 2^M - 1)
    # Given that a set is possible, what it leaves out of the sample's own modalities was dropped.
    dropped = available.sum(1)[:, None] - kept
    weight = probability**kept * (1.0 - probability) ** np.maximum(dropped, 0) if fuse else kept == 1
    cumulative = np.cumsum(np.where(possible, weight, 0.0), axis=1)
    pick = (uniform[..., None] * cumulative[:, -1:] >= cumulative).sum(-1)
    return subsets[pick]
