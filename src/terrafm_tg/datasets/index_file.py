"""The tile index on disk, ``index.parquet``: a GeoParquet file that appears whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
from geopandas import GeoDataFrame

from terrafm_tg.errors import TerraFMError

NAME = "index.parquet"
_TIMES = ("datetime_start", "datetime_stop")


def write_index(index: GeoDataFrame, path: Path, made_for: dict[str, Any]) -> None:
    """Write a tile index beside its final place, then move it there.

    Args:
        index: A tile index; its intervals become the columns ``datetime_start`` and ``datetime_stop``.
        path: The file.
        made_for: What it was made for, returned by :func:`read_index`; JSON can hold it.
    """
    table = index.reset_index(drop=True)
    table[_TIMES[0]], table[_TIMES[1]] = index.index.left, index.index.right
    table.attrs = {"terrafm": json.dumps(made_for)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        table.to_parquet(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_index(path: Path) -> tuple[GeoDataFrame, dict[str, Any]]:
    """Read what :func:`write_index` wrote.

    Returns:
        The tile index and what it was made for.

    Raises:
        TerraFMError: If the file is damaged, or is something else.
    """
    try:
        table = gpd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): make it again with `terrafm index`.") from error
    missing = {"cell", "quadrant", "epsg", *_TIMES} - set(table.columns)
    if missing or "terrafm" not in table.attrs:
        raise TerraFMError(f"{path} is no tile index of ours: make it again with `terrafm index`.")
    made_for = json.loads(table.attrs.pop("terrafm"))
    table.index = intervals(table.pop(_TIMES[0]), table.pop(_TIMES[1]))
    return table, made_for


def open_index(
    index: GeoDataFrame | str | os.PathLike[str] | None,
    root: Path,
    scan: Callable[..., GeoDataFrame],
    state: Callable[[Path], str],
    how: Mapping[str, Any],
    **settings: Any,
) -> tuple[GeoDataFrame, bool]:
    """The tile index given, else ``index.parquet`` below the root, else made from the files.

    Args:
        index: A tile index, the path of one, or None.
        root: Of the dataset.
        scan: ``scan(root, **how, **settings)`` makes the index.
        state: ``state(root)`` is a name for the files that lie there now.
        how: Settings that only matter when it is made.
        **settings: Settings with which one on disk must have been made too.

    Returns:
        The index, and whether it was there already.

    Raises:
        TerraFMError: If the index on disk was made with other settings or, below the root, for other files.
    """
    if isinstance(index, GeoDataFrame):
        return index, True
    path = root / NAME if index is None else Path(index)
    if index is None and not path.is_file():
        return scan(root, **how, **settings), False
    table, made_for = read_index(path)
    for name, value in settings.items():
        if made_for.get(name) != value:
            raise TerraFMError(
                f"{path} was made for {name}={made_for.get(name)!r}, the dataset has {value!r}: set that, "
                "or make the index again with `terrafm index`."
            )
    if index is None and made_for.get("state") != state(root):
        raise TerraFMError(f"{path} was made for other files than lie there now: run `terrafm index` again.")
    return table, True


def intervals(start: pd.Series, stop: pd.Series) -> pd.IntervalIndex:
    """TorchGeo's time index; a tile without any date is valid for all time."""
    first, last = (
        limit.as_unit("us") for limit in (pd.Timestamp.min.ceil("us"), pd.Timestamp.max.floor("us"))
    )
    start, stop = (times.astype("datetime64[us]") for times in (start, stop))
    return pd.IntervalIndex.from_arrays(
        start.fillna(first).to_numpy(), stop.fillna(last).to_numpy(), closed="both", name="datetime"
    )


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """A name for a set of files: it changes when one is added, removed or replaced by one of another size."""
    entries = sorted(f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files)
    return sha256("\n".join(entries).encode()).hexdigest()
