"""The one place that decides what may be opened: names below a root, images in the formats expected, few protocols.

A string in a data file (an index, metadata, a packed store) is a name below that file's root and nothing more: it never
opens a protocol, a host or a path outside. Addresses come from the user alone.
"""

import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from torchgeo.datasets.errors import DependencyNotFoundError
from torchgeo.datasets.utils import lazy_import

from terrafm_tg.errors import TerraFMError

if TYPE_CHECKING:
    import h5py
    import xarray

#: Of a name from a data file: absolute, above its folder, of another protocol, drive or host, or in disguise.
UNSAFE = (
    r"(?i)^$|^[/~]|^[a-z]:|\\|://|::|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]"  # vsi paths are absolute
    r"|%(25)*(2e|2f|5c|3a|[01][0-9a-f]|7f)"  # percent-encoded once or more often
)
_UNSAFE = re.compile(UNSAFE)
#: Protocols of addresses that a user may give: they read bytes. Others of fsspec run code or lead to further files.
PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "hf", "file")
# No side-car files, no listing of the folder; network paths have no driver that would open them.
_QUIET = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
_JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_MOST_BLOCK = 1 << 27  # pixels: a whole band of Sentinel-2
_MOST_PLACES = 1 << 22  # of a coordinate of a cube, which is read as a whole
_HDF5, _NETCDF3 = b"\x89HDF\r\n\x1a\n", b"CDF"
# What decodes numbers and texts; others of numcodecs run code (pickle) or are of formats that nobody here reads.
_CODECS = {
    "blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "bitround",
    "packbits", "quantize", "astype", "crc32", "crc32c", "adler32", "fletcher32", "vlen-utf8", "vlen-bytes", "bytes",
    "endian",    "transpose", "sharding_indexed",
}  # fmt: skip
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_names(names: Iterable[object], origin: str, sources: Iterable[str] = ()) -> None:
    """Refuses names from a data file that are not of files below its root.

    Args:
        names: Relative paths with ``/``; missing values are passed over.
        origin: The file that holds them, for the message.
        sources: Addresses that the user named, each with a final ``/``: names may lie below them, too.

    Raises:
        TerraFMError: If one is not.
    """
    if isinstance(names, pd.Series) and isinstance(names.dtype, pd.CategoricalDtype):
        names = names.cat.categories
    known = pd.Series(names, dtype=object).dropna().unique()
    texts = [name if isinstance(name, str) else "" for name in known]
    plain = pa.array([next((t[len(s) :] for s in sources if t.startswith(s)), t) for t in texts], pa.string())
    for index in pc.indices_nonzero(pc.match_substring_regex(plain, UNSAFE)).to_pylist():
        raise TerraFMError(
            f"{origin} names {(name := str(known[index]))[:200]!r}, which is no file below its folder, and was not "
            f"opened: {'give an address above it as `remote` if you trust it, or ' * name.startswith('http')}"
            "use data from a source that you trust, or make the index again with `terrafm index`."
        )


def is_safe(name: object) -> bool:
    """Tells whether a name from a data file is a relative path that stays below the folder it is relative to."""
    return isinstance(name, str) and not _UNSAFE.search(name)


def below(path: str | PathLike[str], root: str | PathLike[str]) -> str:
    """Returns the name of a file below a root that a library made a path of, to be checked by :func:`check_names`."""
    return str(path).removeprefix(f"{Path(root)}/").removeprefix(f"{root}/")


def remove_below(root: Path, name: str) -> None:
    """Removes a file that a data file names, unless it lies outside of the root, by its name or through a link."""
    path = root / name
    if is_safe(name) and path.resolve() == root.resolve() / name:
        path.unlink(missing_ok=True)


