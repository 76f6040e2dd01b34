"""``terrafm profile``: train for some batches, and say what they cost."""

import math
import statistics
from dataclasses import replace
from importlib.metadata import version

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.table import Table

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.devices import describe_device

from .machine import computing_dtype, peak_bytes, peak_teraflops
from .profile import Profile
from .scaling import predict_step
from .stages import StageProfiler

#: Stages that bring data to the device.
_FEEDING = ("loader", "view plan", "transfer")


class StopAfter(Callback):
    """Ends training after some batches, while the schedules stay those of the run.

    Args:
        batches: How many.
    """

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, trainer: Trainer, *args: object, **kwargs: object) -> None:
        """Counts; waits for nothing."""
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left <= 0


def profile_training(
    model: LightningModule, datamodule: LightningDataModule, trainer: Trainer, processes: int | None = None
) -> Profile:
    """Trains and measures the steps after the warm-up.

    Args:
        model: The task.
        datamodule: What feeds it.
        trainer: With a :class:`~.stages.StageProfiler` and :class:`StopAfter`, and nothing that takes time besides
            training. Its ``max_epochs`` and ``max_steps`` are those of the whole run.
        processes: How many the whole run has; as many as are measured where None.

    Raises:
        TerraFMError: If the Trainer has another profiler, or no step was left to measure.
    """
    profiler = getattr(trainer, "profiler", None)
    if not isinstance(profiler, StageProfiler):
        raise TerraFMError(f"The Trainer's profiler is {profiler}: give it a StageProfiler.")
    trainer.fit(model, datamodule=datamodule)
    stages, seconds = profiler.times()
    sizes = (getattr(source, "batch_size", None) for source in (trainer.train_dataloader, datamodule))
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    memory = {"host": peak_bytes()} | ({"device": torch.cuda.max_memory_allocated(device)} if on_gpu else {})
    found = Profile(
        task=model.hparams.get("model", type(model).__name__),
        device=describe_device(device),
        precision=str(trainer.precision),
        processes=trainer.world_size,
        batch=next((int(size) for size in sizes if size is not None), 1),
        accumulated=trainer.accumulate_grad_batches,
        batches=len(seconds),
        seconds=statistics.fmean(seconds),
        deviation=statistics.pstdev(seconds),
        stages=stages,
        operations=profiler.operations,
        peak=peak_teraflops(device, computing_dtype(str(trainer.precision), device)),
        waiting=profiler.waits / profiler.boundaries if on_gpu else None,
        memory=memory,
        gradients=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        run=None,
        versions={name: version(name) for name in ("torch", "lightning", "torchgeo", "timm", "terrafm-tg")},
    )
    return replace(found, run=_whole_run(found, trainer, processes or found.processes))


def _whole_run(found: Profile, trainer: Trainer, processes: int) -> dict[str, float] | None:
    """Length and cost of the configured run; None where nothing ends it, or an epoch's length is unknown."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    batches = trainer.num_training_batches * found.processes // processes
    steps = epochs * -(-batches // found.accumulated)
    steps = min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
    if not 0 < steps < math.inf:
        return None
    efficiency = 1.0 if processes == found.processes else predict_step(found, processes).efficiency
    hours = steps * found.accumulated * found.seconds / efficiency / 3600
    return {
        "samples": int(steps * found.accumulated * found.batch * processes),
        "steps": int(steps),
        "processes": processes,
        "efficiency": efficiency,
        "hours": hours,
        "device_hours": hours * processes,
    }


def profile_table(profile: Profile) -> Table:
    """Stages with time, share and rate; below them what the step reaches, what bounds it, and the whole run."""
    table = Table(
        title=f"{profile.task}: {profile.batches} batches of {profile.batch} tiles on {profile.processes} "
        f"process{'es' * (profile.processes > 1)}, {profile.precision}\n{profile.device}",
        caption="\n".join(in_words(profile)),
        caption_justify="left",
    )
    table.add_column("stage")
    unit, factor = ("GFLOP/s", 1e9) if profile.peak < 1 else ("TFLOP/s", 1e12)
    for name in ("ms/batch", "share", unit, "of the peak"):
        table.add_column(name, justify="right")
    for stage, seconds in (profile.stages | {"batch": profile.seconds}).items():
        operations = profile.operations.get(stage, 0) if stage != "batch" else sum(profile.operations.values())
        rate = operations / seconds if seconds else 0.0
        rates = (f"{rate / factor:.0f}", f"{rate / profile.peak / 1e12:.0%}") if operations else ("", "")
        table.add_section() if stage == "batch" else None
        table.add_row(stage, f"{1000 * seconds:.1f}", f"{seconds / profile.seconds:.1%}", *rates)
    return table


def in_words(profile: Profile) -> list[str]:
    """Sums up the numbers, a sentence each."""
    speed, memory = profile.samples_per_second, profile.memory
    on_gpu = f", {memory['device'] / 2**30:.2f} GiB of tensors on the GPU" if "device" in memory else ""
    lines = [
        f"{speed:,.{1 if speed >= 10 else 3}f} samples/s, {profile.teraflops:.3g} TFLOP/s: {profile.mfu:.0%} of a "
        f"matrix product in the same run ({profile.peak:.3g} TFLOP/s).",
        f"{sum(profile.operations.values()) / profile.batch / 1e12:.3g} TFLOP per sample, as torch counts a step.",
        f"Peak memory: {memory['host'] / 2**30:.2f} GiB of the main process{on_gpu}.",
        f"Bound by: {bound(profile)}",
    ]
    if run := profile.run:
        predicted = "" if run["efficiency"] == 1 else f" at a predicted efficiency of {run['efficiency']:.1%}"
        lines.append(
            f"The whole configured run: {run['samples'] / 1e6:,.4g} million samples in {run['steps']:,} optimizer "
            f"steps on {run['processes']} process{'es' * (run['processes'] > 1)}{predicted}: "
            f"{describe_duration(run['hours'])}, {run['device_hours']:,.1f} "
            f"{'process' if profile.device.startswith('CPU') else 'GPU'}-hours, without validation."
        )
    return lines


def describe_duration(hours: float) -> str:
    """Returns minutes, hours or days, whichever reads best."""
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"


def bound(profile: Profile) -> str:
    """One sentence: what has to become faster for the step to become faster.

    A stage's matrix products take at least their operations divided by the measured rate; what a stage takes beyond
    that is memory traffic, small kernels and products of unfavorable shapes.
    """
    feeding = {name: seconds for name, seconds in profile.stages.items() if name in _FEEDING}
    if (share := sum(feeding.values()) / profile.seconds) > 0.1:
        worst = max(feeding, key=feeding.__getitem__)
        return (
            f"The supply of data: {share:.0%} of the step, most of it the {worst}. More workers, a packed store or "
            "`cache` help."
        )
    if profile.waiting is not None and profile.waiting > 0.5:
        return (
            f"The host: at {profile.waiting:.0%} of the stages' boundaries the GPU had nothing left to do. A larger "
            "batch or `compile` helps."
        )
    if profile.mfu >= 0.5:
        return f"Matrix products: at the measured rate they alone take {profile.mfu:.0%} of the step."
    beyond = sorted(((profile.beyond_products(name) / profile.seconds, name) for name in profile.stages), reverse=True)
    around = " and ".join(f"{name} ({share:.0%} of the step)" for share, name in beyond[:2])
    return (
        f"What surrounds the matrix products (memory traffic, small kernels, thin shapes): at the measured rate the "
        f"products take {profile.mfu:.0%} of the step; most beyond them is in {around}."
    )
