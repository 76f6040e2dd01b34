"""``terrafm fit``, ``validate``, ``test``, ``predict`` and ``profile``: LightningCLI with TerraFM's defaults."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from torchgeo.datamodules import BaseDataModule, NonGeoDataModule
from torchgeo.tasks import BaseTask

from terrafm_tg.callbacks import ProgressLines
from terrafm_tg.datamodules import TileDataModule

from .trainer_settings import demand_gpus, setting_up_in_a_sentence

# Imported classes can be named in a configuration by class name alone: TorchGeo's by the imports above, and ours.
for _package in ("tasks", "datamodules", "callbacks"):
    import_module(f"terrafm_tg.{_package}")


class PredictTestSplit(Callback):
    """Predicts the test split where a datamodule has no other samples to predict, as most of TorchGeo's have not."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens the test split."""
        data = getattr(trainer, "datamodule", None)
        if (
            stage == "predict"
            and isinstance(data, NonGeoDataModule)
            and not (data.predict_dataset or data.dataset)
        ):
            data.setup("test")
            data.predict_dataset = data.test_dataset


class TerraFMCLI(LightningCLI):
    """LightningCLI for any TorchGeo task and datamodule; ``TerraFM`` unless the configuration names another.

    Three defaults differ from Lightning's: checkpoints appear whole or not at all (`AtomicCheckpointIO`), settings on
    the command line are never replaced by those of ``--ckpt_path``: the task names each one that differs, and
    ``predict`` takes the test split where a datamodule has nothing else.
    """

    def __init__(self, **kwargs: Any) -> None:
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
        """A parser that raises what is wrong with the options, for the command to print without a page of usage."""
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults: whole checkpoints, samplers that know their rank."""
        parser.set_defaults(
            {
                "trainer.use_distributed_sampler": None,
                "trainer.plugins": [{"class_path": "terrafm_tg.callbacks.AtomicCheckpointIO"}],
            }
        )

    def before_instantiate_classes(self) -> None:
        """Lets Lightning split the data over the processes, unless a datamodule of ours does so by its sampler."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config["trainer"]["use_distributed_sampler"] is None:
            data = config.get("data")
            ours = data is not None and issubclass(resolve_name(data["class_path"]), TileDataModule)
            config["trainer"]["use_distributed_sampler"] = not ours

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer on devices that are here.

        Raises:
            TerraFMError: If there are no or too few GPUs where these are asked for.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        demand_gpus({**config["trainer"], **kwargs})
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Shows progress as lines where nobody sees a bar, and draws a bar less often where there is a GPU."""
        show_as_lines(self.trainer)
        if self.trainer.strategy.root_device.type != "cpu":
            draw_at_logging_steps(self.trainer)

    def before_validate(self) -> None:
        """Shows progress as lines where nobody sees a bar."""
        show_as_lines(self.trainer)

    before_test = before_validate

    def before_predict(self) -> None:
        """The same; and gives ``predict`` samples where TorchGeo's datamodule defines none."""
        show_as_lines(self.trainer)
        self.trainer.callbacks.append(PredictTestSplit())

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given; `TerraFM.on_load_checkpoint` names every setting that differs."""


def show_as_lines(trainer: Trainer) -> None:
    """Has lines printed in place of a progress bar, which draws nothing, where the output is no terminal.

    Args:
        trainer: Before its run.
    """
    bar, console = trainer.progress_bar_callback, Console()
    if isinstance(bar, RichProgressBar) and not (console.is_terminal or console.is_jupyter):
        trainer.callbacks[trainer.callbacks.index(bar)] = ProgressLines()


def draw_at_logging_steps(trainer: Trainer) -> None:
    """Has a progress bar that is drawn in every step drawn at the logging steps only: to show a loss is to wait for it.

    Args:
        trainer: Before its fit.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar | RichProgressBar) and bar.refresh_rate == 1:
        trainer.callbacks[trainer.callbacks.index(bar)] = type(bar)(refresh_rate=trainer.log_every_n_steps)


def with_model(words: Sequence[str]) -> list[str]:
    """The command with TerraFM as its model where neither an option nor a configuration names one.

    A default of the parser would do the same, but jsonargparse hands the settings of a default class on to the class
    that replaces it: TorchGeo's tasks would start with TerraFM's learning rate.

    Args:
        words: The command and its options.
    """
    named = any(word.split("=")[0] in ("--model", "--model.class_path") for word in words)
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [path for word, path in pairwise(words) if word in ("--config", "-c")]
    for path in map(Path, files):
        try:
            config = yaml.safe_load(path.read_text()) if path.is_file() else None
        except yaml.YAMLError:  # the parser says what is wrong with it
            continue
        model = config.get("model") if isinstance(config, dict) else None
        named |= isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)
    return list(words) if named else [words[0], "--model=terrafm_tg.tasks.TerraFM", *words[1:]]


def run_trainer(words: Sequence[str]) -> None:
    """Run one of the trainer's commands or ``profile``.

    Args:
        words: The command and its options.
    """
    # Advice on what the configuration has chosen already, and notes between Lightning, torch and this command itself.
    for message in ("does not have many workers", "GPU available but not used", "LightningCLI's args parameter is",
                    "isinstance.treespec, LeafSpec", "is not supported by the model summary"):  # fmt: skip
        warnings.filterwarnings("ignore", f".*{message}.*")
    words = with_model(words)
    with setting_up_in_a_sentence():
        if words[0] == "profile":
            from .profile import run_profile

            run_profile(words[1:])
        else:
            TerraFMCLI(args=words, parser_kwargs={"prog": "terrafm"})
