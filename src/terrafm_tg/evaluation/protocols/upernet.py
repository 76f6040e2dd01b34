"""Segmentation by UPerNet on a frozen encoder: the paper's dense probing."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder

from .base import Context, Protocol, Score, Splits
from .head_task import HeadTask
from .heads import UPerNetHead
from .sweep import checked_rates, run_identity, sweep
from .training import CosineAdamW, Training


@dataclass(frozen=True)
class FrozenUPerNet(Protocol):
    """UPerNet on the features of four blocks (1/3, 1/2, 2/3 and all of the depth: 4, 6, 8 and 12 of 12).

    The paper states the blocks and no more; the rest are common values. Of several learning rates the best on the
    validation split counts, and of each the best epoch.

    Args:
        lrs: Peak learning rates.
        min_lr: The rate in the last step.
        warmup: Share of the steps in which the rate rises.
        weight_decay: Of AdamW.
        epochs: Times that the training split is seen.
        batch_size: Samples per step.
        width: Channels of the decoder.
        dropout: Rate before its last layer.
        clip: Norm that the gradients are scaled down to.
        augment: Of training samples: "none", "flips" or "turns".
        precision: Of Lightning's Trainer, such as "bf16-mixed" on a GPU.

    Raises:
        TerraFMError: If ``lrs`` are no learning rates.
    """

    name: ClassVar[str] = "upernet"
    kinds: ClassVar[frozenset[str]] = frozenset({"segmentation"})

    lrs: tuple[float, ...] = (1e-3,)
    min_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.01
    epochs: int = 50
    batch_size: int = 16
    width: int = 256
    dropout: float = 0.1
    clip: float | None = 1.0
    augment: Literal["none", "flips", "turns"] = "turns"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lrs", checked_rates(self.lrs))

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """Trains the decoder with each learning rate, and tests the best."""
        self.check(splits.train.task)
        encoder = load_encoder(spec, splits.train.task, splits.train)

        def make(rate: float) -> HeadTask:
            return HeadTask(
                encoder,
                UPerNetHead(encoder.dim, len(encoder.task.classes), self.width, self.dropout),
                CosineAdamW(rate, self.min_lr, self.warmup, self.weight_decay),
                augment=self.augment,
                seed=context.seed,
            )

        training = Training(self.epochs, self.batch_size, clip=self.clip, precision=self.precision)
        return sweep(self.lrs, make, splits, training, context, run_identity(self, encoder, splits, context))
