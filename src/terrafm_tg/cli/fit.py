"""``terrafm fit``, ``validate``, ``test`` and ``predict``: LightningCLI with TerraFM's defaults."""

import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from datetime import timedelta
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console
from torchgeo.datamodules import BaseDataModule, NonGeoDataModule
from torchgeo.tasks import BaseTask

from terrafm_tg.callbacks import ProgressLines, RunSummary, SafeStop
from terrafm_tg.datamodules import MajorTOMDataModule, TileDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.registration import register
from terrafm_tg.tasks.checkpoint_io import check_is_file

from .options import find_configs, refuse
from .trainer import IN_TRAINER, RunLength, RunStart, callbacks_of, check_gpus, in_a_sentence, precision_of

# Imported classes can be named in a configuration by class name alone: TorchGeo's by the imports above, and ours.
for _package in ("tasks", "datamodules", "callbacks"):
    import_module(f"terrafm_tg.{_package}")

#: Where data comes from, for those who named none.
_DATA = (
    "add `--config conf/data/simulated.yaml` for a simulated world that needs no download, fetch a part of Major-TOM "
    "with `terrafm download data/major_tom --share 0.001`, or take your own folder of GeoTIFFs with `--config "
    "conf/data/folder.yaml --data.root FOLDER`"
)


class PredictTestSplit(Callback):
    """Predicts the test split where a datamodule has no other samples to predict, as most of TorchGeo's have not."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the test split."""
        data = getattr(trainer, "datamodule", None)
        if stage == "predict" and isinstance(data, NonGeoDataModule) and not (data.predict_dataset or data.dataset):
            data.setup("test")
            data.predict_dataset = data.test_dataset


class TerraFMCLI(LightningCLI):
    """LightningCLI for any TorchGeo task and datamodule.

    Four defaults differ from Lightning's: checkpoints are written atomically (`AtomicCheckpointIO`); without a
    precision, the device decides; settings on the command line are never replaced by those of ``--ckpt_path``, the task
    names each one that differs; and ``predict`` takes the test split where a datamodule has nothing else.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._run_start = RunStart()
        super().__init__(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Keep `hyper_parameters` plain: what the task's __init__ received, readable with weights_only=True.
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            **kwargs,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes a parser that raises what is wrong with the options, for the command to print in short."""
        parser = super().init_parser(exit_on_error=False, **kwargs)
        config = next(action for action in parser._actions if "--config" in action.option_strings)
        config.help = "Name of a packaged configuration, or a path; repeat to stack."
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sets the defaults: atomic checkpoints, samplers that know their rank."""
        parser.set_defaults(
            {
                "trainer.use_distributed_sampler": None,
                "trainer.plugins": [{"class_path": "terrafm_tg.callbacks.AtomicCheckpointIO"}],
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the options.

        Raises:
            ArgumentError: In a sentence, with the nearest name, if an option is unknown.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            word = str(args[0]) if isinstance(args, list) and args else ""
            command = word if word in self.subcommands() else ""
            own = self._subcommand_parsers[command] if command else parser
            _refuse_class_option(error, command or "profile")
            refuse(error, [name for action in own._actions for name in action.option_strings])

    def _set_seed(self) -> None:
        with in_a_sentence(ValueError):
            super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Completes the Trainer's settings by what the machine and the data are, and looks for what is to be read.

        Raises:
            TerraFMError: If there is no such checkpoint or data.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        data, trainer = config.get("data"), config["trainer"]
        kind = None if data is None else resolve_name(data["class_path"])
        if trainer["use_distributed_sampler"] is None:  # a datamodule of ours splits by its sampler
            trainer["use_distributed_sampler"] = kind is None or not issubclass(kind, TileDataModule)
        checkpoint = str(config.get("ckpt_path"))
        known = checkpoint in ("None", "best", "last", "hpc", "registry") or re.match(r"\w+:", checkpoint)
        if not known:
            check_is_file(checkpoint)
        root = str(data["init_args"]["root"]) if kind is MajorTOMDataModule else ""
        if "://" not in root and not Path(root).exists():
            raise TerraFMError(f"There is no folder {root} with Major-TOM: {_DATA}.")

    def instantiate_classes(self) -> None:
        """Makes datamodule, task and Trainer.

        Raises:
            TerraFMError: If Lightning refuses the settings of one.
        """
        with in_a_sentence(MisconfigurationException):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes a Trainer on devices that are here.

        Raises:
            TerraFMError: If there are no or too few GPUs where these are asked for, or settings do not fit each other.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        settings = config["trainer"].as_dict() | kwargs
        check_gpus(settings)
        if settings["accumulate_grad_batches"] < 1:
            raise TerraFMError("`trainer.accumulate_grad_batches` is below 1: give the batches of an optimizer step.")
        if settings["precision"] is None:
            kwargs["precision"] = config["trainer"]["precision"] = precision_of(settings)
            rank_zero_info(f"Precision {kwargs['precision']}, which suits this device (`--trainer.precision` sets it)")
        with in_a_sentence(*IN_TRAINER):
            trainer = super().instantiate_trainer(**kwargs)
        callbacks = callbacks_of(trainer)
        # Lightning's table counts operations too, mostly 0; RunStart says what it says.
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, ModelSummary)]
        callbacks.append(self._run_start)
        if not any(isinstance(callback, SafeStop) for callback in callbacks):
            callbacks.append(SafeStop())
        if isinstance(settings["strategy"], str) and hasattr(trainer.strategy, "_timeout"):
            trainer.strategy._timeout = timedelta(minutes=10)  # as in the configurations of a strategy
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with in_a_sentence(MisconfigurationException, unless=self._run_start):
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Shows progress as it suits the output and the device; ends with a summary."""
        show_progress(self.trainer)
        callbacks = callbacks_of(self.trainer)
        callbacks.append(RunLength())
        if not any(isinstance(callback, RunSummary) for callback in callbacks):
            callbacks.append(RunSummary())

    def before_validate(self) -> None:
        """Shows progress as it suits the output and the device."""
        show_progress(self.trainer)

    before_test = before_validate

    def before_predict(self) -> None:
        """Does the same, and gives ``predict`` samples where TorchGeo's datamodule defines none."""
        show_progress(self.trainer)
        callbacks_of(self.trainer).append(PredictTestSplit())

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration as it was given; `TerraFM.on_load_checkpoint` names every setting that differs."""


def _refuse_class_option(error: ArgumentError, command: str) -> None:
    """Raises what is missing, or the nearest option of a class, where an unknown one was given for it."""
    text = str(error)
    if re.search(
        r"required: .*model$|BaseTask is abstract|subclass of BaseTask\n.*Given value: \{'init_args'", text, re.DOTALL
    ):
        raise ArgumentError(
            None, f"There is no `model`: start with `--config pretrain`, or name one. For data {_DATA}."
        )
    if re.search(r"required: .*data$", text):
        raise ArgumentError(None, f"There is no `data` to run on: {_DATA}.")
    found = re.search(
        r"""Parser key "([\w.]+)".*class_path '([\w.]+)':\s+(?:Option '|unrecognized arguments: --)([\w.]+)""",
        text,
        re.DOTALL,
    )
    if found is None:
        return
    key, name, option = found.groups()
    key = key.removeprefix(f"{command}.")
    options = ArgumentParser()
    options.add_class_arguments(resolve_name(name), fail_untyped=False)
    known = list(options.get_defaults().keys())
    # Options of a group are found by their last word, too.
    own = {other.rpartition(".")[2]: other for other in known} | {other: other for other in known}
    near = get_close_matches(option, own, n=1) or get_close_matches(option.rpartition(".")[2], own, n=1)
    advice = f" (did you mean `--{key}.{own[near[0]]}`?)" if near else ""
    raise ArgumentError(
        None,
        f"`--{key}.{option}`: option {option!r} is not accepted by {name}{advice}; "
        f"`terrafm {command} --{key}.help={name}` lists those that are.",
    )


