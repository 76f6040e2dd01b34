"""Terms that keep dimensions in short runs of small batches: the contrast of places, and the participation ratio."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.arguments import POSITIVE, checked

#: Number of sets of sensors, the empty one among them.
SETS = 2 ** len(MODALITIES)


@checked(temp=POSITIVE)
class PlaceContrast(nn.Module):
    """InfoNCE between the student's class tokens and the teacher's of the other crops (MoCo, arXiv 1911.05722).

    For student views s, teacher views t, tiles b and c of all ranks, and unit vectors z and y of their tokens::

        loss = mean over t != s and b of  -log( exp(z_sb . y_tb / temp) / sum over c of exp(z_sb . y_tc / temp) )

    It works on the embedding itself, without a head. What tells tiles of a batch apart must stay, and dimensions with
    it; as the sensors of both views are drawn at random, what is constant to a sensor finds no place, and fades.

    Args:
        temp: Temperature.
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a batch, of the same number of tiles on all ranks; a scalar, float32.

        Args:
            student: Class tokens of the student's views, (V_s, B, D); the first are of the teacher's crops.
            teacher: Those of the teacher's views, (V_t, B, D); no gradient flows into them.
        """
        views, others, batch = len(teacher), len(student), student.shape[1]
        first, keys = 0, normalize(teacher.detach().float(), dim=-1)
        if dist.is_available() and dist.is_initialized():
            first, every = dist.get_rank() * batch, [torch.empty_like(keys) for _ in range(dist.get_world_size())]
            dist.all_gather(every, keys.contiguous())
            keys = torch.cat(every, dim=1)
        with torch.autocast(student.device.type, enabled=False):
            logits = torch.einsum("sbd,tcd->tsbc", normalize(student.float(), dim=-1), keys) / self.temp
            own = torch.arange(first, first + batch, device=logits.device).expand(views, others, batch)
            losses = cross_entropy(logits.flatten(0, 2), own.flatten(), reduction="none").view(own.shape)
            same = torch.eye(views, others, dtype=torch.bool, device=logits.device)
            return losses.mean(dim=-1).masked_fill(same, 0).sum() / (views * others - min(views, others))


def participation_ratio(x: Tensor, groups: Tensor | None = None) -> Tensor:
    """The number of directions in which embeddings vary: (sum of l)^2 / sum of l^2, l the eigenvalues of covariance.

    Unlike the entropy of l it needs no decomposition, and so no wait for the GPU.

    Args:
        x: Embeddings (N, D); their length does not count.
        groups: Number of each one's group, int64 (N,), below :data:`SETS`: its set of sensors. A gap between groups
            then counts as no direction; one group where None, or where the average group could be smaller than four.

    Returns:
        A scalar from 1 to min(N - 1, D), 0 where all are one point.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = normalize(x.float(), dim=-1)
        if groups is None or len(x) < 4 * SETS:
            groups = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        member = (groups[:, None] == torch.arange(SETS, device=x.device)).float()  # one_hot waits for the device
        x = x - member @ (member.T @ x / member.sum(0).clamp(min=1)[:, None])
        gram = x @ x.T
        return gram.trace().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
