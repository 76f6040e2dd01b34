"""Optimises the stems in the coordinates of centred inputs, though their weights refer to inputs around 0.5.

Normalised inputs have mean 0.5 (paper, "Data"). A kernel k therefore also moves the output by 0.5 sum(k), and all
of its 256 C entries share that part of the gradient: AdamW, whose steps have the size of the learning rate whatever
the gradient's, takes it in all of them at once. At a learning rate of 1e-3 the constant moves by more than 1 in a
step, what differs between tiles drowns in it, and within 50 steps DINO's teacher is uniform. With

    k * x + b  =  k * (x - 0.5) + c,   c = b + 0.5 sum(k)

the step is taken in (k, c) instead of (k, b). The function, its gradient and the published names stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from terrafm_tg.models.patch_embed import PatchStem


class CenteredStems:
    """The stems of an encoder, stepped in centred coordinates by an optimiser that knows (k, b) only.

    Args:
        encoder: Its stems are found once.

    Example:
        >>> stems = CenteredStems(encoder)
        >>> loss.backward()
        >>> stems.center_gradients_()
        >>> with stems.stepping():
        ...     optimizer.step()
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.stems = [module for module in encoder.modules() if isinstance(module, PatchStem)]

    @torch.no_grad()
    def center_gradients_(self) -> None:
        """Turns the kernels' gradients at constant b into those at constant c; before clipping."""
        for stem in self.stems:
            if stem.weight.grad is not None and stem.bias is not None and stem.bias.grad is not None:
                stem.weight.grad.sub_(0.5 * stem.bias.grad[:, None, None, None])

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Around the optimiser's step: afterwards moves the biases so that c has made the step made with b."""
        before = [stem.weight.detach().sum((1, 2, 3)) for stem in self.stems]
        yield
        with torch.no_grad():
            for stem, old in zip(self.stems, before, strict=True):
                if stem.bias is not None:
                    stem.bias.sub_(0.5 * (stem.weight.sum((1, 2, 3)) - old))
