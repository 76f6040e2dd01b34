"""What is done with the pixels of any benchmark file."""

from pathlib import Path

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .task import BenchTask


def missing_as_nan(image: Tensor) -> Tensor:
    """The image with NaN for every pixel that is not finite, such as decibels of no power."""
    return torch.where(image.isfinite(), image, torch.nan)


def check_mask(mask: Tensor, path: Path, task: BenchTask) -> Tensor:
    """The mask, if it holds nothing but the task's classes and the value to leave out.

    Args:
        mask: int64 (H, W).
        path: Where it was read from.
        task: The task.

    Raises:
        TerraFMError: If it holds another value.
    """
    wrong = (mask < 0) | (mask >= len(task.classes))
    if task.ignore_index is not None:
        wrong &= mask != task.ignore_index
    if wrong.any():
        raise TerraFMError(
            f"{path} holds the class {int(mask[wrong][0])}, but {task.name} has classes 0 to {len(task.classes) - 1}: "
            "fetch the file again."
        )
    return mask
