"""``terrafm profile``: a configuration's training step, its memory, and what is left of its speed on many GPUs."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console

from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.memory import memory_table
from terrafm_tg.profiling.scaling import scaling_table
from terrafm_tg.profiling.stages import StageProfiler
from terrafm_tg.profiling.step import StopAfter, profile_table, profile_training

from .fit import TerraFMCLI, prepare
from .main import SENTENCES
from .options import read_options
from .trainer import in_a_sentence

#: The number of processes, by what starts them.
_LAUNCHERS = ("WORLD_SIZE", "SLURM_NTASKS")


class ProfileCLI(TerraFMCLI):
    """Reads a configuration as ``terrafm fit`` does, and trains a few batches of it with nothing beside.

    The Trainer's ``max_epochs`` and ``max_steps`` stay those of the configured run, whose time is estimated. A
    configuration of more processes than fit here is measured in one, by itself: without FSDP, with its memory.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the profile's own options."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--steps", type=int, default=10, help="Batches to measure.")
        parser.add_argument("--warmup", type=int, default=3, help="Batches before them that do not count.")
        parser.add_argument("--json", type=Path | None, default=None, help="File for the numbers.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes a Trainer for some batches and nothing beside them.

        Raises:
            TerraFMError: If a number is not positive, or there is no GPU where one is asked for.
        """
        trainer, steps, warmup = self.config["trainer"], self.config["steps"], self.config["warmup"]
        if steps < 1 or warmup < 1:
            raise TerraFMError(
                f"`--steps {steps} --warmup {warmup}` measures nothing: give at least one batch of each."
            )
        accumulated = trainer["accumulate_grad_batches"]
        warmup, steps = (-(-n // accumulated) * accumulated for n in (warmup, steps))  # whole optimizer steps
        rank_zero_info(f"Measuring {steps} batches after {warmup} to warm up")
        self.processes = _processes(trainer)
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": []} if self.processes else {}
        return super().instantiate_trainer(
            **kwargs,
            **alone,
            min_epochs=None,
            min_steps=None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[StopAfter(warmup + steps)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            profiler=StageProfiler(warmup),
        )

    def profile(self) -> None:
        """Measures the configuration, prints the table, and writes the numbers where that is asked for."""
        path = self.config["json"]
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)  # or says now that it cannot
        with in_a_sentence(MisconfigurationException, unless=self._run_start):
            found = profile_training(self.model, self.datamodule, self.trainer, self.processes)
        if self.trainer.is_global_zero:
            Console().print(profile_table(found))
            if path:
                found.write(path)
                print(path)


def _processes(trainer: Any) -> int | None:
    """Returns the processes of the configuration; None where these are here."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    on_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    here = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    launched = any(int(os.environ.get(name, 1)) > 1 for name in _LAUNCHERS)
    if launched or not str(devices).isdigit() or nodes * int(devices) <= here:
        return None
    return nodes * int(devices)


def run(command: str, words: Sequence[str]) -> None:
    """Profiles a configuration's step, its memory, or its scaling."""
    if command == "profile":
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")
        about = {"prog": "terrafm profile", "description": SENTENCES[command]}
        ProfileCLI(args=prepare(words), run=False, parser_kwargs=about, save_config_callback=None).profile()
        return
    table = memory_table if command == "profile memory" else scaling_table
    Console().print(table(**read_options(command, words, table)))
