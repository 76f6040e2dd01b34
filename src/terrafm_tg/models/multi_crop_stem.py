"""The patch embedding of a training step: groups of views at once, pairs of linear maps folded where it pays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from terrafm_tg.modalities import MODALITIES

from .inputs import PATCH_SIZE, SensorInput

if TYPE_CHECKING:
    from .patch_embed import SensorPatchEmbed


def embed_groups(embed: "SensorPatchEmbed", groups: Sequence[SensorInput], fold: bool = True) -> list[Tensor]:
    """Tokens of several groups of views.

    What ``embed(group)`` computes for each, with one matrix product per map. Between pixels and tokens lie
    kernel, value map (``proj1``), mean over modalities, norm, ``proj2`` and ``proj3``, all but the norm linear. With
    T tokens, k columns of kernels and D = 3 d::

        as written   2 D^2 (modality tokens + T)    proj1 and proj2
        folded       2 D^2 min(k, T) + 2 D^2 d      proj1 into the kernels or behind the mean; proj2 into proj3

    Gradients reach both maps of a pair. Nothing is kept: the product is made anew in every step.

    Args:
        embed: The patch embedding.
        groups: Checked views; sizes differ between groups.
        fold: Whether to fold.

    Returns:
        For each group (n, H / 16, W / 16, d).
    """
    grids = [(group.size, group.shape[2] // PATCH_SIZE, group.shape[3] // PATCH_SIZE) for group in groups]
    counts = [n * h * w for n, h, w in grids]
    names = [name for name in MODALITIES if any(name in group.images for group in groups)]
    stems = [embed.get_submodule(f"conv2d_{MODALITIES[name].stem}") for name in names]
    patches = [
        _patches([g.images[name] for g in groups if name in g.images], s.channels)
        for name, s in zip(names, stems, strict=True)
    ]
    rows = [_token_rows(groups, name) for name in names]
    value_map = embed.projection.proj1.weight
    early = fold and sum(p.shape[1] for p in patches) < sum(counts)
    values = []
    for name, stem, of_stem in zip(names, stems, patches, strict=True):
        kernel, gap = stem._select()
        kernel = kernel.flatten(1)
        bias = stem.bias + embed.get_parameter(f"{MODALITIES[name].stem}_embed")[0] + gap
        if early:
            kernel, bias = value_map @ kernel, value_map @ bias
        value = linear(of_stem, kernel, bias)
        values.append(value if fold else linear(value, value_map))
    late = value_map if fold and not early else None
    fused = embed.fusion(values, rows, sum(counts), through=late)
    if late is not None:
        fused = linear(fused, late)
    tokens = _project(embed, fused, fold, _nothing(embed, names))
    return [part.view(*grid, -1) for part, grid in zip(tokens.split(counts), grids, strict=True)]


def _patches(images: Sequence[Tensor], channels: Sequence[int]) -> Tensor:
    """Images (n, C, H, W) of several sizes -> (patches of all, C 16 16), at once in the type of the product."""
    first = images[0]
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
    counts = [len(x) * (x.shape[2] // PATCH_SIZE) * (x.shape[3] // PATCH_SIZE) for x in images]
    out = first.new_empty(sum(counts), len(channels) * PATCH_SIZE**2, dtype=dtype)
    for x, part in zip(images, out.split(counts), strict=True):
        if len(channels) < x.shape[1]:
            x = torch.stack([x[:, channel] for channel in channels], dim=1)
        cut = x.unflatten(3, (-1, PATCH_SIZE)).unflatten(2, (-1, PATCH_SIZE)).permute(0, 2, 4, 1, 3, 5)
        part.view(cut.shape).copy_(cut)
    return out


def _token_rows(groups: Sequence[SensorInput], name: str) -> Tensor:
    """Place of each token of a modality among the tokens of all groups, int64."""
    places, start = [], 0
    for group in groups:
        tokens = (group.shape[2] // PATCH_SIZE) * (group.shape[3] // PATCH_SIZE)
        if name in group.images:
            device = group.images[name].device
            rows = torch.arange(group.size, device=device) if group.rows is None else group.rows[name]
            places.append(
                (rows[:, None] * tokens + torch.arange(start, start + tokens, device=device)).flatten()
            )
        start += group.size * tokens
    return torch.cat(places)


def _project(embed: "SensorPatchEmbed", fused: Tensor, fold: bool, nothing: Tensor | float) -> Tensor:
    """Norm, ``proj2`` and ``proj3``."""
    mix, out = embed.projection.proj2, embed.projection.proj3
    x = embed.projection.norm_input(fused)
    if not fold:
        return linear(mix(x), out.weight, out.bias + nothing)
    return linear(x, out.weight @ mix.weight, out.weight @ mix.bias + out.bias + nothing)


def _nothing(embed: "SensorPatchEmbed", names: Sequence[str]) -> Tensor | float:
    """Zero, with a gradient for the stems of modalities that no view shows, which DDP demands of every rank."""
    firsts = (
        [p.view(-1)[0] for p in embed.unused(names) if p.requires_grad] if torch.is_grad_enabled() else []
    )
    return 0.0 * torch.stack(firsts).sum() if firsts else 0.0
