"""The multi-crop forward: views of several sizes at once, every linear map once over all of their tokens.

The same function as :class:`~terrafm_tg.models.TerraFMViT`'s forward for each group of views, with less work
(docs/performance.md): groups share their matrix products, pairs of linear maps of the stem are folded where it pays,
the last block is computed for the class token only, which is all that the loss reads, and what stochastic depth would
multiply by zero is not computed. :meth:`TerraFMViT.embed_views` puts the three parts of this file together:

* :func:`plan_depth` decides on the CPU which views stochastic depth keeps;
* :func:`embed_groups` is the patch embedding of groups of views;
* :class:`CropBlock` is timm's block with a forward for groups of views. Their tokens lie behind one another, (T, d);
  group g has ``shapes[g] = (n, N)``, n views of N tokens, and attention looks at one group after the other.
"""

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple, cast

import numpy as np
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.transforms import SensorBatch
from terrafm_tg.utils.random import keyed_uniform

from .inputs import PATCH_SIZE
from .patch_embed import SensorPatchEmbed, join_unused

type Shapes = list[tuple[int, int]]
#: A residual branch: tokens (T, d) and their shapes to what is added.
type Branch = Callable[[Tensor, Shapes], Tensor]
#: The views for which stochastic depth keeps a residual branch, per group int64 (k,), and the factor of their branch,
#: 1 / (share that is kept on average).
type Kept = tuple[tuple[Tensor, ...], float]
#: Whether a processor takes the kernels that a GPU would: set to find out what memory these need.
as_on_a_gpu: ContextVar[bool] = ContextVar("as_on_a_gpu", default=False)


#: Kernels of attention: all but cuDNN's, which is planned anew for each number of views that stochastic depth keeps.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class DepthPlan(NamedTuple):
    """Stochastic depth of a batch's views, as it travels to the device.

    Args:
        rates: Rate of each residual branch, two for each block.
        counts: Number of views that are kept, of all groups of all branches with a rate above 0.
        keep_idx: These views (view * B + sample, from 0 in each group), one group and branch after the other, int64.
    """

    rates: tuple[float, ...]
    counts: list[int]
    keep_idx: Tensor

    def branches(self, groups: int) -> list[Kept | None]:
        """Returns what each branch keeps, None for all; waits for no device."""
        parts = iter(self.keep_idx.split(self.counts))
        return [
            (tuple(next(parts) for _ in range(groups)), 1 / (1 - rate)) if rate > 0 else None for rate in self.rates
        ]


def plan_depth(blocks: nn.Module, seed: int, epoch: Tensor, position: Tensor, views: Sequence[int]) -> DepthPlan:
    """Decides which residual branches each view keeps, a function of (seed, epoch, position, view) alone.

    Args:
        blocks: The transformer's, with their rates.
        seed: Seed of the run.
        epoch: Epoch of each sample, (B,), on the CPU.
        position: Its place in the epoch's list, (B,).
        views: Number of views of each group, in order.
    """
    drops = [drop for block in blocks.children() for drop in (block.drop_path1, block.drop_path2)]
    rates = tuple(float(getattr(drop, "drop_prob", 0.0)) for drop in drops)
    numbers = np.arange(sum(views))[:, None]
    uniform = keyed_uniform(seed, epoch.numpy(), position.numpy(), numbers, len(rates), "stochastic depth")
    kept = uniform >= np.asarray(rates)  # (V, B, branches)
    groups = np.split(kept.reshape(-1, len(rates)), np.cumsum(views)[:-1] * len(position))
    parts = [np.flatnonzero(group[:, i]) for i, rate in enumerate(rates) if rate > 0 for group in groups]
    keep_idx = torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)
    return DepthPlan(rates, [len(part) for part in parts], keep_idx)


