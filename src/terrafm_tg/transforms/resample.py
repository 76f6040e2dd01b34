"""One linear resampling per resolution group: crop, flip, resize and blur, in two small matrix products.

The value of a view's cell is the mean of the image's linear interpolant over that cell, so a view that
shrinks the tile is antialiased, one that enlarges it is interpolated, and a linear ramp keeps its values at
every resolution: bands of 10, 20 and 60 m stay aligned. Both axes separate, view = A_y X A_x^T, and with
hat(t) = max(0, 1 - |t|)

    A[k, i] = 1 / (b_k - a_k) * integral of hat(t - i) dt from a_k to b_k,

where cell k runs from a_k to b_k in pixels of the group, the centre of pixel i at i. In the outer half pixel
of the tile the interpolant goes on as it was: pixel -1 counts as 2 x_0 - x_1.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

#: Cells that share one window of the image: enough for a good matrix product, few enough to skip most zeros.
_BLOCK = 32


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in true float32: rounded to TF32 or bfloat16, a ramp over 534 px would be off by a pixel."""
    with ExitStack() as stack:
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            for backend in (getattr(torch.backends, name).matmul for name in ("cuda", "mkldnn")):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:  # before torch 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def blur_matrices(sigma: Tensor, size: int, radius: int) -> Tensor:
    """Gaussian blur as banded matrices that :func:`resample` folds into its own.

    Args:
        sigma: Standard deviation in pixels of the view, 0 for none, (n,).
        size: Edge of the view.
        radius: Cells that the blur reads on each side.

    Returns:
        (n, block, block + 2 radius), for each block of cells.
    """
    from kornia.filters import get_gaussian_kernel1d

    block = _block(size)
    taps = get_gaussian_kernel1d(2 * radius + 1, sigma.float().clamp(min=1e-2)[:, None])
    taps = torch.nn.functional.pad(taps, (0, 1))  # the last one stands for all that lies outside the band
    cells = torch.arange(block + 2 * radius, device=sigma.device)
    steps = cells - cells[:block, None]
    return taps[:, torch.where((steps >= 0) & (steps <= 2 * radius), steps, 2 * radius + 1)]


def with_shares(images: Tensor) -> Tensor:
    """Images with 0 for what is missing, and behind their channels as many that say what is there.

    Missing are pixels that are not above 0, or not finite. Done once per image, since views overlap.

    Args:
        images: Stored pixels (B, C, H, W), uint16 or float32.

    Returns:
        float32 (B, 2 C, H, W).
    """
    images = images.float()
    valid = (images > 0) & (images < torch.inf)
    return torch.cat([torch.where(valid, images, 0.0), valid.float()], dim=1)


def resample(
    images: Tensor,
    source: Tensor,
    box: Tensor,
    size: int,
    blur: Tensor | None = None,
    extent: float = 1.0,
    shares: bool = False,
) -> Tensor:
    """Views of one resolution group.

    Args:
        images: Pixels (B, C, H, W), uint16 or float32, none missing; or those of :func:`with_shares`.
        source: Image of each view, int64 (n,).
        box: Top, bottom, left and right of each view in fractions of the tile, (n, 4); top > bottom or
            left > right flips it.
        size: Height and width of the views.
        blur: From :func:`blur_matrices`.
        extent: Largest height or width of a box; a smaller one than 1 saves work.
        shares: The images are those of :func:`with_shares`: a cell is the weighted mean of the pixels that are
            there, and NaN where they make up less than half of it. Twice the work.

    Returns:
        float32 (n, C, size, size).
    """
    n = len(source)
    box = box.float()
    with full_precision(images.device):
        x = _along_rows(images, source, box[:, :2], size, blur, extent)
        planes = x.flatten(1, 2)  # (n, blocks * C, W, block): images of W rows
        every = torch.arange(n, device=source.device)
        x = _along_rows(planes, every, box[:, 2:], size, blur, extent).unflatten(2, x.shape[1:3])
    x = x.permute(0, 3, 2, 4, 1, 5).reshape(
        n, -1, size, size
    )  # (n, C, down and its cells, across and its cells)
    if not shares:
        return x
    values, share = x.chunk(2, dim=1)
    return torch.where(share < 0.5, torch.nan, values / share)


def _along_rows(
    images: Tensor,
    source: Tensor,
    ends: Tensor,
    size: int,
    blur: Tensor | None,
    extent: float,
) -> Tensor:
    """Resamples the rows of images (B, C, H, W) to ``size`` cells: (n, blocks, C, W, cells of a block)."""
    channels, length, width = images.shape[1:]
    n, block = len(source), _block(size)
    blocks = size // block
    radius = 0 if blur is None else (blur.shape[2] - block) // 2
    window = min(length, math.ceil(extent * length * (block + 2 * radius) / size) + 2)

    cells = torch.arange(blocks, device=ends.device)[:, None] * block
    cells = cells + torch.arange(-radius, block + radius + 1, device=ends.device)
    edges = torch.lerp(ends[:, :1, None], ends[:, 1:, None], (cells / size).float())  # (n, blocks, cells + 1)
    edges = edges.clamp(0, 1) * length - 0.5
    first = torch.minimum(edges[..., 0], edges[..., -1]).floor().clamp(0, length - window)
    weights = _weights(edges - first[..., None], window)  # (n, blocks, cells, window)
    if blur is not None:
        weights = blur[:, None] @ weights
    weights = weights / weights.sum(-1, keepdim=True)

    rows = first.long()[..., None, None] + torch.arange(window, device=ends.device)[:, None]
    planes = source[:, None] * channels + torch.arange(channels, device=source.device)
    rows = rows + planes[:, None, None] * length  # (n, blocks, window, C)
    picked = _take_rows(images.reshape(-1, width), rows).view(n * blocks, window, channels * width)
    result = torch.bmm(picked.mT, weights.flatten(0, 1).mT)  # (n * blocks, C * W, block)
    return result.view(n, blocks, -1, width, block)


def _weights(edges: Tensor, window: int) -> Tensor:
    """Integral of each pixel's hat over each cell: edges (..., cells + 1) to (..., cells, window)."""
    pixels = torch.arange(-1, window + 1, device=edges.device)
    offset = (edges[..., None] - pixels).clamp(-1, 1)
    weights = (offset - 0.5 * offset * offset.abs()).diff(
        dim=-2
    )  # of the hat's antiderivative, less a constant
    before, inside, after = weights[..., :1], weights[..., 1:-1], weights[..., -1:]
    if window == 1:  # a single pixel has no slope to go on with
        return before + inside + after
    inside[..., :2] += torch.cat([2 * before, -before], -1)
    inside[..., -2:] += torch.cat([-after, 2 * after], -1)
    return inside


def _take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of (R, W) as float32; 16-bit integers are moved as they are, since few kernels know uint16."""
    if table.dtype == torch.uint16:
        return table.view(torch.int16).index_select(0, rows.flatten()).view(torch.uint16).float()
    return table.index_select(0, rows.flatten()).float()


def _block(size: int) -> int:
    """Largest divisor of ``size`` up to `_BLOCK`; all of it where that would be a sliver."""
    block = max(d for d in range(1, _BLOCK + 1) if size % d == 0)
    return block if block >= 8 else size
