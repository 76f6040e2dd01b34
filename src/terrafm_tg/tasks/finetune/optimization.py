"""AdamW with warm-up and cosine, and learning rates that fall with depth."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import AdamW, Optimizer

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT
from terrafm_tg.tasks.pretrain.optimization import CenteredStems, count_steps, warmup_steps
from terrafm_tg.utils.arguments import NOT_NEGATIVE, POSITIVE, SOME_SHARE, check_arguments


def warmup_cosine(step: int, steps: int, peak: float, end: float, warmup: int) -> float:
    """The learning rate of an optimizer step: a linear warm-up from 0, then a cosine.

    Args:
        step: Number of the step; 0 is the first.
        steps: Optimizer steps of the whole run.
        peak: Rate after the warm-up.
        end: Rate of the last step, and of any after it.
        warmup: Steps of the warm-up.
    """
    from lightly.utils.scheduler import cosine_warmup_schedule

    return cosine_warmup_schedule(min(step, steps - 1), steps, peak, end, warmup, warmup_start_value=0.0)


def encoder_of(module: nn.Module) -> TerraFMViT:
    """The TerraFM encoder inside a task or model, whatever wraps it.

    Raises:
        TerraFMError: If there is none.
    """
    encoder = next((m for m in module.modules() if isinstance(m, TerraFMViT)), None)
    if encoder is None:
        raise TerraFMError(
            f"{type(module).__name__} holds no TerraFM encoder: name one, such as terrafm_base, as its model "
            "or backbone."
        )
    return encoder


def layer_decay_groups(module: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose ``lr_scale`` falls with the distance from the output.

    The classifier or decoder has 1, the last block and the last norm ``layer_decay``, the block below its square,
    and so on down to the stems, class token and positions. Biases, other 1-D tensors, the class token, the positions
    and the fusion's queries have no weight decay.

    Args:
        module: Holds a TerraFM encoder.
        weight_decay: Weight decay of the others.
        layer_decay: Factor from one block to the one below; 1 gives all the same rate.
    """
    from timm.optim import param_groups_layer_decay

    encoder = encoder_of(module)
    groups = param_groups_layer_decay(
        encoder, weight_decay, no_weight_decay_list=encoder.no_weight_decay(), layer_decay=layer_decay
    )
    if not any(name.startswith("head.") for name, _ in encoder.named_parameters()):
        # timm takes the top layer for the head; here the head is outside the encoder.
        for group in groups:
            group["lr_scale"] *= layer_decay
    inside = {id(parameter) for parameter in encoder.parameters()}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in inside]
    for decay, params in ((weight_decay, [p for p in rest if p.ndim > 1]), (0.0, [p for p in rest if p.ndim <= 1])):
        if params:
            groups.append({"lr_scale": 1.0, "weight_decay": decay, "params": params})
    return groups


class FineTuneOptimization(LightningModule):
    """Mix-in that optimizes a task around a TerraFM encoder with warm-up, cosine and layer decay.

    Put it before the task among the base classes. TorchGeo's own tasks have one constant rate for all layers, which is
    lowered when the loss stalls.

    Args:
        lr: Peak learning rate of the classifier or decoder.
        min_lr: Its value at the end of the cosine.
        warmup_epochs: Linear warm-up.
        weight_decay: Weight decay; none on biases, other 1-D tensors, class token and positions.
        layer_decay: Factor from a block's learning rate to that of the block below; 1 for none.
        kwargs: Settings of the next base class.
    """

    learning_rate: Callable[[int], float]
    stems: CenteredStems

    def __init__(
        self,
        *,
        lr: float = 5e-4,
        min_lr: float = 1e-6,
        warmup_epochs: float = 5,
        weight_decay: float = 0.05,
        layer_decay: float = 0.75,
        **kwargs: Any,
    ) -> None:
        limits = dict.fromkeys(("min_lr", "warmup_epochs", "weight_decay"), NOT_NEGATIVE)
        check_arguments(FineTuneOptimization.__init__, locals(), lr=POSITIVE, layer_decay=SOME_SHARE, **limits)
        super().__init__(**kwargs)  # a task's own `lr` gives way to this one among the hyper-parameters

    def configure_optimizers(self) -> Optimizer:
        """AdamW in layer-decay groups; :meth:`optimizer_step` sets the learning rates.

        The schedule comes in :meth:`on_train_start`: to count the steps here would set up the dataloader, which
        would then never be told where a checkpoint stopped.

        Raises:
            TerraFMError: If a setting is impossible, or everything is frozen.
        """
        h = self.hparams
        if not 0 < h["layer_decay"] <= 1:
            raise TerraFMError(
                f"`layer_decay` is {h['layer_decay']}: set the factor from a block's learning rate to that of the "
                "block below, above 0 and at most 1 (no decay)."
            )
        if not 0 <= h["min_lr"] <= h["lr"]:
            raise TerraFMError(
                f"`min_lr` is {h['min_lr']} and `lr` {h['lr']}: the cosine ends at `min_lr`, so set it to 0 or more "
                "and not above `lr`."
            )
        groups = layer_decay_groups(self, h["weight_decay"], h["layer_decay"])
        if not groups:
            raise TerraFMError("Every parameter is frozen: set `freeze_backbone: false`, or only test.")
        # Under mixed precision Lightning does not clip before the fused kernel, which may unscale gradients itself.
        mixed = str(self.trainer.precision).endswith("-mixed")
        return AdamW(groups, lr=h["lr"], fused=not (mixed and self.trainer.gradient_clip_val))

    def on_train_start(self) -> None:
        """Makes the schedule; the dataloader is set up and restored by now."""
        h = self.hparams
        self.stems = CenteredStems(encoder_of(self))
        steps, per_epoch = count_steps(self.trainer)
        warmup = warmup_steps("warmup_epochs", h["warmup_epochs"], per_epoch, steps)
        self.learning_rate = partial(warmup_cosine, steps=steps, peak=h["lr"], end=h["min_lr"], warmup=warmup)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Centers the stems' gradients, and logs the learning rate of the head."""
        self.stems.center_gradients_()
        self.log("lr", self.learning_rate(self.global_step))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Sets each group's learning rate, then steps."""
        rate = self.learning_rate(self.global_step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        with self.stems.stepping():
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
