"""How the results came about: settings, versions, machines, times."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from .blocks import Cell, Table
from .entries import SETTINGS, UNIT, as_json, as_text, settings_of
from .notes import TITLES
from .summary import groups

_SHOWN = 8


def run_tables(table: pd.DataFrame) -> Iterator[Table]:
    """Models and their settings, protocols and theirs, time per unit, machines and versions."""
    models = table.assign(size=table.pixels, sensors=table.read).drop_duplicates(["entry", *SETTINGS])
    by_entry = dict(iter(models.groupby("entry", sort=False)))
    told = [setting for setting in SETTINGS if models[setting].any()]
    yield Table(
        "Models",
        ["name", *told],
        [[Cell(entry), *(Cell(_values(group[c])) for c in told)] for entry, group in by_entry.items()],
        kind="words",
        note="Empty: the default; for weights, random ones.",
    )
    protocols = groups(_by_rank(table), lambda row: row.protocol)
    settings = [
        [Cell(protocol), *(Cell("; ".join(found)) for found in _settings(protocol, rows))]
        for protocol, rows in protocols.items()
    ]
    if any(cell.text for row in settings for cell in row[1:]):
        yield Table("Protocols", ["protocol", "settings", "chosen on the way"], settings, kind="words")
    units = table.drop_duplicates(UNIT)
    times = []
    for (protocol, entry), rows in groups(_by_rank(units), lambda row: (row.protocol, row.entry)).items():
        seconds = [row.seconds for row in rows]
        measures = map(duration, (median(seconds), max(seconds), sum(seconds)))
        times.append([Cell(protocol), Cell(entry), Cell(str(len(rows))), *map(Cell, measures)])
    yield Table("Time", ["protocol", "model", "units", "median", "longest", "together"], times, words=2)
    machine = [[Cell("machine"), Cell(_values(table.machine))]]
    versions = [[Cell(key), Cell(_values(values))] for key, values in _by_key(table.versions).items()]
    yield Table("Machine and versions", ["what", "values"], machine + versions, kind="words")


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _by_rank(table: pd.DataFrame) -> list[Any]:
    """Rows by protocol, in the order of the report."""
    rank = {protocol: i for i, protocol in enumerate(dict.fromkeys([*TITLES, *table.protocol]))}
    return sorted(table.itertuples(), key=lambda row: rank[row.protocol])


def _settings(protocol: str, rows: Sequence[Any]) -> tuple[list[str], list[str]]:
    """What a protocol was told, and what it found by itself."""
    told: list[str] = []
    chosen: list[str] = []
    own = settings_of(protocol)
    for key, values in _by_key(row.settings for row in rows).items():
        if said := _values(values):
            (told if key in own else chosen).append(f"{key} {said}")
    return told, chosen


def _values(values: Iterable[Any]) -> str:
    """Distinct values in their order, or how many there are; empty ones are left out."""
    known = [value for value in dict.fromkeys(map(_short, values)) if value]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return " | ".join(known[:_SHOWN]) + more


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value == value else as_text(value)


def _by_key(column: Iterable[Any]) -> Mapping[str, list[Any]]:
    """The values of every key of JSON objects."""
    values: dict[str, list[Any]] = {}
    for text in dict.fromkeys(column):
        for key, value in (as_json(text) or {}).items():
            if not isinstance(value, dict):  # what every choice would have given is in the results table
                said = ", ".join(map(_short, value)) if isinstance(value, list) else value
                values.setdefault(str(key), []).append(said)
    return values
