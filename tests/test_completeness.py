"""Which tiles have all of their pixels."""

import numpy as np
import pytest
import torch

from terrafm_tg.modalities import MODALITIES, S1RTC, S2L1C, S2L2A
from terrafm_tg.transforms.completeness import COMPLETE, complete_modalities, complete_tiles

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
        images[modality.native_key(resolution)] = torch.from_numpy(image).to(dtype)
        if hole is not None and place == where:
            images[modality.native_key(resolution)][-1, -1, 0] = hole
    return images


@pytest.mark.parametrize(("modality", "dtype", "hole"), HOLES)
def test_one_missing_pixel_in_any_group_is_seen(modality, dtype, hole):
    index = list(MODALITIES).index(modality.name)
    assert complete_modalities(tile(modality, dtype)).tolist() == [i == index for i in range(len(MODALITIES))]
    for where in range(len(modality.native)):
        assert not complete_modalities(tile(modality, dtype, hole=hole, where=where)).any()


def test_a_batch_tells_the_same_by_its_flags_and_by_its_pixels():
    tiles = [tile(S2L2A, torch.uint16), tile(S2L2A, torch.uint16, hole=0), tile(S2L2A, torch.uint16)]
    batch = {key: torch.stack([images[key] for images in tiles]) for key in tiles[0]}
    batch[f"rows_{S2L2A.name}"] = torch.tensor([0, 2, 3])  # the second sample has no such tile
    assert complete_tiles(batch, S2L2A).tolist() == [True, False, True]
    none = torch.zeros(len(MODALITIES), dtype=torch.bool)
    flags = [complete_modalities(images) for images in tiles]
    batch[COMPLETE] = torch.stack([flags[0], none, *flags[1:]])
    assert complete_tiles(batch, S2L2A).tolist() == [True, False, True]


def test_nothing_is_known_without_a_group():
    batch = tile(S2L1C, torch.uint16)
    batch = {key: image[None] for key, image in list(batch.items())[1:]} | {"rows_s2l1c": torch.tensor([0])}
    assert complete_tiles(batch, S2L1C).tolist() == [False]
