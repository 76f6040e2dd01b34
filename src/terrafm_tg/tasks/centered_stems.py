"""Optimises the stems in the coordinates of centred inputs, though their weights refer to inputs around 0.5.

Normalised inputs have mean 0.5 (paper, "Data"). A kernel k therefore also moves the output by 0.5 sum(k), and all
of its 256 C entries share that part of the gradient: AdamW, whose steps have the size of the learning rate whatever
the gradient's, takes it in all of them at once. At a learning rate of 1e-3 the constant moves by more than 1 in a
step, what differs between tiles drowns in it, and within 50 steps DINO's teacher is uniform. With

    k * x + b  =  k * (x - 0.5) + c,   c = b + 0.5 sum(k)

the step is taken in (k, c) instead of (k, b). The function, its gradient and the published names stay as they are.
"""

import torch
from torch import Tensor, nn

from terrafm_tg.models.patch_embed import PatchStem


class CenteredStems:
    """The stems of an encoder, stepped in centred coordinates by an optimiser that knows (k, b) only.

    Args:
        encoder: Its stems are found once.

    Example:
        >>> stems = CenteredStems(encoder)  # doctest: +SKIP
        >>> loss.backward()
        >>> stems.center_gradients_()
        >>> sums = stems.kernel_sums()
        >>> optimizer.step()
        >>> stems.follow_(sums)
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.stems = [module for module in encoder.modules() if isinstance(module, PatchStem)]

    @torch.no_grad()
    def center_gradients_(self) -> None:
        """Turns the kernels' gradients at constant b into those at constant c; before clipping."""
        for stem in self.stems:
            if stem.weight.grad is not None and stem.bias is not None and stem.bias.grad is not None:
                stem.weight.grad.sub_(0.5 * stem.bias.grad[:, None, None, None])

    @torch.no_grad()
    def kernel_sums(self) -> list[Tensor]:
        """Sum of each output's kernel, (D,) per stem; to be taken before the step."""
        return [stem.weight.sum((1, 2, 3)) for stem in self.stems]

    @torch.no_grad()
    def follow_(self, before: list[Tensor]) -> None:
        """Moves the biases so that c has made the step that the optimiser made with b.

        Args:
            before: :meth:`kernel_sums` from before the step.
        """
        for stem, old, new in zip(self.stems, before, self.kernel_sums(), strict=True):
            if stem.bias is not None:
                stem.bias.sub_(0.5 * (new - old))
