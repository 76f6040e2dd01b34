"""Says early, in words, that a run has collapsed or met NaN."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked

#: Shares of ln K above which the teacher is uniform, and below which it knows one prototype only.
_MAX_ENTROPY, _MIN_ENTROPY = 0.999, 0.001
#: Divergence of student from teacher, in nats, below which the student has learnt all there is.
_MIN_KL = 0.002
#: Standard deviation of the normalized embeddings below which they are one point, effective rank of a line.
_MIN_STD, _MIN_RANK = 0.02, 1.05
#: Share of the directions of the run's beginning below which dimensions are being lost.
_KEPT = 1 / 3
#: The symptom that is only said, since a run goes on learning with it.
_LOSS = "dimensions"


@checked(every_n_steps=COUNT, grace_steps=NOT_NEGATIVE, patience=COUNT)
class CollapseMonitor(Callback):
    """Looks at what the task logs, and says when training has become pointless.

    - The loss is NaN or infinite: stops at once, and no checkpoint is written over a good one.
    - The teacher is uniform over the K prototypes and the student has learnt that: the loss sits at ln K.
    - The teacher's entropy is 0: every view gets one prototype, whatever it shows.
    - The embeddings are one point, or lie on one line, even where the loss falls.
    - The embeddings vary in less than a third of the directions of the beginning of the run (effective rank within
      each set of sensors). The run goes on learning, but of less and less; this is said, and stops nothing.

    A healthy run begins near all but the first, and may leave ln K slowly; so they are judged after a grace
    period, by margins within which no healthy run was seen, and only where they hold at several looks in a
    row. Looking waits for the GPU and for all ranks, and is done every `every_n_steps`.

    Args:
        every_n_steps: Optimizer steps between two looks.
        grace_steps: Steps before collapse is judged; by default 1000, at most a fifth of the run.
        patience: Looks in a row at which a symptom must show.
        action: What collapse does: ``warn``, or ``stop`` with an error.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        grace_steps: int | None = None,
        patience: int = 3,
        action: Literal["stop", "warn"] = "warn",
    ) -> None:
        self.every_n_steps = every_n_steps
        self.grace_steps = grace_steps
        self.patience = patience
        self.action = action
        self._looks: dict[str, int] = {}
        self._last_look = 0
        self._beginning: float | None = None  # directions at the first logging step

    def state_dict(self) -> dict[str, Any]:
        """The directions at the beginning, with which a resumed run goes on comparing."""
        return {"beginning": self._beginning}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self._beginning = state_dict["beginning"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks, every so many optimizer steps.

        Raises:
            TerraFMError: If the run met NaN; if it has collapsed and `action` is ``stop``.
        """
        step = trainer.global_step
        if self._beginning is None and "train/effective_rank" in trainer.callback_metrics:
            self._beginning = _metrics(trainer)["train/effective_rank"]
        if step % self.every_n_steps or step == self._last_look:
            return
        self._last_look = step
        found = self.symptoms(_metrics(trainer), pl_module.hparams["head"]["prototypes"])
        if step < self._grace(trainer):
            found = {name: text for name, text in found.items() if name == "nan"}
        self._looks = {name: self._looks.get(name, 0) + 1 for name in found}
        for name, text in found.items():
            stops = self.action == "stop" and name != _LOSS
            if name == "nan" or (stops and self._looks[name] == self.patience):
                raise TerraFMError(f"At step {step} {text}.")
            if self._looks[name] == self.patience:
                rank_zero_warn(f"At step {step} {text}.")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps a run that met NaN from replacing its last good checkpoint.

        Raises:
            TerraFMError: If the last loss is NaN, whatever `action` is.
        """
        found = self.symptoms(_metrics(trainer), pl_module.hparams["head"]["prototypes"])
        if "nan" in found:
            raise TerraFMError(f"At step {trainer.global_step} {found['nan']}; no checkpoint was written.")

    def symptoms(self, metrics: Mapping[str, float], prototypes: int) -> dict[str, str]:
        """Returns the symptoms in words, with the remedy.

        Args:
            metrics: The last values of ``train/loss``, ``train/teacher_entropy``, ``train/kl``,
                ``train/embedding_std`` and ``train/effective_rank``, as far as they were logged.
            prototypes: Number of prototypes K.

        Returns:
            The symptom's name -> the end of a sentence; empty where all is well.
        """
        uniform = math.log(prototypes)
        loss = metrics.get("train/loss", 0.0)
        if not math.isfinite(loss):
            return {
                "nan": f"the loss is {loss}: resume from the last checkpoint with a lower `optimizer.lr` or a longer "
                "`schedule.warmup_epochs`, and with `precision: bf16-mixed` where it was 16-mixed"
            }
        found = {}
        entropy = metrics.get("train/teacher_entropy", 0.5 * uniform)
        if entropy > _MAX_ENTROPY * uniform and metrics.get("train/kl", math.inf) < _MIN_KL:
            found["uniform"] = (
                f"the loss sits at ln K = {uniform:.2f} and the teacher is uniform over the prototypes, so "
                "nothing is being learnt: lower `schedule.teacher_temp`, or "
                "change `optimizer.lr` and `schedule.teacher_momentum`"
            )
        if entropy < _MIN_ENTROPY * uniform:
            found["one prototype"] = (
                "the teacher gives every view the same prototype (its entropy is 0): raise "
                "`schedule.teacher_temp`, or lower `optimizer.lr` and `center.momentum`"
            )
        if metrics.get("train/embedding_std", 1.0) < _MIN_STD:
            found["point"] = (
                "the embeddings of all tiles have become one point, even where the loss falls: lower "
                "`optimizer.lr`, raise `schedule.teacher_momentum`, or use a larger batch"
            )
        elif metrics.get("train/effective_rank", math.inf) < _MIN_RANK:
            found["line"] = "the embeddings of all tiles lie on one line: lower `optimizer.lr`, or use a larger batch"
        elif metrics.get("train/effective_rank", math.inf) < _KEPT * (self._beginning or 0.0):
            found[_LOSS] = (
                f"the embeddings of all tiles vary in {metrics['train/effective_rank']:.1f} directions, of "
                f"{self._beginning:.1f} at the beginning: dimensions are being lost. Use a larger batch, a lower "
                "`optimizer.lr`, or what conf/small_scale.yaml sets (`contrast.weight`, `whiten_stems`)"
            )
        return found

    def _grace(self, trainer: Trainer) -> int:
        if self.grace_steps is not None:
            return self.grace_steps
        return min(1000, int(trainer.estimated_stepping_batches) // 5)


def _metrics(trainer: Trainer) -> dict[str, float]:
    """The values that the task logged last, averaged over the ranks, so that all of them decide alike."""
    logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
    if not logged:
        return {}
    mean = trainer.strategy.reduce(torch.stack([v.float() for v in logged.values()]), reduce_op="mean")
    return dict(zip(logged, mean.tolist(), strict=True))
