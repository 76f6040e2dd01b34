"""Checkpoints in the published layout, with numbers that anyone can make again."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from terrafm_tg.models import build_encoder

#: What the published checkpoint has not.
FUSION = "patch_embed.fusion."


def recipe(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Parameters of those names and shapes, in their order, from the parity README's recipe."""
    rng = np.random.RandomState(0)
    state = {}
    for name, shape in shapes.items():
        a = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 and name.endswith("weight"):
            a = 1 + np.float32(0.1) * a
        elif len(shape) > 1 and not name.endswith(("pos_embed", "cls_token", "_embed")):
            a = a / np.float32(math.sqrt(math.prod(shape[1:])))
        else:
            a = np.float32(0.1) * a
        state[name] = torch.from_numpy(a)
    return state


def tiny() -> dict[str, Tensor]:
    """`terrafm_tiny` in the published layout: the same names, without a fusion."""
    with torch.device("meta"):
        state = build_encoder("terrafm_tiny").state_dict()
    return recipe({name: tuple(p.shape) for name, p in state.items() if not name.startswith(FUSION)})