def check_address(url: str) -> str:
    """Returns an address that may be read: one protocol of :data:`PROTOCOLS`, no chain of them.

    Raises:
        TerraFMError: If it is another.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or protocol.lower() not in PROTOCOLS or "::" in url or "://" in rest.partition("?")[0]:
        raise TerraFMError(f"{url[:200]!r} is no address that is read: give one of {', '.join(PROTOCOLS)}.")
    return url


@contextmanager
def open_image(path: str | PathLike[str], opener: Callable[..., Any] | None = None) -> Iterator[DatasetReader]:
    """Opens a file on disk for reading, as JPEG 2000 where it begins so, else as GeoTIFF, and in no other format.

    A file that ends in ``.tif`` and is a VRT, or comes with side-car files, reaches no other file or address. A path
    that leads on behind a zip file, ``x.zip/y.jp2``, is of a file in it.

    Args:
        path: The file.
        opener: Makes file objects that are read instead of it; its path is then a name.

    Raises:
        rasterio.errors.RasterioIOError: If it cannot be opened.
    """
    outer = zip_above(path) if opener is None else None
    driver = "JP2OpenJPEG" if (_head(path, 8, opener or open)).startswith(_JPEG2000) else "GTiff"
    where: Any = Path(path) if opener is None else path
    if outer is not None:
        where = f"/vsizip/{{{outer.absolute()}}}/{Path(path).relative_to(outer).as_posix()}"
    # A thread of GDAL's own cannot call the opener: it would leave blocks out without an error.
    alone = {} if opener is None else {"GDAL_NUM_THREADS": 1}
    with rasterio.Env(**_QUIET, **alone), rasterio.open(where, driver=driver, sharing=False, opener=opener) as src:
        check_blocks(src)
        yield src


def zip_above(path: str | PathLike[str]) -> Path | None:
    """Returns the zip file that a path leads into; None where it is of a file by itself."""
    if ".zip/" not in Path(path).as_posix().lower():
        return None
    return next((above for above in Path(path).parents if above.suffix.lower() == ".zip" and above.is_file()), None)


def zip_members(path: str | PathLike[str]) -> list[str]:
    """Lists the files in a zip file whose names lie below it; none where it is no zip file."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name for name in file.namelist() if is_safe(name) and not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def read_text(path: str | PathLike[str], most: int = 1 << 25) -> str:
    """Reads a text file on disk, or in a zip file; empty where it cannot be read or is larger than ``most`` bytes."""
    text = _head(path, most + 1)
    return "" if len(text) > most else text.decode("utf-8", "replace")


