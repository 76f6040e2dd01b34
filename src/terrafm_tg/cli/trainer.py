"""Settings of the Trainer that cannot be followed here, the device's precision, and a run's first words."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.step import describe_duration
from terrafm_tg.utils.devices import has_bf16_units

_GPUS = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
#: Batches after which a pace is known, or a few that took some seconds, and seconds of a run from which it is told.
_MANY, _FEW, _ENOUGH, _LONG = 20, 5, 10.0, 120.0


def check_gpus(settings: Mapping[str, Any]) -> None:
    """Checks that the GPUs that are asked for are here.

    Args:
        settings: Of the Trainer: ``accelerator`` and ``devices``, the latter per machine.

    Raises:
        TerraFMError: If there is none, or there are fewer.
    """
    accelerator, devices = settings["accelerator"], str(settings["devices"])
    if not isinstance(accelerator, str) or accelerator not in _GPUS:
        return
    here = sum(kind.auto_device_count() for kind in _GPUS[accelerator] if kind.is_available())
    if not here:
        raise TerraFMError(
            f"`trainer.accelerator` is {accelerator!r} and there is no GPU here: add `--config conf/hardware/cpu.yaml` "
            "as the last one, or `--trainer.accelerator cpu --trainer.devices 1`, to use the processor."
        )
    # A process of torchrun may see one GPU of several.
    if devices.isdigit() and int(devices) > here and not TorchElasticEnvironment.detect():
        raise TerraFMError(
            f"`trainer.devices` is {devices} and this machine has {here} GPU{'s' * (here > 1)}: add "
            f"`--trainer.devices {here}`."
        )


def precision_of(settings: Mapping[str, Any]) -> str:
    """Returns the precision for the device of a Trainer: bf16 where it has units for it, else float32.

    Args:
        settings: Of the Trainer: ``accelerator``.
    """
    on_gpu = settings["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return "bf16-mixed" if has_bf16_units(torch.device("cuda" if on_gpu else "cpu")) else "32-true"


class RunStart(Callback):
    """Says how large a run is when it starts, and knows whether it has: what is refused before is a matter of settings.

    Attributes:
        begun: Whether training has begun, or the first batch of another command has come.
    """

    def __init__(self) -> None:
        self.begun = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the number of parameters."""
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        trained = sum(size for size, own in sizes if own)
        rank_zero_info(f"{trained:,} of {sum(size for size, _ in sizes):,} parameters are trained")

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        """Takes note of it."""
        self.begun = True

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_start


class RunLength(Callback):
    """Says how long a long run takes: roughly after the second batch, and once more when the pace is known.

    The first batch, which builds and fills everything, does not count; those after it are still slower than most.
    """

    def __init__(self) -> None:
        self._batches = 0
        self._start = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Takes the time, and prints what is known."""
        if self._batches > _MANY:
            return
        now, batches = time.monotonic(), self._batches
        self._batches += 1
        if batches == 0:
            self._start = now
            return
        known = batches >= _MANY or (batches >= _FEW and now - self._start >= _ENOUGH)
        total = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        seconds = (now - self._start) / batches
        if (known or batches == 1) and _LONG < seconds * total < math.inf:
            length = describe_duration(seconds * total / 3600)
            how = (
                f"measured on {batches} of them"
                if known
                else "by the second one, which cold caches slow: said again soon"
            )
            rank_zero_info(f"At {seconds:.2g} s per batch, the {total:,.0f} batches of this run take {length} ({how})")
        if known:
            self._batches = _MANY + 1


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Returns the callbacks, which Lightning's Trainer does not declare, to be added to.

    Args:
        trainer: Before its run.
    """
    return vars(trainer)["callbacks"]


@contextmanager
def in_a_sentence(*kinds: type[Exception], unless: RunStart | None = None) -> Iterator[None]:
    """Turns what Lightning says of settings into a `TerraFMError`.

    Args:
        kinds: Of errors.
        unless: Leaves the error as it is where a run has started.

    Raises:
        TerraFMError: If Lightning refuses a setting, task or datamodule.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, TerraFMError) or (unless is not None and unless.begun):
            raise
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        raise TerraFMError(
            f"Lightning refuses this run ({reason}): correct what it names, or take the model, data or command that it "
            "asks for; `trainer.accelerator`, `trainer.devices`, `trainer.strategy` and `trainer.precision` must fit "
            "each other and this machine."
        ) from error


#: Errors with which Lightning's Trainer refuses its settings while it is made.
IN_TRAINER = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)
