"""Stochastic depth as a function of the draw, decided on the CPU, so that nothing dropped needs to be computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from terrafm_tg.models.multi_crop import Kept
from terrafm_tg.utils.random import keyed_uniform


def drop_rates(blocks: nn.Module) -> list[float]:
    """The rates of a transformer's residual branches, two for each block."""
    return [
        getattr(drop, "drop_prob", 0.0) for block in blocks for drop in (block.drop_path1, block.drop_path2)
    ]


def plan_depth(
    rates: Sequence[float], seed: int, epoch: Tensor, position: Tensor, views: Sequence[int]
) -> dict[str, Any]:
    """Decides which residual branches each of the student's views keeps.

    Args:
        rates: Rate of each branch.
        seed: Seed of the run.
        epoch: Epoch of each sample, (B,), on the CPU.
        position: Its place in the epoch's list, (B,).
        views: Number of views of each group, in order.

    Returns:
        ``rows``, int64: the views (view * B + sample, from 0 in each group) that are kept, of all groups of all
        branches with a rate above 0, one after the other; and ``counts``, how many each of these is.
    """
    numbers = np.arange(sum(views))[:, None]
    uniform = keyed_uniform(seed, epoch.numpy(), position.numpy(), numbers, len(rates), "stochastic depth")
    kept = uniform >= np.asarray(rates)  # (V, B, branches)
    groups = np.split(kept.reshape(-1, len(rates)), np.cumsum(views)[:-1] * len(position))
    rows = [np.flatnonzero(group[:, i]) for i, rate in enumerate(rates) if rate > 0 for group in groups]
    counts = [len(part) for part in rows]
    return {
        "rows": torch.from_numpy(np.concatenate(rows)) if rows else torch.empty(0, dtype=torch.int64),
        "counts": counts,
    }


def unpack_depth(rates: Sequence[float], plan: dict[str, Any], groups: int) -> list[Kept | None]:
    """What :func:`~terrafm_tg.models.multi_crop.embed_views` takes; waits for no device.

    Args:
        rates: As for :func:`plan_depth`.
        plan: What it returned, its rows on any device.
        groups: Number of groups.
    """
    parts = list(plan["rows"].split(plan["counts"]))
    branches = [tuple(parts[i : i + groups]) for i in range(0, len(parts), groups)]
    return [Kept(branches.pop(0), 1 / (1 - rate)) if rate > 0 else None for rate in rates]
