"""``terrafm download``: a subset of Major-TOM Core, by range requests, and its index."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from terrafm_tg.datasets.majortom.download import Selection, download, read_cells
from terrafm_tg.errors import TerraFMError

from .index import write_index_of
from .options import read_options

#: Conditions in the form of a command line: one word or several.
_WORDS: dict[str, tuple[Any, object, str]] = {
    "bbox": (list[float] | None, None, "West, south, east, north in degrees, such as [5.9,45.8,10.5,47.8]."),
    "cells": (list[str] | Path | None, None, "Names such as [897U_171L,897U_172L], or a text file with one per line."),
    "land_cover": (
        list[str | int] | str | int | None,
        None,
        "Take cells with a tile whose most frequent class is one of these, such as [Cropland,Mangroves].",
    ),
    "modalities": (list[str] | str | None, None, "Any of s1rtc, s2l1c, s2l2a; all by default."),
    "bandwidth": (float, 100.0, "Speed in MB/s from which a dry run computes the time."),
    "index": (bool, True, "Build the index afterwards, as `terrafm index ROOT` does."),
}


def run(command: str, words: Sequence[str]) -> None:
    """Downloads, says what came, and builds the index; the same command again resumes."""
    options = read_options(command, words, download, Selection, skip={"selection", *_WORDS}, **_WORDS)
    index, bandwidth, box = options.pop("index"), options.pop("bandwidth"), options["bbox"]
    if box is not None and len(box) != 4:
        raise TerraFMError(f"`bbox` has {len(box)} numbers: give west, south, east, north.")
    if bandwidth <= 0:
        raise TerraFMError(f"`bandwidth` is {bandwidth:g}: give MB/s above 0.")
    chosen = {field.name: options.pop(field.name) for field in fields(Selection)}
    chosen |= {
        "bbox": box and tuple(box),
        "cells": read_cells(chosen["cells"]),
        "land_cover": _several(chosen["land_cover"]),
        "modalities": _several(chosen["modalities"]) or None,
    }
    report = download(selection=Selection(**chosen), **options)
    Console().print(report.table(bandwidth))
    if index and not options["dry_run"]:
        write_index_of(options["root"])
    elif not options["dry_run"]:
        print(f"Next: terrafm index {options['root']}")


def _several(value: Sequence[str | int] | str | int | None) -> tuple[str, ...]:
    """Returns one word or several as several; a number is read as a word."""
    return (str(value),) if isinstance(value, str | int) else tuple(map(str, value or ()))
