"""Native batches as `collate_tiles` makes them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from terrafm_tg.modalities import MODALITIES, S1RTC

MakeBatch = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Makes a batch of random tiles: ``positions`` in the epoch, of which those in ``without_s1`` lack radar.

    The pixels depend on the position alone.
    """

    def make(positions: list[int], tile: int = 48, without_s1: tuple[int, ...] = (), epoch: int = 0):
        samples = {p: torch.Generator().manual_seed(p) for p in positions}
        batch = {"position": torch.tensor(positions), "epoch": torch.full((len(positions),), epoch)}
        for modality in MODALITIES.values():
            having = [p for p in positions if modality != S1RTC or p not in without_s1]
            batch[f"sample_idx_{modality.name}"] = torch.tensor(
                [positions.index(p) for p in having], dtype=torch.int64
            )
            for resolution, bands in modality.native.items():
                shape = (len(bands), tile * 10 // resolution, tile * 10 // resolution)
                if having:
                    tiles = torch.stack([torch.rand(shape, generator=samples[p]) for p in having])
                    key = modality.native_key(resolution)
                    batch[key] = tiles + 1e-3 if modality == S1RTC else (1 + 9000 * tiles).to(torch.uint16)
        return batch

    return make
