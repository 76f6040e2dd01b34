"""Dual centering: the teacher's logits minus a mean over all samples and one over frequent land covers."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.utils.arguments import COUNT, SHARE, checked

#: WorldCover's 11 classes and ocean.
CLASSES = len(CLASS_NAMES)


@checked(dim=COUNT, momentum=SHARE, alpha=SHARE)
class DualCenter(nn.Module):
    """Centers the teacher's logits g as ``g - alpha * c - (1 - alpha) * c_h`` (TerraFM, "Dual centering").

    c is DINO's running mean of the logits; c_h is the same running mean over only those samples whose
    land-cover class is frequent. Subtracting c_h takes from the frequent classes what they would otherwise
    win, and leaves it to the rare ones.

    :meth:`accumulate` takes in a micro-batch; :meth:`update` moves the centers once per optimizer step, by the
    sums *and counts* of all ranks. Where nobody met a frequent sample, c_h stays as it is. The centers are
    float32 and, like the choice of frequent classes, part of the state dict.

    Args:
        dim: Number of prototypes K.
        momentum: Share of the old center that an update keeps.
        alpha: Weight of c; 1 is DINO's own centering.

    Attributes:
        centers: c and c_h, float32 (2, K).
        frequent: Whether a class (0-11) is frequent, bool (13,); the last stands for unknown land cover (-1):
            never.
    """

    centers: Tensor
    frequent: Tensor

    def __init__(self, dim: int, momentum: float = 0.9, alpha: float = 0.8) -> None:
        super().__init__()
        self.momentum = momentum
        self.alpha = alpha
        self.register_buffer("centers", torch.zeros(2, dim))
        self.register_buffer("frequent", torch.zeros(CLASSES + 1, dtype=torch.bool))
        # Per micro-batch since the last update: sums over samples with their counts in the last column, (2,
        # K + 1), and the reduction that is under way. No buffers: DDP would overwrite every rank's sums by
        # the first rank's at each forward pass.
        self._pending: list[tuple[Tensor, dist.Work | None]] = []

    def set_frequent(self, classes: Sequence[int]) -> None:
        """Chooses the frequent land-cover classes, each 0-11."""
        self.frequent.zero_()
        self.frequent[list(classes)] = True

    def forward(self, teacher: Tensor) -> Tensor:
        """Centered logits, float32.

        Args:
            teacher: The teacher's logits, (..., K).
        """
        everywhere, frequent = self.centers
        return teacher.float() - torch.lerp(frequent, everywhere, self.alpha)

    @torch.no_grad()
    def accumulate(self, teacher: Tensor, land_cover: Tensor) -> None:
        """Adds a micro-batch to what the next update takes in.

        Args:
            teacher: The teacher's logits before centering, (V, B, K).
            land_cover: Class of each sample, 0-11 or -1 for unknown, int64 (B,).
        """
        views, batch, dim = teacher.shape
        per_sample = teacher.float().sum(dim=0)
        weight = self.frequent[land_cover].float()  # -1 is the last entry
        sums = per_sample.new_empty(2, dim + 1)
        sums[0, :-1] = per_sample.sum(dim=0)
        sums[0, -1] = views * batch
        sums[1, :-1] = (per_sample * weight[:, None]).sum(dim=0)
        sums[1, -1] = views * weight.sum()
        # Ranks add up the sums while the student runs.
        distributed = dist.is_available() and dist.is_initialized()
        reduction = dist.all_reduce(sums, async_op=True) if distributed else None
        self._pending.append((sums, reduction))

    @torch.no_grad()
    def update(self) -> None:
        """Moves both centers by what all ranks accumulated since the last update; call it on every rank."""
        if not self._pending:
            return
        for _, reduction in self._pending:
            if reduction is not None:
                reduction.wait()  # on a GPU its stream waits, not the processor
        total = torch.stack([sums for sums, _ in self._pending]).sum(dim=0)
        sums, counts = total[:, :-1], total[:, -1:]
        moved = self.centers.lerp(sums / counts.clamp(min=1), 1 - self.momentum)
        self.centers.copy_(torch.where(counts > 0, moved, self.centers))
        self._pending.clear()


def frequent_by_name(names: Sequence[str]) -> list[int]:
    """Classes of those names, in any case.

    Raises:
        TerraFMError: If a name is unknown, or none is given.
    """
    known = [name.lower() for name in CLASS_NAMES]
    for name in names:
        if name.lower() not in known:
            raise TerraFMError(f"`center.frequent_classes` names {name!r}: use names of {', '.join(CLASS_NAMES)}.")
    if not names:
        raise TerraFMError(
            "`center.frequent_classes` is empty: name classes, or set `center.alpha: 1` for one center only."
        )
    return sorted(known.index(name.lower()) for name in names)


def frequent_by_share(share: np.ndarray | None) -> list[int]:
    """Classes whose share of the sampler's draws exceeds 1 / (number of classes present).

    The paper does not say which classes count as frequent; this is our rule.

    Args:
        share: Share of the draws per class, (12,); None where nothing is known of it.

    Raises:
        TerraFMError: If there is no such class.
    """
    present = 0 if share is None else int(np.count_nonzero(share))
    frequent = [] if share is None else [int(i) for i in np.flatnonzero(share > 1 / max(present, 1))]
    if not frequent:
        met = "the land cover of every tile is unknown" if present == 0 else f"all {present} classes come equally often"
        raise TerraFMError(
            f"Dual centering needs land-cover classes that are drawn more often than others, but {met}: "
            "build the index with `terrafm index --worldcover`, name `center.frequent_classes`, or set "
            "`center.alpha: 1` for one center only."
        )
    return frequent
