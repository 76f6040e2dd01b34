"""Types and ranges of the columns of a tile index, which may be a stranger's and is checked when it is opened."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyproj import CRS
from pyproj.exceptions import CRSError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES

from .bands import HeldBands
from .outlines import BOX
from .table import MAX_TILE, TIMES


class _Kind(NamedTuple):
    words: str
    fits: Callable[[pa.DataType], bool]
    low: float = -np.inf
    high: float = np.inf
    gaps: bool = False


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_time(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is None


def _is_shares(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)


def _whole(low: float, high: float) -> _Kind:
    return _Kind(f"integers from {low:g} to {high:g}", pa.types.is_integer, low, high)


def _real(low: float, high: float) -> _Kind:
    return _Kind(f"numbers from {low:g} to {high:g}", pa.types.is_floating, low, high)


_TEXT = _Kind("text", _is_text, gaps=True)
_FLAG = _Kind("true or false", pa.types.is_boolean)
_HASH = _Kind("unsigned integers", pa.types.is_unsigned_integer)
_TIME = _Kind("times without a zone", _is_time)
_MEASURE = _Kind("numbers", pa.types.is_floating, gaps=True)
#: By name; those that end in "_" have the name of a modality behind.
_KINDS: dict[str, _Kind] = {
    "cell": _TEXT._replace(gaps=False),
    "quadrant": _whole(0, 32767),
    "epsg": _whole(1024, 32767),
    **dict.fromkeys(BOX, _real(-720, 720)) | dict.fromkeys(TIMES, _TIME) | dict.fromkeys("xy", _real(-1e9, 1e9)),
    **dict.fromkeys(("xres", "yres"), _real(1e-9, 1e6)) | dict.fromkeys(("height", "width"), _whole(1, MAX_TILE)),
    **dict.fromkeys(("land_cover", "climate", "region", "group"), _whole(-1, 2**31 - 1)),
    "land_cover_share": _Kind("lists of 11 numbers", _is_shares),
    "ocean": _FLAG,
    "has_": _FLAG,
    "placed": _FLAG,
    "offset_": _whole(-1, 65535),
    "baseline_": _whole(-1, 9999),
    **dict.fromkeys(("place", "orbit", "site", "product_", "proof_", "part_", "path_", "shard_", "layout_"), _TEXT),
    **dict.fromkeys(("bands_", "files_", "verdict_", "steps_"), _TEXT),
    "date_": _TIME._replace(gaps=True),
    "cloud_": _MEASURE,
    "nodata_": _MEASURE,
    "xxh3_": _HASH,
    "source_": _HASH,
    "group_": _whole(-1, 2**31 - 1),
    "start_": _whole(-1, 2**62),
    "bytes_": _whole(-1, 2**31 - 1),
}
_CELL = r"\d{1,4}[UD]_\d{1,4}[LR]"
_UTM = {*range(32601, 32661), *range(32701, 32761)}


def _kind_of(name: str) -> _Kind | None:
    stem, _, modality = name.partition("_")
    return _KINDS.get(name) or (_KINDS.get(f"{stem}_") if modality else None)


def check_schema(schema: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Refuses columns of a type that they cannot have.

    Args:
        schema: The type of each column.

    Returns:
        Those that are to be read: all but nested ones that nobody here knows.

    Raises:
        ValueError: Naming the first.
    """
    for name, type_ in schema.items():
        kind = _kind_of(name)
        if kind is not None and not kind.fits(type_):
            raise ValueError(f"column {name} holds {str(type_)[:80]}, expected {kind.words}")
    return {name: type_ for name, type_ in schema.items() if _kind_of(name) or not pa.types.is_nested(type_)}


def check_values(name: str, values: pd.Series) -> None:
    """Refuses a column with values that it cannot have.

    Raises:
        ValueError: Naming the first row.
    """
    if (kind := _kind_of(name)) is None:
        return
    wrong = np.zeros(len(values), bool) if kind.gaps else values.isna().to_numpy(bool)
    if np.isfinite(kind.low):
        numbers = values.to_numpy()
        wrong = wrong | ~((numbers >= kind.low) & (numbers <= kind.high))
    elif name == "cell":
        cells = np.asarray(values.cat.categories.str.fullmatch(_CELL), bool)
        wrong = wrong | ~np.append(cells, False)[values.cat.codes]
    elif name == "land_cover_share":
        lists = pa.table({name: values})[name]
        wrong = wrong | ~pc.fill_null(pc.equal(pc.list_value_length(lists), 11), False).to_numpy()
        if not np.isfinite(pc.list_flatten(lists).to_numpy()).all():
            raise ValueError("column land_cover_share holds numbers that are not finite")
    elif name.startswith("bands_") and (modality := MODALITIES.get(name.removeprefix("bands_"))) is not None:
        try:
            HeldBands(values, modality)
        except TerraFMError as error:
            raise ValueError(str(error)) from error
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"column {name} holds {str(values.iloc[row])[:80]!r} in row {row:,}, expected {kind.words}")
    if name == "epsg":
        for code in {*np.unique(values.to_numpy()).tolist()} - _UTM:
            _check_crs(code)


def _check_crs(code: int) -> None:
    """Refuses a code that no coordinates on the ground have."""
    try:
        system = CRS.from_epsg(code)
    except CRSError as error:
        raise ValueError(f"column epsg holds {code}, which is no code of EPSG") from error
    if not (system.is_projected or system.is_geographic):
        raise ValueError(f"column epsg holds {code}, which is no system of coordinates in a plane")


def check_places(table: pd.DataFrame, needs: Iterable[str]) -> None:
    """Refuses a table without columns that a dataset reads, or with tiles that lack a value there.

    Args:
        table: A tile table.
        needs: Names of columns; those that end in "_" stand for a column of each modality.

    Raises:
        ValueError: Naming the column.
    """
    held = [name.removeprefix("has_") for name in table if name.startswith("has_")]
    stray = [c for c in table if c.startswith("offset_") and c.removeprefix("offset_") not in held]
    if stray:
        raise ValueError(f"column {stray[0]} is there without has_{stray[0].removeprefix('offset_')}")
    for need in needs:
        for modality in held if need.endswith("_") else [""]:
            if need + modality not in table:
                raise ValueError(f"column {need}{modality} is missing")
            if modality and need != "offset_":
                values = table[need + modality]
                gone = values.isna() if _kind_of(need + modality) is _TEXT else values < 0
                if (lost := (table[f"has_{modality}"] & gone).to_numpy(bool)).any():
                    raise ValueError(
                        f"column {need}{modality} says nothing of row {lost.argmax():,}, which has {modality}"
                    )


def index_settings(text: bytes) -> dict[str, Any] | None:
    """Reads the settings that an index was made for, as its metadata hold them.

    Returns:
        The settings; None where there are none.

    Raises:
        ValueError: If they are something else.
    """
    try:
        settings = json.loads(text)
    except RecursionError as error:
        raise ValueError("its settings are nested too deep") from error
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"its settings are {str(settings)[:80]!r}, expected names and values")
    if not isinstance(size := (settings or {}).get("tile_size", 0), int):
        raise ValueError(f"its `tile_size` is {str(size)[:80]!r}, expected pixels")
    return settings
