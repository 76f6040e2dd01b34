"""Tiles that have all of their pixels, as a native sample tells."""

import numpy as np
import pytest
import torch

from terrafm_tg.datasets.tiles.pixels import is_complete
from terrafm_tg.modalities import S1RTC, S2L2A

HOLES = [
    (S2L2A, torch.uint16, 0),
    (S1RTC, torch.int16, -32768),
    *((S1RTC, torch.float32, hole) for hole in (0.0, -32768.0, float("nan"), float("inf"), -float("inf"))),
]


def tile(modality, dtype, *, hole=None, where=0):
    """Native images of a tile; ``hole`` is one pixel of the group ``where``."""
    images = {}
    for place, (resolution, bands) in enumerate(modality.native.items()):
        edge = 120 // resolution
        image = np.full((len(bands), edge, edge), -3 if dtype == torch.int16 else 1)
        images[resolution] = torch.from_numpy(image).to(dtype)
        if hole is not None and place == where:
            images[resolution][-1, -1, 0] = hole
    return images


@pytest.mark.parametrize(("modality", "dtype", "hole"), HOLES)
def test_one_missing_pixel_in_any_group_is_seen(modality, dtype, hole):
    assert is_complete(tile(modality, dtype))
    for where in range(len(modality.native)):
        assert not is_complete(tile(modality, dtype, hole=hole, where=where))
