"""Batches of tiles: each modality over the samples that have it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality

from .table import ALIGNMENT


def collate_tiles(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Batches samples of a :class:`~terrafm_tg.datasets.TileDataset`, of which some may lack a modality.

    Args:
        samples: B samples.

    Returns:
        Each image key stacked over the B_m samples that have it, with ``sample_idx_<modality>`` int64 (B_m,), their
        places in the batch; every other key stacked to (B, ...). A modality that no sample has is absent, and
        so is any other key that some sample lacks.

    Raises:
        TerraFMError: If tiles differ in size, or in type (radar as power and as steps).
    """
    rows = image_rows(samples)
    batch = {key: _stack(key, [samples[i][key] for i in having]) for key, having in rows.items()}
    return batch | collate_others(samples, rows)


def image_keys() -> dict[str, Modality]:
    """Returns each key that an image may have in a sample, and its modality."""
    return {
        key: modality
        for modality in MODALITIES.values()
        for key in (modality.key, *(modality.native_key(resolution) for resolution in modality.native))
    }


def image_rows(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Returns the image keys that any sample has, and the positions of the samples that have each."""
    rows = {key: [i for i, sample in enumerate(samples) if key in sample] for key in image_keys()}
    return {key: having for key, having in rows.items() if having}


def collate_others(samples: Sequence[Sample], rows: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Stacks all of a batch that is no image.

    Returns:
        ``sample_idx_<modality>`` and every other key that all samples have, stacked.
    """
    images = image_keys()
    batch = {f"sample_idx_{images[key].name}": torch.tensor(having) for key, having in rows.items()}
    shared = set.intersection(*(set(sample) for sample in samples)) - set(images)
    return batch | {key: _stack(key, [sample[key] for sample in samples]) for key in samples[0] if key in shared}


def _stack(key: str, tensors: list[Tensor]) -> Tensor:
    types = {tensor.dtype for tensor in tensors}
    if len(types) > 1:  # torch would promote radar steps and linear power to one type, and so mix the units
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
        raise TerraFMError(f"{key} differs in type within a batch ({names}): store all tiles of a modality alike.")
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
        fits = min(side for shape in shapes for side in shape[-2:]) // ALIGNMENT * ALIGNMENT
        raise TerraFMError(
            f"{key} differs in size within a batch ({sizes}): set `tile_size` to {max(fits, ALIGNMENT)} or less, a "
            f"multiple of {ALIGNMENT} that all tiles hold."
        )
    return torch.stack(tensors)
