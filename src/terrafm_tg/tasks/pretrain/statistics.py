"""Statistics that tell a healthy run from a collapsed one: spread of embeddings, use of prototypes by land cover."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from terrafm_tg.losses import teacher_entropy
from terrafm_tg.losses.contrast import participation_ratio
from terrafm_tg.losses.dual_center import CLASSES


@torch.no_grad()
def embedding_statistics(x: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Spread of embeddings (N, D) on the unit sphere.

    Args:
        x: The embeddings.
        groups: Each one's set of sensors, as :func:`~terrafm_tg.losses.contrast.participation_ratio` takes them.

    Returns:
        The root of the total variance of the normalized embeddings, 0 where all are one point, 1 where they cancel
        out; and the participation ratio.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = nn.functional.normalize(x.float(), dim=-1)
        return (unit - unit.mean(dim=0)).square().sum(dim=-1).mean().sqrt(), participation_ratio(x, groups)


class PrototypeUse(Metric):
    """Teacher entropy and spread of top-k prototypes per land-cover class.

    The spread of a class is the mean over pairs of its tiles of the share of top-k prototypes that the two do
    not have in common: 0 where all tiles of the class use the same k prototypes, 1 where no two share any.
    The paper, whose evidence for dual centering this is, gives no formula; ours suits any number of tiles.

    Args:
        prototypes: Number of prototypes K.
        k: How many prototypes count as a tile's own.
    """

    full_state_update = False
    entropy: Tensor
    tiles: Tensor
    hits: Tensor

    def __init__(self, prototypes: int, k: int = 10) -> None:
        super().__init__()
        self.k = min(k, prototypes)
        self.add_state("entropy", torch.zeros(CLASSES), dist_reduce_fx="sum")
        self.add_state("tiles", torch.zeros(CLASSES), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(CLASSES, prototypes), dist_reduce_fx="sum")

    def update(self, teacher: Tensor, land_cover: Tensor, teacher_temp: float) -> None:
        """Adds a batch.

        Args:
            teacher: Centered logits, (B, K).
            land_cover: Class 0-11, or -1 for unknown (left out), int64 (B,).
            teacher_temp: Temperature of the teacher's softmax.
        """
        known = (land_cover >= 0).float()
        row = land_cover.clamp(min=0)
        # Not in place: a state that `Trainer.validate` has made in inference mode may not be changed in a fit after it.
        self.entropy = self.entropy.index_add(0, row, known * teacher_entropy(teacher, teacher_temp))
        self.tiles = self.tiles.index_add(0, row, known)
        top = teacher.topk(self.k, dim=-1).indices
        cell = row[:, None] * self.hits.shape[1] + top
        hits = self.hits.flatten().index_add(0, cell.flatten(), known.repeat_interleave(self.k))
        self.hits = hits.view_as(self.hits)

    def compute(self) -> dict[str, Tensor]:
        """``entropy`` (nats), ``spread`` and ``tiles`` per class, (12,); NaN for a class of too few tiles."""
        shared = (self.hits * (self.hits - 1)).sum(dim=1)
        pairs = self.k * self.tiles * (self.tiles - 1)
        return {"entropy": self.entropy / self.tiles, "spread": 1 - shared / pairs, "tiles": self.tiles}
