"""Losses of classes, pixels and labels: what is ignored has no part in them, and nothing at all has the loss 0."""

from collections.abc import Sequence

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from terrafm_tg.errors import TerraFMError


def class_loss(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of what counts.

    Args:
        logits: (B, C, ...).
        target: Classes (B, ...), or their shares (B, C), of which all count.
        ignore_index: Class that does not count.
        weight: Of each class, (C,).
        smoothing: Share of the target that is spread over all classes.
    """
    if target.is_floating_point():
        return cross_entropy(logits, target, weight, label_smoothing=smoothing)
    ignored = -100 if ignore_index is None else ignore_index
    known = target != ignored
    # A mean over nothing would be NaN
    count = known.sum().clamp(min=1) if weight is None else (weight[target * known] * known).sum().clamp(min=1e-12)
    total = cross_entropy(logits, target, weight, ignore_index=ignored, reduction="sum", label_smoothing=smoothing)
    return total / count


def label_loss(
    logits: Tensor, target: Tensor, ignore_index: int | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy of what counts.

    Args:
        logits: (B, L, ...).
        target: Zeros and ones of the same shape, or shares.
        ignore_index: Target that does not count.
        pos_weight: Of each label's positives, (L,) or (1,).
    """
    if pos_weight is not None and len(pos_weight) > 1:
        pos_weight = pos_weight.view(-1, *[1] * (logits.ndim - 2))
    if ignore_index is None:
        return binary_cross_entropy_with_logits(logits, target.to(logits.dtype), pos_weight=pos_weight)
    known = target != ignore_index
    each = binary_cross_entropy_with_logits(
        logits, (target * known).to(logits.dtype), pos_weight=pos_weight, reduction="none"
    )
    return (each * known).sum() / known.sum().clamp(min=1)


class LabelLoss(nn.Module):
    """The loss of a task, as TorchGeo names them.

    Args:
        task: ``binary``, ``multiclass`` or ``multilabel``.
        num_classes: Number of classes or labels; 1 for ``binary``.
        loss: ``ce``, ``bce``, ``focal``, ``dice`` or ``jaccard``.
        ignore_index: Target that does not count.
        class_weights: Weight of each class in ``ce``.
        pos_weight: Weight of each label's positives in ``bce``; one number may be for all.
        smoothing: Share of the target that is spread over the classes in ``ce``, or of each label towards 0.5 in
            ``bce``; in training mode only.

    Raises:
        TerraFMError: If the loss is unknown, or there are not as many weights as classes.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        task: str,
        num_classes: int,
        loss: str,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
        pos_weight: Sequence[float] | Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.loss, self.ignore_index, self.smoothing = loss, ignore_index, smoothing
        for buffer, name, given in (
            ("weight", "class_weights", class_weights),
            ("pos_weight", "pos_weight", pos_weight),
        ):
            weights = None if given is None else torch.as_tensor(given, dtype=torch.float32).flatten()
            if weights is not None and len(weights) not in (num_classes, 1 if buffer == "pos_weight" else num_classes):
                raise TerraFMError(f"`{name}` has {len(weights)} numbers for {num_classes} classes: give one for each.")
            self.register_buffer(buffer, weights, persistent=False)
        if loss == "focal":
            self.region: nn.Module = smp.losses.FocalLoss(task, normalized=True)
            self.one_label = smp.losses.FocalLoss("binary", normalized=True)
        elif loss == "dice":
            self.region = smp.losses.DiceLoss(task)
        elif loss == "jaccard":
            counted = [i for i in range(num_classes) if i != ignore_index]
            some = task == "multiclass" and ignore_index is not None
            self.region = smp.losses.JaccardLoss(task, classes=counted if some else None)
        elif loss not in ("ce", "bce"):
            raise TerraFMError(f"`loss` is {loss!r}: use ce, bce, focal, dice or jaccard.")
        self.task = task

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (B, C, ...); of ``binary`` of the target's shape.
            target: Classes (B, ...), zeros and ones of the logits' shape, or shares of each.
        """
        smoothing = self.smoothing if self.training else 0.0
        if self.loss == "ce":
            return class_loss(logits, target, self.ignore_index, self.weight, smoothing)
        if self.loss == "bce":
            if smoothing:
                known = torch.ones_like(target) if self.ignore_index is None else target != self.ignore_index
                target = torch.where(known.bool(), target * (1 - smoothing) + 0.5 * smoothing, target)
            return label_loss(logits, target, self.ignore_index, self.pos_weight)
        if self.ignore_index is None:
            return self.region(logits, target)
        known = target != self.ignore_index
        if not known.any():
            return logits.sum() * 0.0
        # These losses are of all pixels at once, wherever they lie: what counts makes one image of one row
        if self.task == "multiclass":
            return self.region(logits.movedim(1, -1)[known].T.contiguous()[None], target[known][None])
        if self.task == "binary":
            return self.region(logits[known][None], target[known][None])
        if self.loss == "focal":
            columns = zip(logits.unbind(1), target.unbind(1), known.unbind(1), strict=True)
            return torch.stack([self.one_label(x[some], y[some]) for x, y, some in columns if some.any()]).mean()
        return self.region(logits.masked_fill(~known, -1e4), target * known)
