"""How the results came about: settings, versions, machines, times."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from .blocks import Cell, Table
from .entries import SETTINGS, UNIT, as_json, as_text

_SHOWN = 8


def run_tables(table: pd.DataFrame) -> Iterator[Table]:
    """Models and their settings, protocols and theirs, time per unit, machines and versions."""
    models = table.assign(size=table.pixels).drop_duplicates(["entry", *SETTINGS])
    groups = dict(iter(models.groupby("entry", sort=False)))
    told = [setting for setting in SETTINGS if models[setting].any()]
    yield Table(
        "Models",
        ["name", *told],
        [[Cell(entry), *(Cell(_values(group[c])) for c in told)] for entry, group in groups.items()],
        kind="words",
        note="Empty: the default; for weights, random ones.",
    )
    settings = [
        [Cell(str(protocol)), Cell(key), Cell(_values(values))]
        for protocol, group in table.groupby("protocol", sort=False)
        for key, values in _by_key(group.settings).items()
    ]
    if settings:
        yield Table("Protocols", ["protocol", "setting", "values"], settings, kind="words")
    units = table.drop_duplicates(UNIT)
    times = [
        [
            Cell(str(protocol)),
            Cell(str(entry)),
            Cell(str(len(group))),
            Cell(duration(group.seconds.median())),
            Cell(duration(group.seconds.max())),
            Cell(duration(group.seconds.sum())),
        ]
        for (protocol, entry), group in units.groupby(["protocol", "entry"], sort=False)
    ]
    yield Table("Time", ["protocol", "model", "units", "median", "longest", "together"], times, words=2)
    machine = [[Cell("machine"), Cell(_values(table.machine))]]
    versions = [[Cell(key), Cell(_values(values))] for key, values in _by_key(table.versions).items()]
    yield Table("Machine and versions", ["", "values"], machine + versions, kind="words")


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _values(values: Sequence[Any] | pd.Series) -> str:
    """Distinct values in their order, or how many there are."""
    known = list(dict.fromkeys(map(as_text, values)))
    if len(known) > _SHOWN:
        return f"{'; '.join(known[:_SHOWN])}; and {len(known) - _SHOWN} more"
    return "; ".join(known)


def _by_key(column: pd.Series) -> Mapping[str, list[Any]]:
    """The values of every key of a column of JSON objects."""
    values: dict[str, list[Any]] = {}
    for text in column.map(lambda value: value if isinstance(value, str) else repr(value)).unique():
        for key, value in (as_json(text) or {}).items():
            if not isinstance(value, dict):  # what every choice would have given is in the results table
                values.setdefault(str(key), []).append(
                    ", ".join(map(str, value)) if isinstance(value, list) else value
                )
    return values