def show_progress(trainer: Trainer) -> None:
    """Replaces a progress bar by lines where the output is no terminal, or by one that a GPU need not wait for.

    To show a loss in each step is to wait for it; such a bar is drawn at the logging steps instead.

    Args:
        trainer: Before its run.
    """
    bar, console, callbacks = trainer.progress_bar_callback, Console(), callbacks_of(trainer)
    if isinstance(bar, RichProgressBar) and not (console.is_terminal or console.is_jupyter):
        callbacks[callbacks.index(bar)] = ProgressLines()
    elif (
        isinstance(bar, TQDMProgressBar | RichProgressBar)
        and bar.refresh_rate == 1
        and trainer.strategy.root_device.type != "cpu"
    ):
        callbacks[callbacks.index(bar)] = type(bar)(refresh_rate=vars(trainer)["log_every_n_steps"])


def prepare(words: Sequence[str]) -> list[str]:
    """Silences what is no news to a user of the command, and returns its options, complete.

    Args:
        words: Options of the command.
    """
    # Advice on what the configuration has chosen already, and notes between Lightning, torch and this command itself.
    for message in ("does not have many workers", "GPU available but not used", "LightningCLI's args parameter is",
                    "isinstance.treespec, LeafSpec", "is not supported by the model summary"):  # fmt: skip
        warnings.filterwarnings("ignore", f".*{message}.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_advertisement)
    register()  # names for TorchGeo's tasks, which the command had not imported until now
    sys.path.append(os.getcwd())  # for classes of the user's own
    return find_configs(words)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available: False"))


def run(command: str, words: Sequence[str]) -> None:
    """Runs one of the trainer's commands.

    Args:
        command: Such as ``fit``.
        words: Its options.
    """
    TerraFMCLI(args=[command, *prepare(words)], parser_kwargs={"prog": "terrafm"})
