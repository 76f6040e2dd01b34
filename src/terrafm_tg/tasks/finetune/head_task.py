"""Training of a head on any encoder, frozen or trained with it, as benchmarks do."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from terrafm_tg.datasets.bench import BenchTask
from terrafm_tg.transforms.orient import ORIENTATIONS, orient

from .heads import FeatureEncoder, Head
from .losses import class_loss, label_loss
from .metrics import TRUE, Metrics, NotFiniteError
from .rates import check_target

#: Makes the optimizer of these parameters, and the schedule that is stepped once per optimizer step of so many.
Optimization = Callable[[list[nn.Parameter], int], tuple[Optimizer, LRScheduler]]


class HeadTask(LightningModule):
    """Trains a head, or the encoder with it, and remembers the epoch with the best headline on the validation split.

    Batches hold ``label`` or ``mask`` and what the encoder reads. Classes and pixels are learnt by cross-entropy,
    several labels by binary cross-entropy. Logits per pixel are resized to the mask, bilinearly.

    Args:
        encoder: Reads the batches.
        head: Makes logits of its features.
        task: The labels.
        optimization: Makes the optimizer and the schedule.
        train_encoder: Train the encoder's backbone, too; else it stays as it is, in evaluation mode.
        augment: Of training batches: "none"; "flips" along either axis; "turns" by quarters as well.
        auxiliary: Weight of the loss of each of the head's auxiliary logits.
        seed: Of the augmentation.
        average: Of the headline by which the best epoch is chosen.

    Attributes:
        best: The best validation headline so far, in percent.
        best_epoch: The epoch after which it was met, from 0.
        learnt: What was learnt by then, on the CPU.
        metrics: Counts of the split that was looked at last.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        head: Head,
        task: BenchTask,
        optimization: Optimization,
        *,
        train_encoder: bool = False,
        augment: Literal["none", "flips", "turns"] = "turns",
        auxiliary: float = 0.0,
        seed: int = 0,
        average: str = TRUE,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.optimization = encoder, head, optimization
        self.train_encoder, self.augment, self.auxiliary = train_encoder, augment, auxiliary
        self.task, self.target_key = task, "mask" if task.kind == "segmentation" else "label"
        self.generator = torch.Generator().manual_seed(seed)
        if not train_encoder:
            encoder.requires_grad_(False)
        self.best, self.best_epoch = float("-inf"), -1
        self.learnt: dict[str, Tensor] = {}
        self.metrics = Metrics.of(task, average)
        self.train()

    def train(self, mode: bool = True) -> "HeadTask":
        """Sets the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Logits in float32, those of auxiliary heads after the first; (B, C), or per pixel of the batch's mask."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            features = self.head.read(self.encoder, batch)
        return self.head.logits(features, batch[self.target_key])

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Checks the targets, and turns a training batch; both before it is sent to the device.

        Raises:
            TerraFMError: If a target is no class.
        """
        target = batch[self.target_key]
        check_target(target, self.task.kind, len(self.task.classes), self.task.ignore_index)
        if not self.trainer.training or self.augment == "none":
            return batch
        ways = torch.randint(ORIENTATIONS, (len(target),), generator=self.generator)
        if self.augment == "flips":
            ways = ways // 2 * 2
        return {k: orient(x, ways) if k == "mask" or k.startswith("image") else x for k, x in batch.items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            NotFiniteError: If it is NaN or infinite: the learning rate is too high.
        """
        first, *others = self(batch)
        target = batch[self.target_key]
        loss = loss_of(self.task, first, target)
        for logits in others:
            loss = loss + self.auxiliary * loss_of(self.task, logits, target)
        if not loss.isfinite():
            raise NotFiniteError(
                f"The loss is {loss.item()} in epoch {self.current_epoch}: lower the learning rate, or look for values "
                "in the images that are not finite."
            )
        return loss

    def on_validation_epoch_start(self) -> None:
        """Counts anew."""
        self.metrics = Metrics.of(self.task, self.metrics.average)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Counts a batch."""
        self.metrics.update(self(batch)[0], batch[self.target_key])

    def on_validation_epoch_end(self) -> None:
        """Keeps what was learnt if it is the best; of equal epochs the first."""
        value = self.metrics.value()
        self.log("val", value, prog_bar=True)
        if value > self.best:
            self.best, self.best_epoch, self.learnt = value, self.current_epoch, self.copy_learnt()

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def copy_learnt(self) -> dict[str, Tensor]:
        """The state of what is trained, on the CPU."""
        state = (self if self.train_encoder else self.head).state_dict()
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}

    def load_learnt(self, state: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`copy_learnt` gave."""
        (self if self.train_encoder else self.head).load_state_dict(state)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and its schedule per step."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer, scheduler = self.optimization(trained, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loss_of(task: BenchTask, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of a benchmark's task: cross-entropy, or binary cross-entropy of several labels."""
    loss = label_loss if task.kind == "multilabel" else class_loss
    return loss(logits, target, task.ignore_index)
