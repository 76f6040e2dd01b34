"""Models, datasets and protocols from a configuration of ``terrafm bench``, checked."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from terrafm_tg.datasets.bench import TASKS, BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Stands for random weights in the short form of a model.
RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class ProtocolEntry:
    """One protocol of a configuration, with its datasets, fractions and seeds.

    Args:
        protocol: With its settings.
        datasets: Names of the datasets that it is for.
        fractions: Shares of the training split.
        seeds: One run each.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]


def read_models(entries: Sequence[Mapping[str, Any] | str] | str) -> list[ModelSpec]:
    """Reads models from a configuration.

    Args:
        entries: Mappings of the settings of :class:`ModelSpec`, or ``MODEL`` for its published weights,
            ``MODEL@WEIGHTS`` for others, ``MODEL@random`` for none.

    Raises:
        TerraFMError: If a setting is unknown or wrong, no model is named, or two are the same.
    """
    specs = []
    for entry in [entries] if isinstance(entries, str) else entries:
        if isinstance(entry, str):
            model, _, weights = entry.partition("@")
            known = None if weights == RANDOM or model == "pixel-statistics" else weights or "default"
            entry = {"model": model, "weights": known}
        if "model" not in entry:
            raise TerraFMError(f"An entry of `models` has no `model`: {dict(entry)}; name one, such as terrafm_base.")
        specs.append(build(ModelSpec, entry, f"model {entry['model']!r}"))
    if not specs:
        raise TerraFMError("No model is named: give `models`, such as --models [terrafm_base].")
    for spec in specs:
        if specs.count(spec) > 1:
            raise TerraFMError(f"Model {spec.label} is in `models` twice with the same settings: remove one.")
    return specs


def read_datasets(names: Sequence[str] | str) -> list[BenchTask]:
    """Reads datasets by name, pattern (``m-*``) or benchmark (``GEO-Bench``), in the order of the registry.

    Raises:
        TerraFMError: If a name fits none.
    """
    chosen: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        fits = {task.name for task in TASKS.values() if fnmatchcase(task.name, name) or name == task.benchmark}
        if not fits:
            benchmarks = sorted({task.benchmark for task in TASKS.values()})
            raise TerraFMError(unknown("dataset", name, [*TASKS, *benchmarks]))
        chosen |= fits
    if not chosen:
        raise TerraFMError("No dataset is named: give `datasets`, such as --datasets [m-eurosat].")
    return [task for task in TASKS.values() if task.name in chosen]


def read_protocols(
    entries: Sequence[Mapping[str, Any] | str] | str,
    datasets: Sequence[BenchTask],
    fractions: Sequence[float] | float,
    seeds: Sequence[int] | int,
) -> list[ProtocolEntry]:
    """Reads protocols from a configuration.

    Args:
        entries: Names, or mappings of ``name``, the protocol's settings and, where they differ from the
            configuration's, ``datasets``, ``fractions`` and ``seeds``.
        datasets: Of the configuration.
        fractions: Of the configuration.
        seeds: Of the configuration.

    Raises:
        TerraFMError: If a protocol or setting is unknown or wrong, or none is named.
    """
    read = []
    for entry in [entries] if isinstance(entries, str) else entries:
        settings: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = settings.pop("name", None)
        if name not in PROTOCOLS:
            raise TerraFMError(unknown("protocol", str(name), list(PROTOCOLS)))
        own = settings.pop("datasets", None)
        named = {task.name for task in datasets if own is None or task in read_datasets(own)}
        read.append(
            ProtocolEntry(
                datasets=tuple(task.name for task in datasets if task.name in named),
                fractions=_fractions(settings.pop("fractions", fractions)),
                seeds=_seeds(settings.pop("seeds", seeds)),
                protocol=build(get_protocol(name), settings, f"protocol {name!r}"),
            )
        )
    if not read:
        raise TerraFMError("No protocol is named: give `protocols`, such as --protocols [knn].")
    return read


def build[T: DataclassInstance](cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Builds a dataclass from a mapping of a configuration.

    Raises:
        TerraFMError: If a setting is unknown or of the wrong type.
    """
    hints = get_type_hints(cls)
    types = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    parsed = {}
    for name, value in values.items():
        if name not in types:
            raise TerraFMError(unknown(f"setting of {what}", str(name), list(types)))
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=types[name])
        try:
            parsed[name] = parser.parse_object({name: value})[name]
        except ArgumentError as error:
            kind = types[name].__name__ if isinstance(types[name], type) else types[name]
            raise TerraFMError(f"`{name}` of {what} is {value!r}: it must be {kind}.") from error
    return cls(**parsed)


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Says that a name is unknown, with near ones, else all."""
    near = get_close_matches(name, known) or [item for item in known if name.lower() in item.lower()][:3]
    choice = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known) or '(none)'}."
    return f"There is no {what} {name!r}: {choice}"


def _fractions(values: Sequence[float] | float) -> tuple[float, ...]:
    chosen = tuple(float(x) for x in _numbers(values, "fractions"))
    for value in chosen:
        if not 0 < value <= 1:
            percent = f", for {value:g} % write {value / 100:g}" if 1 < value <= 100 else ""
            raise TerraFMError(
                f"`fractions` holds {value:g}: give shares of the training split above 0 and at most 1{percent}."
            )
    return chosen


def _seeds(values: Sequence[int] | int) -> tuple[int, ...]:
    chosen = _numbers(values, "seeds")
    wrong = next((x for x in chosen if not isinstance(x, int) or not 0 <= x < 2**32), None)
    if wrong is not None:
        raise TerraFMError(f"`seeds` holds {wrong!r}: give whole numbers from 0 on.")
    return tuple(chosen)


def _numbers(values: Any, name: str) -> list[Any]:
    items = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    if not items or not all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        raise TerraFMError(f"`{name}` is {values!r}: give a number or a list of numbers.")
    return list(dict.fromkeys(items))
