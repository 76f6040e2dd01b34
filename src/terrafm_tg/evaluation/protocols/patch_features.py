"""Patch features of a whole split in one file, which is mapped, not loaded: a split may be larger than the memory."""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from terrafm_tg.datasets.bench import BenchDataset
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder
from terrafm_tg.evaluation.encoders.embeddings import read_batches
from terrafm_tg.tasks.finetune.metrics import NotFiniteError
from terrafm_tg.tasks.finetune.rates import check_target
from terrafm_tg.utils.files import atomic_write

from .base import Context


class PatchFeatures(NamedTuple):
    """Patch features and masks of a split, which a dense probe learns from.

    Attributes:
        features: Of the last block, float16 or float32 (n, D, h, w).
        mask: Classes, int16 (n, H, W).
    """

    features: Tensor
    mask: Tensor


def patch_features(
    encoder: BenchEncoder,
    dataset: BenchDataset,
    context: Context,
    tile: int | None = None,
    dtype: torch.dtype = torch.float16,
) -> PatchFeatures:
    """Features and masks of all samples, computed where no earlier run left them.

    The file lies in ``context.cache``, else in ``context.folder``; its name is a digest of the model, the data and the
    settings. A damaged one is computed anew.

    Args:
        encoder: The model.
        dataset: A split of a segmentation task.
        context: Where to compute, read and keep.
        tile: Cut images into squares of so many pixels first, row by row; each is one sample.
        dtype: To keep features in.

    Raises:
        TerraFMError: If tiles do not fill the images, a mask holds what is no class, or the disk is too small.
        NotFiniteError: If a feature is NaN, or larger than ``dtype`` can hold.
    """
    what = (encoder.identity, encoder.size, dataset.fingerprint, tile, str(dtype))
    name = f"patches_{hashlib.sha256(repr(what).encode()).hexdigest()}.safetensors"
    path = (context.cache or context.folder) / name
    if path.exists():
        try:
            return PatchFeatures(**load_file(path))
        except (SafetensorError, OSError) as error:
            warnings.warn(f"{path} is damaged and is computed anew: {error}", stacklevel=2)
    with atomic_write(path) as beside:
        _compute(beside, encoder, dataset, context, tile, dtype)
    return PatchFeatures(**load_file(path))


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
    path: Path, encoder: BenchEncoder, dataset: BenchDataset, context: Context, tile: int | None, dtype: torch.dtype
) -> None:
    """Writes the file batch by batch."""
    task = dataset.task
    size = max(1, context.batch_size // ((task.size // tile) ** 2 or 1)) if tile else context.batch_size
    batches = read_batches(dataset, size, context.num_workers, context.device)
    title = f"Features of {task.name}, {dataset.split}"
    encoder = encoder.to(context.device).eval()
    done, arrays = 0, None
    for batch in track(batches, title, math.ceil(len(dataset) / size), disable=not context.progress):
        check_target(batch["mask"], task.kind, len(task.classes), task.ignore_index)
        images = len(batch["mask"])
        if tile:
            batch = {k: cut(x, tile) if k == "mask" or k.startswith("image") else x for k, x in batch.items()}
        with torch.inference_mode():
            found = encoder.patches(batch)
            features = found.to(dtype).cpu()
        if not features.isfinite().all():
            raise NotFiniteError(
                f"Features of {encoder.spec.label} reach {found.abs().max():.3g}, which {dtype} cannot hold: set "
                "`dtype` to float32, or look for values in the images that are not finite."
            )
        if arrays is None:
            n = len(dataset) * (len(features) // images)
            arrays = _allocate(path, (n, *features.shape[1:]), dtype, (n, *batch["mask"].shape[1:]))
        rows = slice(done, done + len(features))
        arrays["features"][rows], arrays["mask"][rows] = features.numpy(), batch["mask"].cpu().numpy()
        done = rows.stop
    if arrays is None:
        raise TerraFMError(f"The {dataset.split} split of {task.name} has no sample: check its files.")
    for array in arrays.values():
        array.flush()


def _allocate(
    path: Path, features: tuple[int, ...], dtype: torch.dtype, mask: tuple[int, ...]
) -> Mapping[str, np.memmap]:
    """A safetensors file of these shapes, to be filled: its length, a header in JSON, the values."""
    types: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I16": np.dtype("<i2")}
    kinds = {"features": ("F16" if dtype == torch.float16 else "F32", features), "mask": ("I16", mask)}
    header, starts, end = {}, {}, 0
    for name, (kind, shape) in kinds.items():
        starts[name], end = end, end + math.prod(shape) * types[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (starts[name], end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    free = shutil.disk_usage(path.parent).free
    if end > free:
        raise TerraFMError(
            f"Patch features need {end / 1e9:.1f} GB in {path.parent}, which has {free / 1e9:.1f} GB left: give "
            "another `cache`, or a smaller `size` of the model."
        )
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return {
        name: np.memmap(path, types[kind], "r+", 8 + len(text) + starts[name], shape)
        for name, (kind, shape) in kinds.items()
    }
