"""Tables and arrays that all processes of a machine share: made once, kept in a file, and mapped by each of them.

A process that is sent one (a loader's worker, however it is started) gets the file's name and maps it, too. The files
are Arrow's, uncompressed, in a folder that only this user can write; none is ever changed in its place. A file's name
is the hash of all that its content depends on, so one that is there was made by this code, from the same input.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch.distributed as dist
from filelock import FileLock
from xxhash import xxh3_128, xxh3_128_hexdigest

from terrafm_tg.errors import TerraFMError

from .files import atomic_write, files_below, fingerprint, write_text

_log = logging.getLogger(__name__)

#: Rows from which on something is shared; less is as well sent as it is.
LARGE = 1 << 18
_DAYS = 30  # after which a file that nobody opened is removed
_ALONE = "each process keeps the index in memory of its own"
_SUM = ".xxh128"  # ending of a file's checksum, which the first process of a run compares
_PACKAGE = Path(__file__).parents[1]


class SharedArrays(dict[str, np.ndarray]):
    """Arrays of a file that :func:`shared` wrote, by name.

    Args:
        path: The file.

    Raises:
        OSError, ValueError: If it is not there, or no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path, (columns, kinds) = path, _map(path)
        super().__init__({name: _numpy(column, kinds[name]) for name, column in columns.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @staticmethod
    def to_arrow(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, pa.Array], dict[str, Any]]:
        """Converts arrays (n,) to what a file holds; lengths may differ."""
        return {name: _arrow(array) for name, array in arrays.items()}, {n: a.dtype.str for n, a in arrays.items()}


class SharedTable(pd.DataFrame):
    """A table of a file that :func:`shared` wrote, whose columns cannot be written. What is made of it is a plain one.

    Args:
        path: The file.

    Raises:
        OSError, ValueError: If it is not there, or no such file.
    """

    _metadata = ["path", "attached"]
    #: What came with the table when it was made.
    attached: Any

    def __init__(self, path: Path) -> None:
        columns, kinds = _map(path)
        series = {name: _series(name, columns, kind) for name, kind in kinds["columns"].items()}
        super().__init__(pd.DataFrame(series, copy=False))
        self.path, self.attached = path, kinds["attached"]

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TerraFMError(f"The table of a large index cannot be written ({key!r}): use `table.assign`, or a copy.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @staticmethod
    def to_arrow(made: tuple[pd.DataFrame, Any]) -> tuple[dict[str, pa.Array], dict[str, Any]]:
        """Converts a table, and what JSON can hold of it besides, to what a file holds.

        Raises:
            ValueError: If a column holds Python's objects.
        """
        arrays, kinds = dict[str, pa.Array](), dict[str, str]()
        for name, column in made[0].items():
            if isinstance(column.dtype, pd.CategoricalDtype):
                names = pa.array(column.cat.categories.astype("str"), pa.large_string())
                arrays |= {name: _arrow(column.cat.codes.to_numpy()), f"{name} names": names}
                kinds[name] = f"category {column.cat.codes.dtype.str}"
            elif isinstance(column.dtype, pd.ArrowDtype):
                values = pa.table({name: column})[name].unify_dictionaries().combine_chunks()
                if pa.types.is_dictionary(values.type):
                    arrays |= {name: values.indices, f"{name} names": values.dictionary}
                else:
                    arrays[name] = values
                kinds[name] = "arrow"
            elif isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufM":
                arrays[name], kinds[name] = _arrow(column.to_numpy()), column.dtype.str
            else:
                raise ValueError(f"column {name} holds {column.dtype}, which cannot be mapped")
        return arrays, {"columns": kinds, "attached": made[1]}


def _map(path: Path) -> tuple[dict[str, pa.Array], dict[str, Any]]:
    """Maps a file: its arrays, which are columns of lists with one row, and how they are to be understood."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch, kinds = reader.get_batch(0), json.loads(reader.schema.metadata[b"terrafm"])
    except (pa.ArrowException, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no file of shared arrays ({error})") from error
    return {name: batch.column(name).values for name in batch.schema.names}, kinds


def _arrow(array: np.ndarray) -> pa.Array:
    """Converts an array without a copy: truth values as bytes, times as integers."""
    return pa.array(array.view({"b": np.uint8, "M": np.int64}.get(array.dtype.kind, array.dtype)))


def _numpy(column: pa.Array, kind: str) -> np.ndarray:
    return column.to_numpy(zero_copy_only=True).view(kind)


def _series(name: str, columns: Mapping[str, pa.Array], kind: str) -> Any:
    """Makes a column of a table without a copy, and without a look at its values."""
    column, names = columns[name], columns.get(f"{name} names")
    if kind.startswith("category"):
        return pd.Categorical.from_codes(_numpy(column, kind.split()[1]), dtype=names_dtype(names), validate=False)
    if kind == "arrow":
        whole = column if names is None else pa.DictionaryArray.from_arrays(column, names, safe=False)
        return pd.arrays.ArrowExtensionArray(pa.chunked_array([whole]))
    return _numpy(column, kind)


def names_dtype(names: pa.Array) -> pd.CategoricalDtype:
    """Makes the type of a column of names, which differ: pandas would look at each as an object, to be sure."""
    dtype = pd.CategoricalDtype()
    dtype.__setstate__(
        {"categories": pd.Index(pd.StringDtype(na_value=np.nan).__from_arrow__(names)), "ordered": False}
    )
    return dtype


def is_first() -> bool:
    """Tells if this process looks at files for all processes of a run."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def is_large(rows: int) -> bool:
    """Tells if what has so many rows is shared."""
    return rows >= LARGE


def shared_arrays(
    table: pd.DataFrame, how: str, make: Callable[[], Mapping[str, np.ndarray]], rows: np.ndarray | None = None
) -> Mapping[str, np.ndarray]:
    """Returns the arrays that ``make`` makes of a table; shared by processes where the table is.

    Args:
        table: A table.
        how: All else that the arrays depend on.
        make: Makes them, by name.
        rows: Of the table, which they depend on, too; all where None. Of few rows, each process makes its own.
    """
    if not isinstance(table, SharedTable) or (rows is not None and not is_large(len(rows))):
        return make()
    which = "" if rows is None else xxh3_128_hexdigest(np.ascontiguousarray(rows))
    return _shared(f"{table.path.stem} {which} {how}", SharedArrays, make)


def shared_table(key: str, make: Callable[[], tuple[pd.DataFrame, Any]]) -> tuple[pd.DataFrame, Any]:
    """Returns the table that ``make`` makes, shared by processes, and what comes with it.

    Args:
        key: All that they depend on.
        make: Makes the table, and what JSON can hold.
    """
    found = _shared(key, SharedTable, make)
    return (found, found.attached) if isinstance(found, SharedTable) else found


def derived(table: pd.DataFrame, how: str, make: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Returns the table that ``make`` makes of another, as ``how`` says; shared by processes where that is."""
    if not isinstance(table, SharedTable):
        return make(table)
    return shared_table(f"{table.path.stem} {how}", lambda: (make(table), None))[0]


def _shared(key: str, kind: Any, make: Callable[[], Any]) -> Any:
    """Opens the file of a key, which the first process of this machine writes while the others wait for it.

    Where no such file can be written, each process makes its own.
    """
    if (folder := _folder()) is None:
        return make()
    name = hashlib.sha256(f"{kind.__name__} {_code()} {key}".encode()).hexdigest()[:32]
    path = folder / f"{name}.arrow"
    if (found := _opened(path, kind)) is not None:
        return found
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _say(f"{folder} cannot be used ({error}): {_ALONE}. Name another as TERRAFM_CACHE.")
        return make()
    try:
        if (found := _opened(path, kind)) is None:
            made = make()
            try:
                _write(path, *kind.to_arrow(made))
                found = kind(path)
            except (OSError, ValueError, pa.ArrowException) as error:
                _say(f"{folder} cannot be used ({error}): {_ALONE}. Name another as TERRAFM_CACHE.")
                return made
        return found
    finally:
        lock.release()


def _opened(path: Path, kind: Any) -> Any:
    """Opens a file; None where there is none of Arrow's."""
    try:
        found, said = kind(path), path.with_suffix(_SUM).read_text()
        for file in (path, path.with_suffix(_SUM)):
            os.utime(file)
        right = not is_first() or _digest(path) == said
    except (OSError, ValueError):
        return None
    if not right:
        path.unlink()  # others may have it mapped: no run goes on with it
        raise TerraFMError(f"{path} was changed since it was written, and is removed: start again.")
    return found


def _write(path: Path, arrays: Mapping[str, pa.Array], kinds: Mapping[str, Any]) -> None:
    """Writes a file, and removes those that nobody opened for long."""
    lists = [pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array) for array in arrays.values()]
    batch = pa.record_batch(lists, names=list(arrays)).replace_schema_metadata({"terrafm": json.dumps(kinds)})
    with atomic_write(path, sole_writer=True) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        write_text(path.with_suffix(_SUM), _digest(part))
    for other in path.parent.glob("[0-9a-f]*"):
        with suppress(OSError):
            if other.suffix in (".arrow", ".lock", _SUM) and time.time() - other.stat().st_mtime > _DAYS * 86_400:
                other.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


def _folder() -> Path | None:
    """Returns the user's cache folder, else one for temporary files, that nobody else can write; None without any."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    named = os.environ.get("TERRAFM_CACHE", f"{cache}/terrafm")
    for name in (named, f"{tempfile.gettempdir()}/terrafm-{os.getuid()}"):
        with suppress(OSError, RuntimeError):  # or a user without a home
            folder = Path(name).expanduser() / "index"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = {folder.lstat().st_uid, folder.stat().st_uid} == {os.getuid()}
            if own and not folder.stat().st_mode & 0o022 and os.access(folder, os.W_OK):
                return folder
    _say(f"{named} is no folder that this user alone can write: {_ALONE}. Name one as TERRAFM_CACHE.")
    return None


@cache
def _code() -> str:
    """Names the code of this package, which decides what is made, too."""
    return fingerprint(files_below(_PACKAGE, ".py"), _PACKAGE)


@cache
def _say(text: str) -> None:
    """Logs a warning once."""
    _log.warning("%s", text)
