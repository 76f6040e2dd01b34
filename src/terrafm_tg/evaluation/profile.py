"""``terrafm profile``: samples per second, and where the time of a training step goes."""

import resource
from time import perf_counter

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from rich.table import Table

#: What each action that Lightning or the task profiles belongs to; the first part that its name contains decides.
STAGES = {
    "train_dataloader_next": "loader",
    "on_before_batch_transfer": "view plan",
    "batch_to_device": "transfer",
    "on_after_batch_transfer": "transfer",
    "views": "views",
    "teacher": "teacher",
    "student": "student",
    "loss": "loss",
    "backward": "backward",
    "average": "teacher average, centres",
    "optimizer_step": "clipping, optimiser",
}
#: Trainer options of a profiling run: some steps, and nothing beside them.
OPTIONS = {
    "max_epochs": "1000",
    "limit_val_batches": "0",
    "num_sanity_val_steps": "0",
    "logger": "false",
    "callbacks": "null",
    "enable_checkpointing": "false",
    "enable_progress_bar": "false",
    "enable_model_summary": "false",
    "profiler.class_path": "terrafm_tg.evaluation.profile.StageProfiler",
}


class StageProfiler(Profiler):
    """Shares out the wall time of training steps among stages, without overlap and without rest.

    An action's time without that of the actions inside it goes to its stage; where its name belongs to none, to the
    stage around it, and at the outermost to "other". On a GPU each boundary waits for the device, so that stages are
    true and their sum is a little slower than a step that nobody watches.

    Args:
        warmup: Steps left out: the first ones wait for workers, caches and kernels.
    """

    def __init__(self, warmup: int = 3) -> None:
        super().__init__()
        self.warmup = warmup
        self.steps = 0
        self.seconds: dict[str, float] = {}
        self._stack = ["other"]
        self._since = perf_counter()

    def start(self, action_name: str) -> None:
        """Book the time so far, and enter an action."""
        self._book()
        if action_name == "run_training_batch":
            self.steps += 1
        stage = next((stage for part, stage in STAGES.items() if part in action_name), self._stack[-1])
        self._stack.append(stage)

    def stop(self, action_name: str) -> None:
        """Book the time so far, and leave the action."""
        self._book()
        self._stack.pop()
        if action_name == "run_training_batch" and self.steps == self.warmup:
            self.seconds.clear()

    def _book(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = perf_counter()
        self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    @property
    def timed(self) -> int:
        """Steps that count."""
        return self.steps - self.warmup


def profile_step(model: LightningModule, datamodule: LightningDataModule, trainer: Trainer) -> Table:
    """Train for the Trainer's ``max_steps`` and print the share of each stage.

    Args:
        model: The task.
        datamodule: What feeds it.
        trainer: A Trainer with the options of `OPTIONS`.

    Returns:
        The table that was printed: stage, milliseconds per step, share.
    """
    trainer.fit(model, datamodule=datamodule)
    profiler: StageProfiler = trainer.profiler
    total = sum(profiler.seconds.values())
    batch = datamodule.batch_size * trainer.world_size
    table = Table(title=f"{profiler.timed} steps of {batch} tiles on {_device(trainer)}")
    table.add_column("stage")
    table.add_column("ms/step", justify="right")
    table.add_column("share", justify="right")
    order = [*dict.fromkeys(STAGES.values()), "other"]
    for stage in sorted(profiler.seconds, key=order.index):
        seconds = profiler.seconds[stage]
        table.add_row(stage, f"{1000 * seconds / profiler.timed:.1f}", f"{seconds / total:.1%}")
    table.add_section()
    table.add_row("step", f"{1000 * total / profiler.timed:.1f}", "100.0%")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    table.caption = (
        f"{profiler.timed * batch / total:.1f} samples/s; peak memory of the main process {memory:.2f} GiB"
    )
    if torch.cuda.is_available():
        table.caption += f", of the GPU {torch.cuda.max_memory_allocated() / 1024**3:.2f} GiB"
    Console().print(table)
    return table


def _device(trainer: Trainer) -> str:
    if trainer.strategy.root_device.type == "cuda":
        return torch.cuda.get_device_name(trainer.strategy.root_device)
    return f"the CPU, {torch.get_num_threads()} threads"
