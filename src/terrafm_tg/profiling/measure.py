"""``terrafm profile``: train for some batches, and say what they cost."""

import math
import statistics
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress, TaskID

from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.settings import flatten
from terrafm_tg.transforms.multicrop import GLOBAL_CROPS
from terrafm_tg.utils.devices import describe_device

from .arithmetic import step_operations
from .machine import computing_dtype, peak_bytes, peak_teraflops
from .profile import Profile, Run, Stage
from .scaling import predict_step
from .stages import OTHER, STAGES, StageProfiler, finished_profiler

#: Settings that a profile names.
_SETTINGS = (
    *("model", "depth", "crops.global_size", "crops.local_size", "crops.local_crops", "head.prototypes"),
    *("drop_path", "grad_checkpointing", "compile"),
)


class Watch(Callback):
    """Counts the modalities of the views, and ends training after some batches: the schedules stay those of the run.

    Args:
        batches: How many.
        progress: Show a bar while they run.
    """

    def __init__(self, batches: int, progress: bool = False) -> None:
        self.left = batches
        self.views = self.modalities = 0
        # Rare refreshes: the thread that draws shares the interpreter with the step that is measured.
        self._bar = Progress(console=Console(stderr=True), transient=True, refresh_per_second=2, disable=not progress)
        self._bar.add_task("Profiling", total=batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the bar, on one process."""
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the bar away, for the message to come."""
        self._bar.stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts; waits for nothing."""
        self.left -= 1
        self._bar.advance(TaskID(0))
        trainer.should_stop = trainer.should_stop or self.left <= 0
        if not isinstance(pl_module, TerraFM):
            return
        plan, crop = batch["plan"], pl_module.multicrop
        self.views += plan["batch_size"] * (GLOBAL_CROPS + sum(crop.counts.values()))
        for kind in crop.counts:
            for name in pl_module.sensors:
                view_idx, student = plan[f"{kind}_{name}_view_idx"], plan[f"{kind}_{name}_student"]
                self.modalities += len(view_idx) - int(student) + int(plan[f"{kind}_{name}_teacher"])


def profile_training(
    model: LightningModule, datamodule: LightningDataModule, trainer: Trainer, processes: int | None = None
) -> Profile:
    """Trains and measures the steps after the warm-up.

    Args:
        model: The task.
        datamodule: What feeds it.
        trainer: With a :class:`~.stages.StageProfiler` and :class:`Watch`, and nothing that takes time besides
            training. Its ``max_epochs`` and ``max_steps`` are those of the whole run.
        processes: How many the whole run has; as many as are measured where None.

    Raises:
        TerraFMError: If no step was left to measure.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(model, datamodule=datamodule)
    profiler = finished_profiler(trainer)
    sizes = (getattr(source, "batch_size", None) for source in (trainer.train_dataloader, datamodule))
    batch = next((int(size) for size in sizes if size is not None), 1)
    device = trainer.strategy.root_device
    counted = _operations(model, trainer, profiler.operations and profiler.operations / batch)
    found = Profile(
        task=model.hparams.get("model", type(model).__name__),
        settings={name: value for name, value in flatten(model.hparams).items() if name in _SETTINGS},
        device=describe_device(device),
        processes=trainer.world_size,
        batch=batch,
        batches=profiler.timed,
        seconds=statistics.fmean(profiler.step_seconds),
        deviation=statistics.pstdev(profiler.step_seconds),
        stages=_stages(profiler, model, batch),
        peak=peak_teraflops(device, computing_dtype(str(trainer.precision), device)),
        precision=str(trainer.precision),
        waiting=profiler.waits / profiler.boundaries if device.type == "cuda" else None,
        memory=_memory(device),
        reduced=_reduced(model),
        accumulated=trainer.accumulate_grad_batches,
        graphs=profiler.graphs,
        recompiled=profiler.recompiled,
        versions={name: version(name) for name in ("torch", "lightning", "torchgeo", "timm", "terrafm-tg")},
        **counted,
    )
    return replace(found, run=_run(found, trainer, processes or found.processes))


def _operations(model: LightningModule, trainer: Trainer, by_torch: float | None) -> dict[str, Any]:
    """Returns the known operations per sample, by the names of the profile's fields."""
    if not isinstance(model, TerraFM):
        other = dict.fromkeys(("operations_as_written", "modalities", "modalities_met"))
        return other | {"operations": by_torch}
    counted = step_operations(model)
    watches = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, Watch)]
    return {
        "operations": counted.total,
        "operations_as_written": step_operations(model, as_written=True).total,
        "modalities": counted.modalities,
        "modalities_met": watches[0].modalities / watches[0].views if watches else None,
    }


def _stages(profiler: StageProfiler, model: LightningModule, batch: int) -> tuple[Stage, ...]:
    """In the order of a step."""
    counted = step_operations(model).stages() if isinstance(model, TerraFM) else {}
    total = sum(profiler.seconds.values())
    order = [*dict.fromkeys(STAGES.values()), OTHER]
    return tuple(
        Stage(name, seconds / profiler.timed, seconds / total, counted[name] * batch if name in counted else None)
        for name in sorted(profiler.seconds, key=order.index)
        for seconds in [profiler.seconds[name]]
    )


def _run(found: Profile, trainer: Trainer, processes: int) -> Run | None:
    """The whole configured run; None where nothing ends it, or an epoch's length is unknown."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    batches = trainer.num_training_batches * found.processes // processes
    steps = epochs * -(-batches // found.accumulated)
    steps = min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
    if not 0 < steps < math.inf:
        return None
    alone = processes == found.processes
    efficiency = 1.0 if alone else predict_step(found, processes).efficiency
    hours = steps * found.accumulated * found.seconds / efficiency / 3600
    samples = steps * found.accumulated * found.batch * processes
    return Run(int(samples), int(steps), processes, efficiency, hours)


def _reduced(model: LightningModule) -> dict[str, int]:
    """Bytes of the gradients and of the centers' sums and counts."""
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    centers = 4 * 2 * (model.hparams["head"]["prototypes"] + 1) if isinstance(model, TerraFM) else 0
    return {"gradients": gradients, "centers": centers}


def _memory(device: torch.device) -> dict[str, int]:
    memory = {"host": peak_bytes()}
    return memory | ({"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})