def open_array(path: str | PathLike[str]) -> np.ndarray:
    """Maps a NumPy array on disk, of numbers.

    Raises:
        ValueError: If it is something else, or cannot be read.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError) as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise ValueError("it holds no array of numbers")
    return array


def open_cube(path: str | PathLike[str], group: str = "") -> "xarray.Dataset":
    """Opens a group of a NetCDF file or of a Zarr store on disk, with values as they are stored, read when asked for.

    Nothing of it leads elsewhere, and no codec runs code; the size of what is read at once is bounded.

    Raises:
        TerraFMError: If it needs a library that is absent, keeps a part in another file, or uses another codec.
        ValueError: If it is no such file, or damaged.
    """
    options: dict[str, Any] = {"mask_and_scale": False, "decode_coords": False}
    try:
        xarray = lazy_import("xarray")
        if Path(path).is_dir():
            check_zarr(Path(path))
            store = lazy_import("zarr").storage.LocalStore(Path(path), read_only=True)
            return xarray.open_zarr(store, group=group or None, chunks=None, consolidated=False, **options)
        if _head(path, 3) == _NETCDF3:
            return xarray.open_dataset(path, engine="scipy", **options)
        lazy_import("h5netcdf")
        with open_hdf5(path) as file:
            for item in file.values():
                if prod(getattr(item, "shape", ())) > _MOST_PLACES and len(item.shape) == 1:
                    raise ValueError(f"its {item.name} has {item.size:,} places, expected {_MOST_PLACES:,} at most")
        return xarray.open_dataset(path, engine="h5netcdf", group=group or None, **options)
    except DependencyNotFoundError as error:
        raise TerraFMError(
            f"{path} is a cube in NetCDF or Zarr, and {str(error).split()[0]} is not installed: run "
            "`pip install 'terrafm-tg[cubes]'`."
        ) from error
    except TerraFMError:
        raise
    except (OSError, KeyError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error


def check_zarr(path: Path) -> None:
    """Refuses a Zarr store that declares a codec which is not known to decode numbers only, or endless sizes.

    Raises:
        TerraFMError: If it does.
        ValueError: If its metadata are damaged.
    """
    for base, _, names in os.walk(path):
        for name in {".zarray", ".zmetadata", "zarr.json"} & {*names}:
            pending = [json.loads(read_text(Path(base, name)) or "null")]
            while pending:
                part = pending.pop()
                if isinstance(part, dict) and "shape" in part:
                    _check_zarr_array(part, Path(base, name))
                elif isinstance(part, dict):
                    pending += [value for key, value in part.items() if key != "attributes"]


def _check_zarr_array(array: dict[str, Any], origin: Path) -> None:
    """Checks what one array of a Zarr store declares, of format 2 or 3."""
    codecs = [array.get("compressor"), *(array.get("filters") or []), *(array.get("codecs") or [])]
    codecs += array.get("storage_transformers") or []
    while codecs:
        codec = codecs.pop()
        if codec is None:
            continue
        name = str(codec.get("id", codec.get("name", ""))) if isinstance(codec, dict) else str(codec)
        if name.removeprefix("numcodecs.") not in _CODECS:
            raise TerraFMError(
                f"{origin} names the codec {name[:80]!r}, which is not read: write it with zstd or blosc."
            )
        inside = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inside, dict):
            codecs += [*(inside.get("codecs") or []), *(inside.get("index_codecs") or [])]
    grid = array.get("chunk_grid") or {}
    chunks = array.get("chunks") or grid.get("configuration", {}).get("chunk_shape") or []
    shape = array["shape"]
    if not all(isinstance(side, int) and side >= 0 for side in [*shape, *chunks]):
        raise ValueError(f"{origin.name} declares the shape {str(shape)[:80]}")
    if prod(chunks) > _MOST_BLOCK or (len(shape) == 1 and shape[0] > _MOST_PLACES):
        raise TerraFMError(
            f"{origin} declares chunks of {prod(chunks):,} values of {shape}, expected {_MOST_BLOCK:,} at most: write "
            "it anew in smaller chunks."
        )


@contextmanager
def open_hdf5(path: str | PathLike[str]) -> "Iterator[h5py.File]":
    """Opens an HDF5 file for reading, if all that it names lies in itself: links and storage can be in other files.

    Without a lock, which many network file systems refuse; nothing is written.

    Raises:
        TerraFMError: If a part of it is elsewhere.
        OSError: If it cannot be opened.
        torchgeo.datasets.errors.DependencyNotFoundError: If h5py is not installed.
    """
    hdf5 = lazy_import("h5py")

    def check(group: "h5py.Group") -> None:
        for name in group:
            link = group.get(name, getlink=True)
            item = None if isinstance(link, hdf5.ExternalLink) else group.get(name)
            if item is None or (isinstance(item, hdf5.Dataset) and (item.external or item.is_virtual)):
                raise TerraFMError(f"{path} keeps {name!r} in another file, which was not opened: get a whole copy.")
            if isinstance(item, hdf5.Dataset) and prod(item.chunks or ()) > _MOST_BLOCK:
                raise TerraFMError(f"{path} keeps {name!r} in chunks of {prod(item.chunks):,} values: rewrite it.")
            if isinstance(item, hdf5.Group):
                check(item)

    with hdf5.File(path, "r", locking=False) as file:
        check(file)
        yield file


def check_blocks(src: DatasetReader) -> None:
    """Refuses an image whose blocks are larger than any that is written in practice: one is decoded as a whole.

    Raises:
        rasterio.errors.RasterioIOError: If they are.
    """
    together = src.count if src.interleaving == Interleaving.pixel else 1
    pixels = together * max(height * width for height, width in src.block_shapes)
    if pixels > _MOST_BLOCK:
        raise RasterioIOError(
            f"it has blocks of {pixels / 1e6:,.0f} million pixels, expected {_MOST_BLOCK / 1e6:,.0f} at most: write it "
            "anew in tiles (gdal_translate -co TILED=YES)"
        )


def _head(path: str | PathLike[str], count: int, opener: Callable[..., Any] = open) -> bytes:
    """Returns the first bytes of a file, or of one in a zip file; none where it cannot be read."""
    try:
        if opener is open and (outer := zip_above(path)) is not None:
            with zipfile.ZipFile(outer) as held, held.open(Path(path).relative_to(outer).as_posix()) as member:
                return member.read(count)
        with opener(path, "rb") as file:
            return file.read(count)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, NotImplementedError):
        return b""


def check_tiffs(paths: Iterable[str | PathLike[str]]) -> None:
    """Refuses files that are no TIFFs, before a library opens them that would take any format.

    Raises:
        TerraFMError: If one is not, or cannot be read.
    """
    for path in paths:
        if _head(path, 4) not in _TIFF:
            raise TerraFMError(f"{path} is no TIFF, whatever its name says, or cannot be read: replace it.")


class OpenFiles[F]:
    """The last few files that this process opened; a forked or spawned worker opens its own.

    Args:
        limit: How many stay open.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[str, F] = OrderedDict()
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_files": OrderedDict(), "_owner": -1}

    def _open(self, path: str) -> F:
        """Opens a file."""
        raise NotImplementedError

    def opened(self, path: str) -> F:
        """Returns an open file, and closes the one that was used least recently where there are too many."""
        if self._owner != os.getpid():
            self._files, self._owner = OrderedDict(), os.getpid()
        if path not in self._files:
            if len(self._files) >= self.limit:
                self._files.popitem(last=False)
            self._files[path] = self._open(path)
        self._files.move_to_end(path)
        return self._files[path]
