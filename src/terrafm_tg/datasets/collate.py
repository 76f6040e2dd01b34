"""Tiles to batches: each modality over the samples that have it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES


def collate_tiles(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Batch samples of a :class:`~terrafm_tg.datasets.TileDataset`, of which some may lack a modality.

    Args:
        samples: B samples.

    Returns:
        Each image key stacked over the B_m samples that have it, with ``rows_<modality>`` int64 (B_m,), their
        places in the batch; every other key stacked to (B, ...). A modality that no sample has is absent, and
        so is any other key that some sample lacks.

    Raises:
        TerraFMError: If tiles differ in size, or in type (radar as power and as steps).
    """
    batch: dict[str, Tensor] = {}
    images: set[str] = set()
    for modality in MODALITIES.values():
        keys = (modality.key, *(modality.native_key(resolution) for resolution in modality.native))
        images.update(keys)
        for key in keys:
            rows = [i for i, sample in enumerate(samples) if key in sample]
            if rows:
                batch[key] = _stack(key, [samples[i][key] for i in rows])
                batch[f"rows_{modality.name}"] = torch.tensor(rows)
    shared = set.intersection(*(set(sample) for sample in samples)) - images
    return batch | {
        key: _stack(key, [sample[key] for sample in samples]) for key in samples[0] if key in shared
    }


def _stack(key: str, tensors: list[Tensor]) -> Tensor:
    types = {tensor.dtype for tensor in tensors}
    if len(types) > 1:  # torch would promote radar steps and linear power to one type, and so mix the units
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise TerraFMError(
            f"{key} differs in type within a batch ({names}): store all tiles of a modality alike."
        )
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
        raise TerraFMError(
            f"{key} differs in size within a batch ({sizes}): set `tile_size` to the smallest tile's."
        )
    return torch.stack(tensors)
