"""Patch features of a whole split in one file, which is mapped, not loaded: a split may be larger than the memory."""

import hashlib
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder
from terrafm_tg.evaluation.encoders.embeddings import read_batches
from terrafm_tg.tasks.finetune.metrics import NotFiniteError
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.progress import with_bar

from .base import Context
from .embedded import Labelled


def patch_features(
    encoder: BenchEncoder, dataset: BenchDataset, context: Context, tile: int | None = None, dtype: str = "float16"
) -> Labelled:
    """Features (n, D, h, w) of the last block and masks int16 (n, H, W), computed where no earlier run left them.

    The file lies in ``context.cache``, else in ``context.folder``; its name is a digest of the model, the data and the
    settings. A damaged one is computed anew.

    Args:
        encoder: The model.
        dataset: A split of a segmentation task.
        context: Where to compute, read and keep.
        tile: Cut images into squares of so many pixels first, row by row; each is one sample.
        dtype: To keep features in, "float16" or "float32".

    Raises:
        TerraFMError: If tiles do not fill the images, or the disk is too small.
        NotFiniteError: If a feature is NaN, or larger than ``dtype`` can hold.
    """
    what = (encoder.identity, encoder.size, dataset.fingerprint, tile, dtype)
    path = (context.cache or context.folder) / f"patches_{hashlib.sha256(repr(what).encode()).hexdigest()}.npy"
    try:
        return _mapped(path)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError, OSError) as error:
        warnings.warn(f"{path} is damaged and is computed anew: {error}", stacklevel=2)
    with atomic_write(path) as beside:
        _compute(beside, encoder, dataset, context, tile, dtype)
    return _mapped(path)


def _mapped(path: Path) -> Labelled:
    """The content of a file, read where it is used."""
    kept = np.load(path, mmap_mode="c")  # torch wants to be able to write
    return Labelled(torch.from_numpy(kept["x"]), torch.from_numpy(kept["y"]))


def cut(x: Tensor, tile: int) -> Tensor:
    """Squares of images or masks, those of each image one after the other, row by row.

    Args:
        x: (B, ..., H, W).
        tile: Pixels per side.

    Returns:
        (B H W / tile², ..., tile, tile).

    Raises:
        TerraFMError: If they do not fill the image.
    """
    height, width = x.shape[-2:]
    if height % tile or width % tile:
        raise TerraFMError(
            f"Tiles of {tile} px do not fill images of {height}x{width} px: set `tile` to a divisor, or to 0 for whole "
            "images."
        )
    squares = x.unflatten(-2, (height // tile, tile)).unflatten(-1, (width // tile, tile))
    return squares.movedim((-4, -2), (1, 2)).flatten(0, 2)


def _compute(
    path: Path, encoder: BenchEncoder, dataset: BenchDataset, context: Context, tile: int | None, dtype: str
) -> None:
    """Writes the file batch by batch: one record of ``x`` and ``y`` per sample."""
    task = dataset.task
    size = max(1, context.batch_size // ((task.size // tile) ** 2 or 1)) if tile else context.batch_size
    batches = read_batches(dataset, size, context.num_workers, context.device)
    title = f"Features of {task.name}, {dataset.split}"
    encoder = encoder.to(context.device).eval()
    done, array = 0, None
    for batch in with_bar(batches, title, math.ceil(len(dataset) / size), context.progress):
        images = len(batch["mask"])
        if tile:
            batch = {k: cut(x, tile) if k == "mask" or k.startswith("image") else x for k, x in batch.items()}
        with torch.inference_mode():
            found = encoder.patches(batch)
            features = found.to(getattr(torch, dtype)).cpu()
        if not features.isfinite().all():
            raise NotFiniteError(
                f"Features of {encoder.spec.label} reach {found.abs().max():.3g}, which {dtype} cannot hold: set "
                "`dtype` to float32, or look for values in the images that are not finite."
            )
        if array is None:
            record: Any = [("x", dtype, features.shape[1:]), ("y", "int16", batch["mask"].shape[1:])]
            array = _allocate(path, np.dtype(record), len(dataset) * (len(features) // images))
        rows = slice(done, done + len(features))
        array["x"][rows], array["y"][rows] = features.numpy(), batch["mask"].cpu().numpy()
        done = rows.stop
    if array is None:
        raise TerraFMError(f"The {dataset.split} split of {task.name} has no sample: check its files.")
    array.flush()


def _allocate(path: Path, record: np.dtype, count: int) -> np.memmap:
    """An empty file of so many records."""
    size, free = count * record.itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        raise TerraFMError(
            f"Patch features need {size / 1e9:.1f} GB in {path.parent}, which has {free / 1e9:.1f} GB left: give "
            "another `cache`, or a smaller `size` of the model."
        )
    return np.lib.format.open_memmap(path, "w+", record, (count,))
