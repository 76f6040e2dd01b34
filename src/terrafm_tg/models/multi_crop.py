"""The forward of a training step: views of several sizes at once, every linear map once over all of their tokens.

The same function as :class:`TerraFMViT`'s forward for each group of views, with less work (docs/performance.md):
groups share their matrix products, the last block is computed for the class token only, which is all that the loss
reads, and what stochastic depth would multiply by zero is not computed. Tokens of all groups lie behind one another,
(T, d); group g has ``shapes[g] = (n, N)``, n views of N tokens, and attention looks at one group after the other.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .inputs import SensorInput

if TYPE_CHECKING:
    from .vit import TerraFMViT

type Shapes = list[tuple[int, int]]
#: A residual branch: tokens (T, d) and their shapes to what is added.
type Branch = Callable[[Tensor, Shapes], Tensor]
#: Whether a processor takes the kernels that a GPU would: set to find out what memory these need.
as_on_a_gpu: ContextVar[bool] = ContextVar("as_on_a_gpu", default=False)


class Kept(NamedTuple):
    """The views for which stochastic depth keeps one residual branch.

    Args:
        rows: Per group int64 (k,), the places of the views that are kept.
        scale: What their branch is multiplied by, 1 / (share that is kept on average).
    """

    rows: tuple[Tensor, ...]
    scale: float


def embed_views(
    encoder: "TerraFMViT",
    views: Sequence[SensorInput],
    kept: Sequence[Kept | None] | None = None,
    without: Collection[str] = (),
    compiled: bool = False,
) -> Tensor:
    """Class tokens of several groups of views.

    Args:
        encoder: Its pooling and head are not used.
        views: The groups; sizes differ between them.
        kept: Two for each block, attention and MLP: what stochastic depth keeps, None for all. No other random number
            is drawn; the rates within the encoder do nothing here.
        without: Names of speed-ups to do without: ``pack``, ``fold``, ``class_token``, ``skip``, ``attention``.
        compiled: Whether the residual branches are compiled, once for all sizes.

    Returns:
        (views of all groups, d), after the last norm.
    """
    kept = kept or [None] * (2 * len(encoder.blocks))
    if "pack" in without and len(views) > 1:
        own = [[k and Kept(k.rows[g : g + 1], k.scale) for k in kept] for g in range(len(views))]
        parts = [embed_views(encoder, views[g : g + 1], own[g], without, compiled) for g in range(len(views))]
        return torch.cat(parts)
    grids = encoder.patch_embed.embed(views, fold="fold" not in without)
    tokens = [encoder.norm_pre(encoder._pos_embed(grid)) for grid in grids]
    shapes = [(t.shape[0], t.shape[1]) for t in tokens]
    x = torch.cat([t.flatten(0, 1) for t in tokens])
    blocks = [*zip(encoder.blocks, kept[::2], kept[1::2], strict=True)]
    cut = "class_token" not in without
    for number, (block, *of_block) in enumerate(blocks):
        last = cut and number == len(blocks) - 1
        run = functools.partial(_block, block, shapes, of_block, without, compiled, last)
        if encoder.grad_checkpointing and torch.is_grad_enabled():
            run = functools.partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        # A sharded block gathers its parameters around its methods (tasks/sharding.py).
        x = block.through(run, x) if hasattr(block, "through") else run(x)
    return encoder.norm(x if cut and blocks else _class_tokens(x, shapes))


def _block(
    block: Block,
    shapes: Shapes,
    kept: Sequence[Kept | None],
    without: Collection[str],
    compiled: bool,
    last: bool,
    x: Tensor,
) -> Tensor:
    """A block of tokens (T, d); the last one gives its class tokens (views, d)."""
    attention, mlp = _branches(compiled)
    # The processor's kernel is slow backwards in bfloat16: 2 to 9 times the written-out attention.
    low = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not as_on_a_gpu.get()
    fused = "attention" not in without and not low
    skip = "skip" not in without
    attend = functools.partial(attention, block, fused=fused, class_only=last)
    read, shapes_read = x, shapes
    if last:
        x, shapes = _class_tokens(x, shapes), [(n, 1) for n, _ in shapes]
    x = _residual(x, shapes, attend, kept[0], skip, read, shapes_read)
    return _residual(x, shapes, functools.partial(mlp, block), kept[1], skip, x, shapes)


def _residual(
    x: Tensor,
    shapes: Shapes,
    branch: Branch,
    kept: Kept | None,
    skip: bool,
    read: Tensor,
    shapes_read: Shapes,
) -> Tensor:
    """Tokens x (T, d) plus a branch of ``read``, tokens of the same views."""
    if kept is None:
        return x + branch(read, shapes_read)
    if not skip:
        weights = [
            x.new_zeros(n).index_fill(0, rows, kept.scale)
            for (n, _), rows in zip(shapes, kept.rows, strict=True)
        ]
        spread = [w[:, None].expand(shape).flatten() for w, shape in zip(weights, shapes, strict=True)]
        return x + torch.cat(spread)[:, None] * branch(read, shapes_read)
    rows, scale = kept
    if not sum(map(len, rows)):  # every parameter has a gradient in every step, which DDP demands
        rows, scale = tuple(torch.arange(n, device=x.device) for n, _ in shapes), 0.0
    picked = _Pick.apply(read, shapes_read, rows)
    y = branch(picked, [(len(row), tokens) for row, (_, tokens) in zip(rows, shapes_read, strict=True)])
    return _AddTo.apply(x, y, shapes, rows, scale)


def _attention_branch(
    block: Block, x: Tensor, shapes: Shapes, *, fused: bool = True, class_only: bool = False
) -> Tensor:
    """Norm, attention within each view and projection; for the class tokens only, (views, d), if asked so."""
    attn, x = block.attn, block.norm1(x)
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
        seen = scaled_dot_product_attention(q, k, v) if fused else (q * attn.scale @ k.mT).softmax(-1) @ v
        out.append(seen.transpose(1, 2).flatten(2).flatten(0, 1))
    return block.ls1(attn.proj(torch.cat(out)))


def _maps(attn: nn.Module, x: Tensor, n: int, tokens: int) -> tuple[Tensor, ...]:
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


class _Pick(torch.autograd.Function):
    """The tokens of some views; indexed view by view, since a processor copies long rows fast."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shapes: Shapes, rows: Sequence[Tensor]) -> Tensor:
        ctx.where = shapes, rows
        return torch.cat(
            [group[row].flatten(0, 1) for group, row in zip(_views(x, shapes), rows, strict=True)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shapes, rows = ctx.where
        out = grad.new_zeros(sum(n * tokens for n, tokens in shapes), grad.shape[1])
        for group, row, part in _parts(out, grad, shapes, rows):
            group.index_copy_(0, row, part)
        return out, None, None


class _AddTo(torch.autograd.Function):
    """Adds the scaled branch of some views."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, y: Tensor, shapes: Shapes, rows: Sequence[Tensor], scale: float
    ) -> Tensor:
        ctx.where = shapes, rows, scale, y.dtype
        out = x.clone()
        for group, row, part in _parts(out, y.to(x.dtype), shapes, rows):
            group.index_add_(0, row, part, alpha=scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        shapes, rows, scale, dtype = ctx.where
        picked = [group[row].flatten(0, 1) for group, row in zip(_views(grad, shapes), rows, strict=True)]
        return grad, torch.cat(picked).mul_(scale).to(dtype), None, None, None


def _parts(
    x: Tensor, y: Tensor, shapes: Shapes, rows: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each group of x as views (n, N, d), with the places of some of its views and their part of y."""
    parts = y.split([len(row) * tokens for row, (_, tokens) in zip(rows, shapes, strict=True)])
    for group, row, part in zip(_views(x, shapes), rows, parts, strict=True):
        yield group, row, part.view(len(row), *group.shape[1:])
