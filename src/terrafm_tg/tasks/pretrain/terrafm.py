"""TerraFM's pretraining: a DINO student and teacher whose views differ in their sensors."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from terrafm_tg.errors import TerraFMError
from terrafm_tg.losses import DINOLoss, DualCenter, PlaceContrast, teacher_entropy
from terrafm_tg.losses.contrast import participation_ratio
from terrafm_tg.losses.dual_center import frequent_by_name, frequent_by_share
from terrafm_tg.modalities import get_modalities
from terrafm_tg.models import build_encoder
from terrafm_tg.models.multi_crop import plan_depth
from terrafm_tg.transforms import Augment, MultiCrop, SensorBatch
from terrafm_tg.transforms.statistics import find_statistics
from terrafm_tg.utils.arguments import NOT_NEGATIVE, check_arguments

from .embedding import TeacherEmbedding
from .head import ProjectionHead
from .optimization import DECAY, CenteredStems, StepValues, clip_each_, ema_, make_schedules, parameter_groups
from .settings import (
    GROUPS,
    Center,
    Contrast,
    Crops,
    Optimization,
    PrototypeHead,
    Schedule,
    check_limits,
    check_settings,
    flatten,
    plain,
    plain_settings,
)
from .sharding import check_strategy, number_parameters, shard
from .statistics import embedding_statistics

#: Warnings of Lightning's at what is meant here: the task plans views although there is a datamodule, and the teacher
#: is in evaluation mode.
_MEANT = (".*overridden `on_before_batch_transfer` in `LightningModule`.*", ".*in eval mode at the start of training.*")
#: Precisions that keep float32 where it is needed.
PRECISIONS = ("bf16-mixed", "16-mixed", "32-true")
#: Settings that do not change what is learnt, and so may differ from a checkpoint's.
FREE_SETTINGS = ("grad_checkpointing", "compile")
#: Settings that must be the checkpoint's also to validate or predict with it.
SHAPE_SETTINGS = ("model", "depth", *(f"head.{field.name}" for field in fields(PrototypeHead)))


class TerraFM(TeacherEmbedding):
    """Pretrains an encoder on Sentinel-1 and Sentinel-2 by self-distillation; the defaults are the paper's.

    Needs batches of native-resolution tiles that carry ``position`` and ``epoch``, as the datamodules of this
    package give them. What a view shows depends on these and ``seed`` alone. A tuple of two is a schedule's
    start and end.

    Args:
        model: Encoder: ``terrafm_tiny``, ``terrafm_small``, ``terrafm_base`` or ``terrafm_large``.
        weights: Encoder weights to start from, a path or URL (``get_weight`` names too); random by default.
        depth: Number of transformer blocks, for quick runs; the model's own by default.
        modalities: Sensors to learn from: any of ``s1rtc``, ``s2l1c``, ``s2l2a``; all by default.
        modality_probability: Probability with which a view keeps each sensor; it keeps at least one.
        fuse: Whether a view may hold several sensors; otherwise it draws one (ablation).
        crops: Size and number of the crops.
        augmentation: Changes of the views' values, besides cropping, flipping and turning.
        center: Dual centering.
        head: Projection head.
        contrast: The contrast of places, for small batches and short runs (conf/small_scale.yaml); the paper has none.
        optimizer: Learning rate, weight decay and clipping.
        schedule: Warm-ups, and the courses of the teacher's momentum and temperature.
        student_temp: Temperature of the student's softmax.
        koleo: Weight of DINOv2's KoLeo term, which drives the class tokens of each of the student's global crops
            apart; the paper has none. It compares the tiles of one process's micro-batch.
        dimensions: Weight of a term that keeps dimensions: minus the logarithm of the participation ratio of the
            student's class tokens of global crops, within sets of sensors; the paper has none.
        whiten_stems: Begin with stems that weigh detail as much as brightness
            (:meth:`~terrafm_tg.models.patch_embed.PatchStem.whiten_`); nothing with ``weights``.
        drop_path: Rate of stochastic depth in the student's last block, linear from 0 in the first.
        grad_checkpointing: Recompute the student's blocks in the backward pass: less memory, more time.
        compile: Compile the transformer's blocks, once for all numbers of views.
        seed: Seed of the views and of stochastic depth.
        statistics: Mean and standard deviation that images are normalized with: a file of ``terrafm stats``, or
            ``mean`` and ``std`` by modality. Those of ``weights`` by default, which are mostly the published ones.
            Checkpoints and exported encoders keep them.

    Raises:
        TerraFMError: If a setting is impossible.
    """

    _saved_schedules: dict[str, Any] | None = None
    _sharded = _looked_at_size = False

    def __init__(
        self,
        model: str = "terrafm_base",
        weights: str | None = None,
        depth: int | None = None,
        modalities: list[str] | None = None,
        modality_probability: float = 0.5,
        fuse: bool = True,
        crops: Crops = Crops(),
        augmentation: Augment = Augment(),
        center: Center = Center(),
        head: PrototypeHead = PrototypeHead(),
        contrast: Contrast = Contrast(),
        optimizer: Optimization = Optimization(),
        schedule: Schedule = Schedule(),
        student_temp: float = 0.1,
        koleo: float = 0.0,
        dimensions: float = 0.0,
        whiten_stems: bool = False,
        drop_path: float = 0.1,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
        statistics: dict[str, Any] | Path | None = None,
    ) -> None:
        self.weights = weights
        super().__init__()

    def configure_models(self) -> None:
        """Builds student, teacher and their heads; the teacher starts as the student."""
        own = {"statistics": self.hparams["statistics"]}
        check_arguments(TerraFM.__init__, own)  # before a file is opened, which a checkpoint must not name
        own = {"statistics": find_statistics(own["statistics"])}
        self.save_hyperparameters(plain_settings(self.hparams) | own)
        h = self.hparams
        check_arguments(TerraFM.__init__, {name: x for name, x in h.items() if name not in GROUPS}, seed=NOT_NEGATIVE)
        check_limits(h)
        self.sensors = [m.name for m in get_modalities(h["modalities"])]
        depth = {} if h["depth"] is None else {"depth": h["depth"]}
        self.student = build_encoder(h["model"], self.weights, drop_path_rate=h["drop_path"], **depth)
        if h["whiten_stems"] and self.weights is None:
            self.student.patch_embed.init_weights(whiten=True)
        self.teacher = build_encoder(h["model"], depth=len(self.student.blocks))
        h["statistics"] = h["statistics"] or self.student.statistics
        head = {"output_dim" if name == "prototypes" else name: value for name, value in h["head"].items()}
        head["input_dim"] = self.student.num_features
        self.student_head, self.teacher_head = ProjectionHead(**head), ProjectionHead(**head)
        for teacher, student in self._pairs():
            teacher.load_state_dict(student.state_dict())
            teacher.requires_grad_(False).eval()
        self.stems = CenteredStems(self.student)
        self.student.set_grad_checkpointing(h["grad_checkpointing"])
        augment, draws = Augment(**h["augmentation"]), ("modality_probability", "fuse", "seed", "statistics")
        shown = {name: h[name] for name in draws}
        self.multicrop = MultiCrop(self.sensors, **h["crops"], augment=augment, **shown)

    def configure_losses(self) -> None:
        """Builds the losses and the centers."""
        from lightly.loss import KoLeoLoss

        center, head = self.hparams["center"], self.hparams["head"]
        self.loss = DINOLoss(self.hparams["student_temp"])
        self.koleo = KoLeoLoss()
        self.contrast = PlaceContrast(self.hparams["contrast"]["temp"])
        self.center = DualCenter(head["prototypes"], center["momentum"], center["alpha"])

    def configure_model(self) -> None:
        """Shards the models where the strategy is FSDP's (`ModelParallelStrategy`)."""
        if self.device_mesh is not None and not self._sharded:
            shard(self._pairs(), self.device_mesh)
            self._sharded = True

    def train(self, mode: bool = True) -> "TerraFM":
        """Sets the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_head.eval()
        return self

    def setup(self, stage: str) -> None:
        """Chooses the frequent classes before a fit; a checkpoint that is resumed restores its own choice.

        Raises:
            TerraFMError: If the Trainer has a strategy or a precision that does not do, or is to clip gradients.
        """
        super().setup(stage)
        for message in _MEANT:
            warnings.filterwarnings("ignore", message)
        check_strategy(self.trainer.strategy)
        if self.trainer.precision not in PRECISIONS:
            raise TerraFMError(
                f"`precision` is {self.trainer.precision!r}, and the centers, the loss and the teacher's average are "
                f"float32: use one of {', '.join(PRECISIONS)}."
            )
        if self.trainer.gradient_clip_val:
            raise TerraFMError(
                f"The Trainer's `gradient_clip_val` ({self.trainer.gradient_clip_val}) clips all gradients together, "
                "DINO each tensor: remove it, and set the model's `optimizer.clip_grad`."
            )
        center = self.hparams["center"]
        if stage == "fit" and center["alpha"] < 1:
            names = center["frequent_classes"]
            share = getattr(getattr(self.trainer, "datamodule", None), "land_cover_share", None)
            self.center.set_frequent(frequent_by_share(share) if names is None else frequent_by_name(names))

    def teardown(self, stage: str) -> None:
        """Lets Lightning warn again of what is meant in this task's runs."""
        filters = cast("list[Any]", warnings.filters)
        filters[:] = [entry for entry in filters if getattr(entry[1], "pattern", None) not in _MEANT]

    @property
    def lr(self) -> float:
        """The peak learning rate, where Lightning's ``Tuner`` looks for it and sets it."""
        return self.hparams["optimizer"]["lr"]

    @lr.setter
    def lr(self, lr: float) -> None:
        self.hparams["optimizer"]["lr"] = plain(lr)

    def configure_optimizers(self) -> Optimizer:
        """AdamW over student and head; :meth:`optimizer_step` sets its learning rate and weight decay.

        The schedules come later, in :meth:`on_train_start`: to count the steps here would set up the
        dataloader, and one that is set up before a checkpoint is restored is never told where the checkpoint
        stopped.
        """
        # With a gradient scaler the fused kernel unscales, and gradients could not be clipped before it.
        fused = self.trainer.precision != "16-mixed"
        groups = parameter_groups((self.student, self.student_head))
        return AdamW(groups, lr=self.hparams["optimizer"]["lr"], fused=fused)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Plans the views of a training batch while it is on the CPU, where reading a size waits for nothing.

        Raises:
            TerraFMError: If the batch does not say where its tiles stand in the epoch, or holds one only.
        """
        if not self.trainer.training:
            return batch
        if "position" not in batch or int(batch["position"].min()) < 0:
            raise TerraFMError(
                "A training batch has no `position` (place of each tile in the epoch's list), on which its "
                "views depend: use a datamodule of terrafm_tg, or a LandCoverSampler with collate_tiles."
            )
        if len(batch["position"]) < 2:
            raise TerraFMError(
                "A batch of one tile cannot be centered: set `batch_size` to 2 or more (with `drop_last`)."
            )
        if not self._looked_at_size:
            self._looked_at_size = True
            if said := self.multicrop.enlarged(batch):
                rank_zero_warn(said)
        views = [count for count in self.multicrop.counts.values() if count]
        keys = self.hparams["seed"], batch["epoch"], batch["position"]
        planned = {"plan": self.multicrop.plan(batch), "depth": plan_depth(self.student.blocks, *keys, views)}
        if self.device.type == "cuda":  # from other memory a copy waits for the device
            planned = apply_to_collection(planned, Tensor, Tensor.pin_memory)
        return batch | planned

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a micro-batch.

        Args:
            batch: Native tiles with their plan.
            batch_idx: Its place in the epoch.
        """
        stage, size = self._stage, len(batch["position"])
        with stage("views"):
            views = self.multicrop(batch, batch["plan"])
        values = self.schedules.at(self.global_step)
        with stage("teacher"), torch.no_grad():
            compiled = self.hparams["compile"]
            embeddings = self.teacher.embed_views([views["teacher_global"]], compiled=compiled)
            logits = self.teacher_head(embeddings).unflatten(0, (-1, size))
            targets = self.center(logits)
            self.center.accumulate(logits, batch["land_cover"])
        with stage("student"):
            groups = [views[name] for name in ("student_global", "student_local") if views[name].size]
            tokens = self.student.embed_views(groups, batch["depth"], compiled)
            student = self.student_head(tokens).unflatten(0, (-1, size))
        with stage("loss"):
            loss = self.loss(student, targets, values.teacher_temp)
        self.log("train/loss", loss, prog_bar=True)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # of a connector
            self._log_step(loss, embeddings, targets, values, views)
        h, shown = self.hparams, groups[0].size
        if h["koleo"]:
            crops = tokens[:shown].float().unflatten(0, (-1, size))
            loss = loss + h["koleo"] * torch.stack([self.koleo(crop) for crop in crops]).mean()
        if h["dimensions"]:
            loss = loss - h["dimensions"] * participation_ratio(tokens[:shown], groups[0].sets).log()
        if h["contrast"]["weight"]:
            places = self.contrast(tokens.unflatten(0, (-1, size)), embeddings.unflatten(0, (-1, size)))
            self.log("train/contrast", places.detach())
            loss = loss + h["contrast"]["weight"] * places
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Freezes the prototypes in the first steps, and centers the stems' gradients."""
        self.stems.center_gradients_()
        self.student_head.freeze_last_layer = self.schedules.frozen
        self.student_head.cancel_last_layer_gradients(self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips each parameter tensor's gradient on its own, as ``optimizer.clip_grad`` says."""
        largest = self.hparams["optimizer"]["clip_grad"]
        if largest is not None:
            clip_each_(self.student.parameters(), largest)
            clip_each_(self.student_head.parameters(), largest)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step of the student, then one of the teacher and one of the centers."""
        from lightly.utils.optim import update_param_groups

        values = self.schedules.at(self.global_step)
        decay = {"name": DECAY, "weight_decay": values.weight_decay}
        # A scheduler is somebody else's, such as that of the Tuner or of SWA: the learning rate is left to it.
        rate = {} if self.trainer.lr_scheduler_configs else {"lr": values.lr}
        update_param_groups(optimizer, rate, [decay])
        with self.stems.stepping():
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with self._stage("average"):
            for teacher, student in self._pairs():
                ema_(teacher.parameters(), student.parameters(), values.teacher_momentum)
        with self._stage("reduction"):
            self.center.update()

    def on_train_start(self) -> None:
        """Makes the schedules; names what a resumed run changes in them, such as its length or batch."""
        self.schedules = make_schedules(self.hparams, self.trainer)
        present = plain(asdict(self.schedules))
        saved = self._saved_schedules or present
        changed = [f"{k} ({saved[k]} in the checkpoint, {present[k]} now)" for k in saved if saved[k] != present.get(k)]
        if changed:
            rank_zero_warn(f"This run's schedules are not the checkpoint's: {'; '.join(changed)}. The new ones hold.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the schedules; numbers the optimizer's parameters as FSDP does."""
        if hasattr(self, "schedules"):  # not before the first step
            checkpoint["schedules"] = plain(asdict(self.schedules))
        if checkpoint.get("optimizer_states") and not self._sharded:
            (state,), (optimizer,) = checkpoint["optimizer_states"], self.trainer.optimizers
            checkpoint["optimizer_states"] = [number_parameters(state, optimizer, self)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compares the checkpoint's settings with the present ones.

        Raises:
            TerraFMError: If the checkpoint is of another model, or a setting differs that must not.
        """
        # FSDP's strategy takes the weights out and has loaded them already.
        if not self._sharded and "center.centers" not in checkpoint.get("state_dict", {}):
            raise TerraFMError(
                "The checkpoint was not written by TerraFM's pretraining (it holds no centers): give one "
                "that `terrafm fit` wrote; encoders alone are loaded by `get_model(..., weights=path)`."
            )
        saved = {"statistics": None} | checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        fixed = [name for name in flatten(saved) if name in SHAPE_SETTINGS or name.startswith("statistics")]
        check_settings(saved, self.hparams, FREE_SETTINGS if fitting else set(flatten(saved)) - set(fixed))
        self._saved_schedules = checkpoint.get("schedules")

    def _pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """The teacher's modules, each with the student's."""
        return (self.teacher, self.student), (self.teacher_head, self.student_head)

    def _stage(self, name: str) -> AbstractContextManager[None]:
        """A stage of the step, as the Trainer's profiler counts it."""
        return self.trainer.profiler.profile(name)  # type: ignore[attr-defined]  # a connector sets it

    def _log_step(
        self, loss: Tensor, embeddings: Tensor, targets: Tensor, values: StepValues, views: dict[str, SensorBatch]
    ) -> None:
        """Logs what shows a run's health; only at the Trainer's logging steps."""
        entropy = teacher_entropy(targets, values.teacher_temp).mean()
        std, rank = embedding_statistics(embeddings, views["teacher_global"].sets)
        seen = {m: sum(len(g.images.get(m, ())) for g in views.values()) for m in self.sensors}
        total = sum(group.size for group in views.values())
        known = {f"use/{name}": count / total for name, count in seen.items()}
        known |= {f"schedule/{name}": value for name, value in values._asdict().items()}
        self.log_dict(
            {
                "train/teacher_entropy": entropy,
                "train/kl": loss.detach() - entropy,
                "train/embedding_std": std,
                "train/effective_rank": rank,
                # Filled on the device: Lightning would copy a number there, and wait for it.
                **{name: torch.full((), value, device=self.device) for name, value in known.items()},
            }
        )
