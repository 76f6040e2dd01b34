"""Settings of the Trainer that this machine or Lightning cannot follow, in a sentence."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from terrafm_tg.errors import TerraFMError

_GPUS = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
#: Functions in which nothing but settings of the Trainer is at work: its constructor, and the start of its strategy.
_SET_UP = {"instantiate_trainer", "setup_environment"}


def demand_gpus(settings: Mapping[str, Any]) -> None:
    """Sees to it that the GPUs that are asked for are here.

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
    # What torchrun starts may see one GPU of several.
    if devices.isdigit() and int(devices) > here and not TorchElasticEnvironment.detect():
        raise TerraFMError(
            f"`trainer.devices` is {devices} and this machine has {here} GPU{'s' * (here > 1)}: add "
            f"`--trainer.devices {here}`."
        )


@contextmanager
def setting_up_in_a_sentence() -> Iterator[None]:
    """Turns what Lightning says of settings into a `TerraFMError`, and leaves what a task's methods raise as it is.

    Raises:
        TerraFMError: If the Trainer, its strategy or its precision cannot be set up, or Lightning refuses a setting,
            task or datamodule later.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        called = {frame.f_code.co_name for frame in frames}
        set_up = called & _SET_UP
        in_a_task = any(name.startswith("on_") or name.endswith("_step") for name in called)
        by_lightning = str(frames[-1].f_globals.get("__name__")).startswith("lightning.")
        if isinstance(error, TerraFMError) or not (set_up or (by_lightning and not in_a_task)):
            raise
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        fix = "correct the setting, or take the model, data or command that it asks for"
        if set_up:
            fix = (
                "correct what it names; `trainer.accelerator`, `trainer.devices`, `trainer.strategy` and "
                "`trainer.precision` must fit each other and this machine"
            )
        raise TerraFMError(f"Lightning refuses this run ({reason}): {fix}.") from error
