"""Turns and mirrorings of square images."""

import torch
from torch import Tensor

#: Ways in which a square can be laid down: four turns, each also mirrored.
ORIENTATIONS = 8


def orient(x: Tensor, orientation: Tensor) -> Tensor:
    """Turns and mirrors each sample; of images that are not square only half turns and mirrorings.

    Args:
        x: (B, ..., H, W).
        orientation: int64 (B,) on the CPU, from 0 (as it is) to 7.

    Returns:
        The same values in other places.
    """
    if x.shape[-1] != x.shape[-2]:
        orientation = orientation // 2 * 2
    y = torch.empty_like(x)
    for way in orientation.unique().tolist():
        rows = (orientation == way).nonzero()[:, 0].to(x.device)
        turned = torch.rot90(x[rows], way % 4, (-2, -1))
        y[rows] = turned.flip(-1) if way >= 4 else turned
    return y
