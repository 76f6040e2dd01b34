"""Which models of a plan can be had at all, before the first unit is done."""

import dataclasses
from collections.abc import Sequence

from terrafm_tg.datasets.bench import open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError, load_encoder

from .plan import Skipped
from .unit import Unit


def split_available(units: Sequence[Unit]) -> tuple[list[Unit], list[Skipped]]:
    """Load each model once; one that cannot be loaded is named once, and its units are left out.

    So weights are downloaded by one process, before others need them, and not tried for again with every unit.

    Args:
        units: Of a plan.

    Returns:
        The units of models that there are, and the other models.
    """
    models: dict[ModelSpec, dict[str, Unit]] = {}
    for unit in units:
        models.setdefault(_model(unit), {}).setdefault(unit.dataset, unit)
    missing = {model: reason for model, some in models.items() if (reason := _why_not(list(some.values())))}
    skipped = [Skipped("", reason, model.label, failed=True) for model, reason in missing.items()]
    return [unit for unit in units if _model(unit) not in missing], skipped


def _model(unit: Unit) -> ModelSpec:
    return dataclasses.replace(unit.spec, seed=0)


def _why_not(units: Sequence[Unit]) -> str:
    """Why a model cannot be loaded for the first dataset that it can read; empty where it can."""
    for unit in units:
        data = open_bench(unit.dataset, unit.root, "train", bands=unit.bands)
        try:
            load_encoder(unit.spec, data.task, data)
        except UnsupportedTaskError:
            continue
        except TerraFMError as error:
            return str(error)
        return ""
    return ""
