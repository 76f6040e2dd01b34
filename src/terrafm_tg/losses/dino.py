"""The cross-entropy between teacher and student views (DINO, arXiv 2104.14294; TerraFM, "Pretraining")."""

import torch
from torch import Tensor, nn

from terrafm_tg.utils.arguments import POSITIVE, checked


@checked(student_temp=POSITIVE)
class DINOLoss(nn.Module):
    """Mean cross-entropy over all pairs of different views.

    For teacher views t and student views s, with p_t = softmax(teacher_t / teacher_temp) and
    z_s = student_s / student_temp::

        loss = mean over t != s and samples of  -sum_k p_t[k] log_softmax(z_s)[k]

    The student's first views are the teacher's, in the same order (same crop, other modalities or
    augmentation), so the pairs that are left out lie on the diagonal. Always computed in float32, under
    autocast too.

    Args:
        student_temp: Temperature of the student's softmax.

    Example:
        >>> loss = DINOLoss()(torch.randn(10, 4, 64), torch.randn(2, 4, 64), teacher_temp=0.04)
    """

    def __init__(self, student_temp: float = 0.1) -> None:
        super().__init__()
        self.student_temp = student_temp

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Tensor:
        """The loss of a batch.

        Args:
            student: Logits of the student's views, (V_s, B, K).
            teacher: Centered logits of the teacher's views, (V_t, B, K); no gradient flows into them.
            teacher_temp: Temperature of the teacher's softmax at this step.

        Returns:
            A scalar.

        Raises:
            ValueError: If there is no pair of different views.
        """
        views, others, batch = len(teacher), len(student), student.shape[1]
        pairs = views * others - min(views, others)
        if pairs == 0:
            raise ValueError(f"{views} teacher and {others} student views leave no pair of different views.")
        with torch.autocast(student.device.type, enabled=False):
            targets = (teacher.detach().float() / teacher_temp).softmax(dim=-1)
            logits = student.float() / self.student_temp
            # -sum_k p[k] log_softmax(z)[k] = logsumexp(z) - sum_k p[k] z[k]: no second tensor of K logits per
            # view. One product per sample: a single one over samples and k would leave most of a GPU idle.
            log_norm = logits.logsumexp(dim=-1).sum(dim=1)
            cross = log_norm - torch.einsum("tbk,sbk->bts", targets, logits).sum(dim=0)
            same = torch.eye(views, others, dtype=torch.bool, device=cross.device)
            return cross.masked_fill(same, 0).sum() / (pairs * batch)


@checked(teacher_temp=POSITIVE)
def teacher_entropy(teacher: Tensor, teacher_temp: float) -> Tensor:
    """Entropy of the teacher's softmax, in nats: ln K where it is uniform, 0 where it is one prototype.

    Every teacher view is in as many pairs, so ``loss - entropy.mean()`` is the mean KL(teacher || student).

    Args:
        teacher: Centered logits, (..., K).
        teacher_temp: Temperature of the softmax.

    Returns:
        Entropy per sample, (...).
    """
    log_p = (teacher.float() / teacher_temp).log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)
