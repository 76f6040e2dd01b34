"""Which tiles have all of their pixels: their views take half of the work.

It is found where tiles are read, in the loader's workers: on a device the host would wait for the answer.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.modalities import MODALITIES, Modality
from terrafm_tg.radiometry import NODATA

#: Key of a sample, bool (modalities,), and of a batch, bool (B, modalities): False too where a modality is absent.
COMPLETE = "complete"


def complete_modalities(sample: Mapping[str, Tensor]) -> Tensor:
    """Whether a sample's native images of each modality have all of their pixels.

    Args:
        sample: ``image_<modality>_10m`` and so on, (C, H, W), on the CPU.

    Returns:
        bool (modalities,), in the order of ``MODALITIES``.
    """
    keys = ([m.native_key(resolution) for resolution in m.native] for m in MODALITIES.values())
    return torch.tensor(
        [all(key in sample and _has_all(sample[key][None])[0] for key in own) for own in keys]
    )


def complete_tiles(batch: Mapping[str, Tensor], modality: Modality) -> Tensor:
    """Whether each tile of a modality has all of its pixels.

    Args:
        batch: With ``complete``, or else with images on the CPU, where it takes a look at all of them; nothing is known
            of others, which count as incomplete.
        modality: Which.

    Returns:
        bool (B_m,), on the device of the batch.
    """
    rows = batch[f"rows_{modality.name}"]
    if COMPLETE in batch:
        return batch[COMPLETE][:, list(MODALITIES).index(modality.name)][rows]
    images = [batch[key] for key in map(modality.native_key, modality.native) if key in batch]
    known = len(images) == len(modality.native) and all(image.device.type == "cpu" for image in images)
    if not known:
        return torch.zeros_like(rows, dtype=torch.bool)
    return torch.from_numpy(np.logical_and.reduce([_has_all(image) for image in images]))


def _has_all(images: Tensor) -> np.ndarray:
    """For each of (B, C, H, W) whether no pixel is missing; NumPy knows uint16, and passes NaN on."""
    pixels = images.flatten(1).numpy()
    lowest = pixels.min(1) > (NODATA if pixels.dtype == np.int16 else 0)
    return lowest & (pixels.max(1) < np.inf) if pixels.dtype.kind == "f" else lowest
