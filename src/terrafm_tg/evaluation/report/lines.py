"""From the table of results to one row per model and score: mean over seeds, interval, published counterparts."""

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
from terrafm_tg.evaluation.scores import estimate
from terrafm_tg.tasks.finetune.metrics import PER_BATCH, TRUE

from .published import PROTOCOL_NAMES, TITLES, counterparts, highest, published_scores

#: Columns that tell scores apart.
CELL = ["benchmark", "dataset", "protocol", "train_fraction", "metric", "average"]
#: Columns that tell runs of one entry apart.
RUN = ["entry", "benchmark", "dataset", "protocol", "train_fraction", "seed"]
#: Settings of a model, and their values in words.
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
#: Values that an entry's name leaves out.
_USUAL = {"stem": "", "sensors": "", "pooling": "token", "size": "", "normalization": "model", "bands": "corrected"}
_REQUIRED = [*CELL, "name", *SETTINGS, "seed", "score"]
_OPTIONAL = {
    "headline": True, "n_train": 0, "n_test": 0, "seconds": 0.0, "settings": "{}", "per_class": None,
    "confusion": None, "versions": "{}", "machine": "", "published": False,
}  # fmt: skip
_LARGEST_PATCH = 32  # pixels: a stored size is rounded up to whole patches


def entries(results: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of models that were run, with the column ``entry``.

    Sizes become relative to the dataset (empty for its usual one, "0" for the stored one; as pixels they are in the
    column ``pixels``), and ``sensors`` empty if all are read (by name in ``read``). An entry is a model with its
    settings; its name says of these only what tells it from another entry of that name. If protocols of one name
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
    table = results.assign(**{key: value for key, value in _OPTIONAL.items() if key not in results})
    table = table[~table.published.astype(bool) & table.score.notna()]
    table = table.assign(
        **{column: table[column].map(as_text) for column in SETTINGS},
        pixels=table["size"].map(as_text),
        read=table["sensors"].map(as_text),
        train_fraction=table.train_fraction.astype(float).round(4),
        entry=table["name"].map(as_text),
    ).reset_index(drop=True)
    table["size"] = [_relative_size(*row) for row in zip(table.dataset, table["size"], strict=True)]
    every = {name: set(task.sensors) for name, task in TASKS.items()}
    table["sensors"] = [
        "" if set(sensors.split(",")) == every.get(dataset) else sensors
        for dataset, sensors in zip(table.dataset, table.sensors, strict=True)
    ]
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
    """Adds a setting to the entries of each name that has several values of it for one score; not the usual one."""
    several = table.assign(value=values).groupby(within, dropna=False).value.transform("nunique") > 1
    rows = table["name"].isin(table["name"][several].unique()) & (values != usual)
    table.loc[rows, "entry"] += ", " + values[rows].map(words)


def _relative_size(dataset: str, size: str) -> str:
    task = TASKS.get(dataset)
    if task is None or not size.isdigit() or int(size) == task.input_size:
        return "" if task is not None else size
    return "0" if 0 <= int(size) - task.size < _LARGEST_PATCH else size


def score_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per score and entry, over all seeds, in the order of a report.

    Columns besides those of the results: ``scores`` (by seed, in percent) and the ``estimate`` of their mean;
    ``published``, the published scores of the same benchmark, dataset, protocol, train fraction and metric, and
    ``reference``, the one of the same method and backbone, if any; ``comparable``, whether the test split has as many
    samples as the published one; ``leads``, for the headline metric, averaged as published scores are, or else as it
    was recorded.

    Args:
        table: From :func:`entries`.
    """
    if table.empty:
        return pd.DataFrame()
    published = published_scores()
    lines = []
    for _, rows in table.groupby([*CELL, "entry"], sort=False):
        line = rows.iloc[0].to_dict()
        protocol = PROTOCOL_NAMES.get(line["protocol"], line["protocol"])
        place = (line["benchmark"], protocol, line["train_fraction"], line["dataset"], line["metric"])
        theirs = [score for score in published if score[:5] == place]
        task = TASKS.get(line["dataset"])
        is_share = task is not None and task.kind == "multiclass" and line["metric"] in ("accuracy", "oa")
        trials = int(line["n_test"]) if is_share and line["average"] == TRUE else None
        lines.append(
            line
            | {
                "headline": bool(rows.headline.any()),
                "scores": dict(zip(rows.seed.astype(int), rows.score.astype(float), strict=True)),
                "estimate": estimate(rows.score.to_list(), trials),
                "published": theirs,
                "reference": highest(counterparts(theirs, line["model"], line["weights"] or None)),
                "comparable": task is None or line["n_test"] == task.counts[2],
            }
        )
    known = {
        "benchmark": [task.benchmark for task in TASKS.values()],
        "protocol": TITLES,
        "dataset": TASKS,
        "entry": (),
    }
    order = {key: list(dict.fromkeys([*names, *table[key]])) for key, names in known.items()}
    found = pd.DataFrame(lines).sort_values(
        ["benchmark", "protocol", "dataset", "train_fraction", "headline", "metric", "average", "entry"],
        ascending=[True, True, True, True, False, True, True, True],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
        ignore_index=True,
    )
    usual = found.average == found.protocol.map(average_of)
    has_usual = usual.groupby([found[key] for key in ("dataset", "protocol", "train_fraction", "metric", "entry")])
    heads = found.groupby(["dataset", "protocol", "metric"]).headline.transform("any")
    return found.assign(leads=heads & (usual | ~has_usual.transform("any")))


def average_of(protocol: str) -> str:
    """Returns the average that published scores of a protocol are."""
    return PER_BATCH if protocol == "copernicus-frozen" else TRUE


def settings_of(protocol: str) -> list[str]:
    """Names the settings that a protocol and a model are given, as opposed to those chosen during the run."""
    own = dataclasses.fields(get_protocol(protocol)) if protocol in PROTOCOLS else ()
    return [field.name for field in (*dataclasses.fields(ModelSpec), *own)]


def as_text(value: Any) -> str:
    """Returns a setting as text, however Parquet or CSV gave it: None, NaN, a number, a list of names, a string."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(as_text, value)) if hasattr(value, "__len__") and not isinstance(value, str) else str(value)


def as_json(value: Any) -> Any:
    """Returns the content of a column that holds JSON, or already its content; None for an empty one."""
    if isinstance(value, str):
        return json.loads(value) if value else None
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if isinstance(value, float) else value