def embed_groups(embed: SensorPatchEmbed, groups: Sequence[SensorBatch]) -> list[Tensor]:
    """Returns the tokens of several groups of views.

    They are those of ``embed(group)``, with one matrix product per map. Between pixels and tokens lie kernel, value
    map (``proj1``), mean over modalities, norm, ``proj2`` and ``proj3``, all but the norm linear. With T tokens, k
    columns of kernels and D = 3 d::

        as written   2 D^2 (modality tokens + T)    proj1 and proj2
        folded       2 D^2 min(k, T) + 2 D^2 d      proj1 into the kernels or behind the mean; proj2 into proj3

    Gradients reach both maps of a pair. Nothing is kept: the product is made anew in every step.

    Args:
        embed: The patch embedding.
        groups: Checked views; sizes differ between groups.

    Returns:
        For each group (n, H / 16, W / 16, d).
    """
    grids = [(group.size, group.shape[2] // PATCH_SIZE, group.shape[3] // PATCH_SIZE) for group in groups]
    counts = [n * h * w for n, h, w in grids]
    names = [name for name in MODALITIES if any(name in group.images for group in groups)]
    stems = [embed.stem(name) for name in names]
    patches = [
        _patches([g.images[name] for g in groups if name in g.images], s.channels)
        for name, s in zip(names, stems, strict=True)
    ]
    token_idx = [_token_idx(groups, name) for name in names]
    value_map = cast(nn.Linear, embed.projection.proj1).weight
    early = sum(p.shape[1] for p in patches) < sum(counts)
    values = []
    for name, stem, of_stem in zip(names, stems, patches, strict=True):
        kernel, gap = stem.select()
        kernel = kernel.flatten(1)
        bias = stem.get_parameter("bias") + embed.offset(name) + gap
        if early:
            kernel, bias = value_map @ kernel, value_map @ bias
        values.append(linear(of_stem, kernel, bias))
    fused = embed.fusion(values, token_idx, sum(counts), through=None if early else value_map)
    if not early:
        fused = linear(fused, value_map)
    mix, out = cast(nn.Linear, embed.projection.proj2), embed.projection.proj3
    x = embed.projection.norm_input(fused)
    bias = out.weight @ mix.bias + out.bias
    if torch.is_grad_enabled():
        bias = join_unused(bias, embed.unused(names))
    tokens = linear(x, out.weight @ mix.weight, bias)
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


def _token_idx(groups: Sequence[SensorBatch], name: str) -> Tensor:
    """Place of each token of a modality among the tokens of all groups, int64."""
    places, start = [], 0
    for group in groups:
        tokens = (group.shape[2] // PATCH_SIZE) * (group.shape[3] // PATCH_SIZE)
        if name in group.images:
            device = group.images[name].device
            sample_idx = torch.arange(group.size, device=device) if group.sample_idx is None else group.sample_idx[name]
            of_sample = torch.arange(start, start + tokens, device=device)
            places.append((sample_idx[:, None] * tokens + of_sample).flatten())
        start += group.size * tokens
    return torch.cat(places)


class CropBlock(Block):
    """timm's block, which also takes groups of views of several sizes.

    :meth:`forward_crops` draws no random number: the rates of stochastic depth in the block do nothing there, and
    dropout is not offered.
    """

    def forward_crops(
        self,
        x: Tensor,
        shapes: Shapes,
        kept: Sequence[Kept | None] = (None, None),
        *,
        last: bool = False,
        compiled: bool = False,
        recompute: bool = False,
    ) -> Tensor:
        """Returns the tokens behind the block.

        Args:
            x: Tokens, (T, d).
            shapes: Number of views and tokens of each group.
            kept: What stochastic depth keeps of attention and MLP, None for all.
            last: Whether to return class tokens only, (views, d).
            compiled: Whether the residual branches are compiled, once for all sizes.
            recompute: Compute the block again in the backward pass instead of keeping what that needs.
        """
        run = functools.partial(self._forward_crops, shapes=shapes, kept=kept, last=last, compiled=compiled)
        if recompute and torch.is_grad_enabled():
            return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return run(x)

    def _forward_crops(
        self, x: Tensor, shapes: Shapes, kept: Sequence[Kept | None], last: bool, compiled: bool
    ) -> Tensor:
        attention, mlp = _branches(compiled)
        # The processor's kernel is slow backwards in bfloat16: 2 to 9 times the written-out attention.
        low = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not as_on_a_gpu.get()
        attend = functools.partial(attention, self, fused=not low, class_only=last)
        read, shapes_read = x, shapes
        if last:
            x, shapes = _class_tokens(x, shapes), [(n, 1) for n, _ in shapes]
        with sdpa_kernel(_KERNELS):
            x = _residual(x, shapes, attend, kept[0], read, shapes_read)
        return _residual(x, shapes, functools.partial(mlp, self), kept[1], x, shapes)


def _residual(
    x: Tensor, shapes: Shapes, branch: Branch, kept: Kept | None, read: Tensor, shapes_read: Shapes
) -> Tensor:
    """Tokens x (T, d) plus a branch of ``read``, tokens of the same views."""
    if kept is None:
        return x + branch(read, shapes_read)
    keep_idx, scale = kept
    if not sum(map(len, keep_idx)):  # every parameter has a gradient in every step, which DDP demands
        keep_idx, scale = tuple(torch.arange(n, device=x.device) for n, _ in shapes), 0.0
    picked = [group.index_select(0, idx) for group, idx in zip(_views(read, shapes_read), keep_idx, strict=True)]
    added = branch(torch.cat([part.flatten(0, 1) for part in picked]), [(len(p), p.shape[1]) for p in picked])
    parts = _views(added.to(x.dtype), [(len(idx), tokens) for idx, (_, tokens) in zip(keep_idx, shapes, strict=True)])
    groups = zip(_views(x, shapes), keep_idx, parts, strict=True)
    return torch.cat([group.index_add(0, idx, part, alpha=scale).flatten(0, 1) for group, idx, part in groups])


def _attention_branch(
    block: Block, x: Tensor, shapes: Shapes, *, fused: bool = True, class_only: bool = False
) -> Tensor:
    """Norm, attention within each view and projection; for the class tokens only, (views, d), if asked so."""
    attn, x = cast(Attention, block.attn), block.norm1(x)
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if class_only:
        dim = attn.attn_dim
        few = linear(_class_tokens(x, shapes), weight[:dim], bias[:dim]).split([n for n, _ in shapes])
        many = linear(x, weight[dim:], bias[dim:])
    else:
        few, many = (None,) * len(shapes), linear(x, weight, bias)
    out = []
    for query, part, (n, tokens) in zip(few, many.split([n * t for n, t in shapes]), shapes, strict=True):
        q, k, v = (() if query is None else _maps(attn, query, n, 1)) + _maps(attn, part, n, tokens)
        q, k = attn.q_norm(q), attn.k_norm(k)
        seen = scaled_dot_product_attention(q, k, v) if fused else (q * attn.scale @ k.mT).softmax(-1) @ v
        out.append(seen.transpose(1, 2).flatten(2).flatten(0, 1))
    return block.ls1(attn.proj(attn.norm(torch.cat(out))))


def _maps(attn: Attention, x: Tensor, n: int, tokens: int) -> tuple[Tensor, ...]:
    """Queries, keys or values side by side, (n * tokens, maps * d) -> each (n, heads, tokens, d / heads)."""
    return x.view(n, tokens, -1, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


def _mlp_branch(block: Block, x: Tensor, shapes: Shapes) -> Tensor:
    return block.ls2(block.mlp(block.norm2(x)))


@functools.cache
def _branches(compiled: bool) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Attention and MLP. Compiled for sizes that change: the number of views that are kept does, from step to step."""
    if not compiled:
        return _attention_branch, _mlp_branch
    return torch.compile(_attention_branch, dynamic=True), torch.compile(_mlp_branch, dynamic=True)


def _class_tokens(x: Tensor, shapes: Shapes) -> Tensor:
    """(T, d) -> (views, d)."""
    return torch.cat([group[:, 0] for group in _views(x, shapes)])


def _views(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """(T, d) -> the groups, each (n, N, d)."""
    groups = x.split([n * tokens for n, tokens in shapes])
    return [group.view(*shape, -1) for group, shape in zip(groups, shapes, strict=True)]
