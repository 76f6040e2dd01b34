"""Checkpoints that are written atomically, by one run per folder, and verified when they are read."""

import fcntl
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.tensor_files import load_archive, save_archive, verify_archive


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its path, flushes it to the disk and renames it.

    Lightning's own plugin writes to the temp directory and moves it, and where that is another filesystem the
    path shows a file that still grows. A run that is killed while it writes leaves the checkpoint before, and
    a ``.<name>.<...>.tmp`` that the next one removes.

    Example:
        >>> Trainer(plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Saves; a URL (``s3://``) is left to Lightning, since object stores show whole files only.

        Raises:
            TerraFMError: If the disk is full or gives another error, or another run writes into the folder.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        claim(path.parent)
        try:
            with atomic_write(path, sole_writer=True) as part:
                save_archive(checkpoint, part)
        except (OSError, RuntimeError) as error:
            # Torch's writer meets the system's error, and at its end finds its file too short, which it raises.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise TerraFMError(
                f"The checkpoint {path} cannot be written ({cause.strerror}): make room on the disk of {path.parent}, "
                "or save elsewhere; the checkpoint before it is whole."
            ) from error

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads, without running code from the file unless ``weights_only`` is False.

        Raises:
            TerraFMError: If there is no such file, or it is no checkpoint.
        """
        try:
            if "://" not in str(path):
                check_is_file(path)
            load = super().load_checkpoint if "://" in str(path) else load_archive
            checkpoint = load(path, map_location, weights_only is not False)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
            raise TerraFMError(f"The checkpoint {path} cannot be read ({error}): use another.") from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise TerraFMError(f"{path} is not a checkpoint of Lightning (it has no `state_dict`): use another.")
        return checkpoint


class VerifiedCheckpoints(LightningModule):
    """Base of tasks whose checkpoints are safe in any Trainer, without a plugin named."""

    def setup(self, stage: str) -> None:
        """Takes the place of Lightning's own plugin, but of no other, and checks what sharded strategies read.

        Raises:
            TerraFMError: If the strategy's checkpoints would not be read again.
        """
        super().setup(stage)
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = AtomicCheckpointIO()
        if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            if stage == "fit":
                check_writes_files(strategy)
            if "load_checkpoint" not in vars(strategy):  # they read past the plugin
                vars(strategy)["load_checkpoint"] = _checked(strategy.load_checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads as Lightning does, once the file is verified.

        Raises:
            TerraFMError: If it is damaged, or no checkpoint.
        """
        if isinstance(checkpoint_path, str | os.PathLike) and "://" not in str(checkpoint_path):
            check_is_file(checkpoint_path)
            verify_archive(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def check_writes_files(strategy: Strategy) -> None:
    """Refuses a strategy whose checkpoints are folders, before a run writes one.

    Raises:
        TerraFMError: Naming it.
    """
    folders = getattr(strategy, "_save_distributed_checkpoint", False)
    folders |= getattr(strategy, "_state_dict_type", "full") != "full"
    if folders or isinstance(strategy, DeepSpeedStrategy):
        raise TerraFMError(
            f"The strategy {type(strategy).__name__} writes checkpoints as folders, which are not read again, because "
            "their metadata could run code: use conf/hardware/fsdp.yaml, DDP, or whole files "
            '(`save_distributed_checkpoint=False` of ModelParallelStrategy, `state_dict_type="full"` of FSDPStrategy).'
        )


def check_tensors(path: str | os.PathLike[str]) -> None:
    """Refuses a checkpoint that is damaged, a folder, or more than tensors and plain values.

    Raises:
        TerraFMError: Naming it.
    """
    check_is_file(path)
    load_archive(path, "meta")  # takes no memory


def _checked(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def load_checkpoint(checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        check_tensors(checkpoint_path)
        return load(checkpoint_path, weights_only)

    return load_checkpoint


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Refuses a path that is no file, and a folder, whose metadata would be unpickled.

    Raises:
        TerraFMError: Naming it.
    """
    if Path(path).is_dir():
        raise TerraFMError(
            f"{path} is a folder, and checkpoints are single files: give one of them, or put the shares of a "
            "distributed checkpoint that you trust together first "
            "(python -m lightning.pytorch.utilities.consolidate_checkpoint)."
        )
    if not Path(path).is_file():
        raise TerraFMError(f"There is no checkpoint {path}: correct `ckpt_path`.")


_claimed: dict[Path, int] = {}
_PATIENCE = 15.0  # seconds in which the loaders of a killed run end, which hold its folder


def claim(folder: Path) -> None:
    """Keeps a folder of checkpoints for this process until it ends, by a lock of the system on the folder itself.

    Raises:
        TerraFMError: If another process has it.
    """
    if (folder := folder.resolve()) in _claimed:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, patience = os.open(folder, os.O_RDONLY), time.monotonic() + _PATIENCE
    while folder not in _claimed:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _claimed[folder] = descriptor
        except BlockingIOError as error:
            if time.monotonic() < patience:
                time.sleep(0.2)
                continue
            os.close(descriptor)
            raise TerraFMError(
                f"Another run writes its checkpoints into {folder}: wait for its end, or give this one a folder of its "
                "own (`trainer.default_root_dir`, or `dirpath` of ModelCheckpoint)."
            ) from error
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
