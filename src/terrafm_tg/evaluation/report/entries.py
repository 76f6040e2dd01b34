"""Which rows of the results belong to one entry of the report, and what it is called."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.evaluation.protocols import PROTOCOLS, get_protocol

#: What a score is of.
CELL = ["benchmark", "dataset", "protocol", "train_fraction", "metric", "average"]
#: Settings of a model, and how a value is said.
SETTINGS: dict[str, Callable[[str], str]] = {
    "model": str,
    "weights": lambda value: value or "random weights",
    "stem": lambda value: f"stem {value}" if value else "default stem",
    "sensors": lambda value: value.replace(",", " and ") or "all sensors",
    "pooling": lambda value: {"token": "class token", "mean": "mean of patches"}.get(value, value),
    "size": lambda value: {"": "default size", "0": "stored size"}.get(value, f"{value} px"),
    "normalization": lambda value: f"{value} statistics",
    "bands": lambda value: {"labelled": "bands as labelled"}.get(value, f"bands {value}"),
}
#: Values that go without saying where another entry says its own.
_USUAL = {
    "stem": "",
    "sensors": "",
    "pooling": "token",
    "size": "",
    "normalization": "model",
    "bands": "corrected",
}
_LARGEST_PATCH = 32  # pixels: a stored size is rounded up to whole patches
#: One run of one entry.
UNIT = ["entry", "benchmark", "dataset", "protocol", "train_fraction", "seed"]
_REQUIRED = [*CELL, "name", *SETTINGS, "seed", "score"]
_OPTIONAL = {
    "headline": True, "n_train": 0, "n_test": 0, "seconds": 0.0, "settings": "{}", "per_class": None,
    "confusion": None, "versions": "{}", "machine": "", "published": False,
}  # fmt: skip


def as_text(value: Any) -> str:
    """A setting as it may lie in Parquet or CSV: None, NaN, a number, a list of names, a string."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return value
    return "+".join(map(str, value)) if hasattr(value, "__len__") else str(value)


def as_json(value: Any) -> Any:
    """A column that holds JSON, or already what JSON stands for; None where it is empty."""
    if isinstance(value, str):
        return json.loads(value) if value else None
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if isinstance(value, float) else value


def entries(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of models that were run, with the column ``entry``.

    Sizes become relative to the dataset (empty for its usual one, "0" for the stored one; as pixels they are in the
    column ``pixels``), and ``sensors`` empty where all are read (by name in ``read``). An entry is a model with its
    settings; its name says of these only what tells it from another entry of that name. Where protocols of one name
    were run with several settings, these tell entries apart, too. A score that occurs twice for one seed counts once.

    Args:
        results: The tidy table of ``terrafm bench``; an empty one may lack columns.

    Raises:
        TerraFMError: If a column is missing.
    """
    if results.empty:
        return pd.DataFrame(columns=[*_REQUIRED, *_OPTIONAL, "entry"])
    if missing := [column for column in _REQUIRED if column not in results]:
        raise TerraFMError(
            f"The results table has no column {', '.join(missing)}: give the table that `terrafm bench` writes."
        )
    absent = {column: value for column, value in _OPTIONAL.items() if column not in results}
    table = results.assign(**absent)
    table = table[~table.published.astype(bool) & table.score.notna()]
    table = table.assign(
        **{column: table[column].map(as_text) for column in SETTINGS},
        pixels=table["size"].map(as_text),
        read=table["sensors"].map(as_text),
        train_fraction=table.train_fraction.astype(float).round(4),
        entry=table["name"].map(as_text),
    ).reset_index(drop=True)
    table["size"] = [_relative_size(*row) for row in zip(table.dataset, table["size"], strict=True)]
    table["sensors"] = [_some_sensors(*row) for row in zip(table.dataset, table.sensors, strict=True)]
    cell = [*CELL, "name"]
    for column, words in SETTINGS.items():
        _tell_apart(table, cell, table[column], words, _USUAL.get(column))
    twice = table[table.duplicated([*CELL, "entry", "seed"], keep=False)]
    for protocol, rows in twice.groupby("protocol"):
        settings = pd.DataFrame([as_json(text) or {} for text in rows.settings], index=rows.index)
        for key in settings.columns.intersection(settings_of(str(protocol))):
            values = settings[key].map(as_text).reindex(table.index, fill_value="")
            _tell_apart(table, [*cell, "seed"], values, partial("{} {}".format, key), "")
    return table.drop_duplicates([*CELL, "entry", "seed"], keep="last").reset_index(drop=True)


def _tell_apart(
    table: pd.DataFrame, within: list[str], values: pd.Series, words: Callable[[str], str], usual: str | None
) -> None:
    """Adds a setting to the entries of every name that has several values of it for one score; none for the usual."""
    several = table.assign(value=values).groupby(within, dropna=False).value.transform("nunique") > 1
    rows = table["name"].isin(table["name"][several].unique()) & (values != usual)
    table.loc[rows, "entry"] += ", " + values[rows].map(words)


def settings_of(protocol: str) -> list[str]:
    """Settings of a protocol and those of a model that have no column, as opposed to what was chosen on the way."""
    own = dataclasses.fields(get_protocol(protocol)) if protocol in PROTOCOLS else ()
    return [field.name for field in (*dataclasses.fields(ModelSpec), *own)]


def _relative_size(dataset: str, size: str) -> str:
    task = TASKS.get(dataset)
    if task is None or not size.isdigit() or int(size) == task.input_size:
        return "" if task is not None else size
    return "0" if 0 <= int(size) - task.size < _LARGEST_PATCH else size


def _some_sensors(dataset: str, sensors: str) -> str:
    every = dataset in TASKS and set(sensors.split(",")) == set(TASKS[dataset].sensors)
    return "" if every else sensors
