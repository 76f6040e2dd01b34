"""``terrafm profile``: a configuration's training step, its memory, and what is left of its speed on many GPUs."""

import logging
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.measure import Watch, profile_training
from terrafm_tg.profiling.memory import memory_table
from terrafm_tg.profiling.profile import read_profile
from terrafm_tg.profiling.report import check_writable, profile_table, write_figure
from terrafm_tg.profiling.scaling import scaling_table
from terrafm_tg.profiling.stages import HostClock, StageProfiler
from terrafm_tg.tasks import TerraFM

from .fit import TerraFMCLI, prepare
from .main import SENTENCES
from .options import ToolParser
from .trainer import in_a_sentence

_PROCESSOR_TIME = "Count processor time: less disturbed by other programs, and blind to waiting, as for the loader."
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
        parser.add_argument("--figure", type=Path | None, default=None, help="File for a picture, such as x.png.")

    def before_instantiate_classes(self) -> None:
        """Sees to it that what is measured can be written.

        Raises:
            TerraFMError: If it cannot.
        """
        super().before_instantiate_classes()
        check_writable(self.config["json"], self.config["figure"])

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
            profiler=StageProfiler(warmup, count=not isinstance(self.model, TerraFM), clock=clock),
        )

    def profile(self) -> None:
        """Measures the configuration, prints the table, and writes the files that are asked for."""
        with in_a_sentence(MisconfigurationException, unless=self._run_start):
            found = profile_training(self.model, self.datamodule, self.trainer, self.processes)
        if not self.trainer.is_global_zero:
            return
        Console().print(profile_table(found))
        if self.config["json"]:
            found.write(self.config["json"])
        if self.config["figure"]:
            write_figure(found, self.config["figure"])
        for path in filter(None, (self.config["json"], self.config["figure"])):
            print(path)


def run(command: str, words: Sequence[str]) -> None:
    """Profiles a configuration's step, its memory, or its scaling."""
    if command == "profile":
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")
        about = {"prog": "terrafm profile", "description": SENTENCES[command]}
        ProfileCLI(args=prepare(words), run=False, parser_kwargs=about, save_config_callback=None).profile()
        return
    parser = ToolParser(command)
    if command == "profile memory":
        parser.add_function(memory_table)
        table = memory_table(**parser.parse(words))
    else:
        parser.add_option("result", Path, ..., "JSON of `terrafm profile ... --json RESULT`, of one process.")
        parser.add_function(scaling_table, skip={"profile"})
        options = parser.parse(words)
        table = scaling_table(read_profile(options.pop("result")), **options)
    Console().print(table)


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
