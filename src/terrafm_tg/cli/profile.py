"""``terrafm profile``: some batches of any configuration, and what its whole run would take."""

import logging
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.measure import Watch, profile_training
from terrafm_tg.profiling.outputs import demand_files
from terrafm_tg.profiling.report import profile_table, write_figure
from terrafm_tg.profiling.stages import HostClock, StageProfiler
from terrafm_tg.tasks import TerraFM

from .fit import TerraFMCLI

_PROCESSOR_TIME = (
    "Count processor time: less disturbed by other programs, and blind to waiting, as for the loader."
)
#: The number of processes, by what starts them.
_LAUNCHERS = ("WORLD_SIZE", "SLURM_NTASKS")
_log = logging.getLogger(__name__)


class ProfileCLI(TerraFMCLI):
    """Reads a configuration as ``terrafm fit`` does, and trains a few batches of it with nothing beside.

    The Trainer's ``max_epochs`` and ``max_steps`` stay those of the configured run, whose time is estimated. A
    configuration of more GPUs than are here is measured on one of them.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the profile's own options."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--steps", type=int, default=10, help="Batches to measure.")
        parser.add_argument("--warmup", type=int, default=3, help="Batches before them that do not count.")
        parser.add_argument("--processor_time", type=bool, default=False, help=_PROCESSOR_TIME)
        parser.add_argument("--json", type=Path | None, default=None, help="File for the numbers.")
        parser.add_argument(
            "--figure", type=Path | None, default=None, help="File for a picture, such as x.png."
        )

    def before_instantiate_classes(self) -> None:
        """Sees to it that what is measured can be written.

        Raises:
            TerraFMError: If it cannot.
        """
        super().before_instantiate_classes()
        demand_files(self.config["json"], self.config["figure"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer for some batches and nothing beside them.

        Raises:
            TerraFMError: If a number is not positive, or there is no GPU where one is asked for.
        """
        trainer, steps, warmup = self.config["trainer"], self.config["steps"], self.config["warmup"]
        if steps < 1 or warmup < 1:
            raise TerraFMError(
                f"`--steps {steps} --warmup {warmup}` measures nothing: give at least one batch of each."
            )
        accumulated = trainer["accumulate_grad_batches"]
        warmup, steps = (-(-n // accumulated) * accumulated for n in (warmup, steps))  # whole optimiser steps
        ours = isinstance(self.model, TerraFM)
        clock = HostClock(process_time) if self.config["processor_time"] else None
        alone, self.processes = _one_of_many(trainer)
        return super().instantiate_trainer(
            **kwargs,
            **alone,
            min_epochs=None,
            min_steps=None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[Watch(warmup + steps, progress=True)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            profiler=StageProfiler(warmup, count=not ours, clock=clock),
        )


def run_profile(words: Sequence[str]) -> None:
    """Profile a configuration and print the table.

    Args:
        words: Options of the command.
    """
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")
    parser = {"prog": "terrafm profile", "description": "Measure where a training step's time goes."}
    cli = ProfileCLI(args=list(words), run=False, parser_kwargs=parser, save_config_callback=None)
    found = profile_training(cli.model, cli.datamodule, cli.trainer, cli.processes)
    if not cli.trainer.is_global_zero:
        return
    Console().print(profile_table(found))
    paths: dict[str, Path | None] = {name: cli.config[name] for name in ("json", "figure")}
    if paths["json"]:
        found.write(paths["json"])
    if paths["figure"]:
        write_figure(found, paths["figure"])
    for path in filter(None, paths.values()):
        print(path)


def _one_of_many(trainer: Any) -> tuple[dict[str, Any], int | None]:
    """Settings of a Trainer on one device, and the processes of the configuration, where these are not here."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    processes = nodes * int(devices) if str(devices).isdigit() else None
    on_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    here = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    launched = any(int(os.environ.get(name, 1)) > 1 for name in _LAUNCHERS)
    if processes is None or launched or processes <= here:
        return {}, None
    strategy = str(getattr(trainer["strategy"], "class_path", trainer["strategy"])).rpartition(".")[2]
    if strategy != "auto" and "ddp" not in strategy.lower():
        _warn_of(strategy)
    return {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": []}, processes


@cache
def _warn_of(strategy: str) -> None:
    """Says once which strategy is left out."""
    _log.warning(
        "One process is measured without `%s`, with its memory, and what is predicted of many is DDP's traffic: FSDP "
        "holds less on each GPU, and sends more.",
        strategy,
    )
