"""Any Earth-observation encoder, ours or another's, reading any benchmark dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .encoder import BenchEncoder
from .spec import ModelSpec, UnsupportedTaskError

if TYPE_CHECKING:
    from terrafm_tg.datasets.bench import BenchDataset, BenchTask

__all__ = ["BenchEncoder", "ModelSpec", "UnsupportedTaskError", "load_encoder"]


def load_encoder(spec: ModelSpec, task: BenchTask, data: BenchDataset) -> BenchEncoder:
    """Loads the model that ``spec`` names, ready to read batches of ``task``.

    Args:
        spec: Model and settings.
        task: As the dataset states it (its ``task``, which follows ``bands=``).
        data: Whose band statistics count for sensors that the model was not trained on.

    Returns:
        The encoder on the CPU, in ``eval()``.

    Raises:
        UnsupportedTaskError: If the model cannot read the task's sensors.
        TerraFMError: If the model, its weights or a setting is wrong.
    """
    from .models import load

    return load(spec, task, data)
