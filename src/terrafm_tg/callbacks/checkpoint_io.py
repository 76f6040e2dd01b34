"""Checkpoints that are written atomically."""

import pickle
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.tensor_files import load_archive, save_archive


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
            TerraFMError: If the disk is full, or gives another error.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
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
            if "://" in str(path):
                checkpoint = super().load_checkpoint(path, map_location, weights_only is not False)
            else:
                checkpoint = load_archive(path, map_location, weights_only is not False)
        except FileNotFoundError as error:
            raise TerraFMError(f"There is no checkpoint at {path}: correct `ckpt_path`.") from error
        except IsADirectoryError as error:
            raise TerraFMError(
                f"{path} is a folder, and checkpoints are single files: give one of them, or put the shares of a "
                "distributed checkpoint that you trust together first "
                "(python -m lightning.pytorch.utilities.consolidate_checkpoint)."
            ) from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
            raise TerraFMError(f"The checkpoint {path} cannot be read ({error}): use another.") from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise TerraFMError(f"{path} is not a checkpoint of Lightning (it has no `state_dict`): use another.")
        return checkpoint
