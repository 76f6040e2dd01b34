"""One reader of any embedding product: a map in COG or Zarr, a GeoParquet table, or a folder or collection of them."""

import json
from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import fingerprint
from terrafm_tg.utils.trust import is_safe, read_text

from .maps import CogLayer, NoEmbeddingsError, ZarrLayer
from .tables import Pooling, TableLayer
from .vectors import EmbeddingLayer, MapLayer, PlacedVectors

_ENDINGS = {".tif": CogLayer, ".tiff": CogLayer, ".zarr": ZarrLayer, ".parquet": TableLayer, ".geoparquet": TableLayer}


class Embeddings:
    """The layers of a product, all of one width.

    Args:
        path: The file or folder that the user named.
        layers: What it holds.

    Raises:
        TerraFMError: If the layers differ in width.
    """

    def __init__(self, path: Path, layers: list[EmbeddingLayer]) -> None:
        self.path, self.layers, self.dims = path, layers, layers[0].dims
        for layer in layers:
            if layer.dims != self.dims:
                raise TerraFMError(
                    f"{path} holds embeddings of {self.dims} values ({layers[0].path.name}) and of {layer.dims} "
                    f"({layer.path.name}): give those of one model, with one PCA."
                )
        self._starts = np.cumsum([0, *(layer.count for layer in layers)])

    @property
    def count(self) -> int:
        """Number of places of all layers, with and without an embedding."""
        return int(self._starts[-1])

    def parts(self, most: int | None = None) -> Iterator[tuple[int, PlacedVectors]]:
        """Reads all embeddings, a part at a time.

        Args:
            most: Read only some parts, spread evenly over each layer, until about so many places were looked at.

        Yields:
            The number of the layer, and some of its embeddings.
        """
        for number, layer in enumerate(self.layers):
            share = None if most is None else max(1, most * layer.count // max(self.count, 1))
            for part in layer.parts(share):
                yield number, part

    def ids(self, layer: int, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers places through all layers."""
        return self._starts[layer] + place

    def places(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the layers and places that have such numbers."""
        layers = np.searchsorted(self._starts, ids, side="right") - 1
        return layers, ids - self._starts[layers]

    @cached_property
    def fingerprint(self) -> str:
        """Name of its files' state: another one when one of them was added, removed or written anew."""
        files = [
            file for layer in self.layers for file in ([layer.path] if layer.path.is_file() else _files(layer.path))
        ]
        return fingerprint(files, self.path if self.path.is_dir() else self.path.parent)

    def where(self) -> str:
        """Says in words where the layers lie."""
        bounds = np.array([layer.bounds() for layer in self.layers])
        west, south = bounds[:, :2].min(axis=0)
        east, north = bounds[:, 2:].max(axis=0)
        return f"{_degrees(west)} to {_degrees(east)} east, {_degrees(south)} to {_degrees(north)} north"

    def holds(self, lon: float, lat: float) -> bool:
        """Tells whether a point lies in one of the layers."""
        return abs(lat) <= 90 and any(layer.find(lon, lat) is not None for layer in self.layers)

    def check_inside(self, points: NDArray[np.float64], what: str) -> None:
        """Refuses points (n, 2) none of which lies in a layer; names longitude and latitude that seem exchanged.

        Args:
            points: Longitude and latitude.
            what: What they are, in words.

        Raises:
            TerraFMError: If so.
        """
        if any(self.holds(*point) for point in points):
            return
        lon, lat = points[0]
        advice = "give places in it, as longitude,latitude"
        if any(self.holds(b, a) for a, b in points):
            advice = f"longitude and latitude are exchanged, it seems: did you mean {lat:g},{lon:g}?"
        raise TerraFMError(f"{what} ({lon:g},{lat:g}) outside of {self.path}, which reaches {self.where()}: {advice}")


@checked()
def open_embeddings(path: str | PathLike[str], pooling: Pooling | None = None) -> Embeddings:
    """Opens an embedding product: a COG, a Zarr store, a GeoParquet table, a folder, or a STAC item or collection.

    Args:
        path: The file or folder. Of a folder, what holds no embeddings is passed over.
        pooling: Which of a table's vectors, where it has several.

    Returns:
        Its layers, by path.

    Raises:
        TerraFMError: If it holds no embeddings, cannot be read, or layers differ in width.
    """
    path = Path(path)
    if not path.exists():
        raise TerraFMError(f"There is no file or folder {path}: give embeddings that `terrafm embed` wrote.")
    if path.suffix.lower() == ".json":
        named = _of_stac(path)
        return Embeddings(path.parent if len(named) > 1 else named[0], [_open(x, pooling) for x in named])
    if path.is_file() or path.suffix.lower() in _ENDINGS or (path / "zarr.json").is_file():
        return Embeddings(path, [_open(path, pooling)])
    layers, refused = [], list[Exception]()
    for file in _candidates(path):
        try:
            layers.append(_open(file, pooling))
        except NoEmbeddingsError as error:
            refused.append(error)
    if not layers:
        reason = f" ({refused[0]})" if refused else ""
        raise TerraFMError(f"{path} holds no embeddings{reason}: give the folder that `terrafm embed` wrote.")
    return Embeddings(path, layers)


def only_layer(embeddings: Embeddings, what: str) -> EmbeddingLayer:
    """Returns the layer of a product that has one.

    Raises:
        TerraFMError: If it has several.
    """
    if len(embeddings.layers) > 1:
        names = ", ".join(str(layer.path) for layer in embeddings.layers[:3])
        raise TerraFMError(
            f"{embeddings.path} holds {len(embeddings.layers)} files of embeddings, and {what} takes one: name "
            f"it, such as {names}."
        )
    return embeddings.layers[0]


def _open(path: Path, pooling: Pooling | None) -> EmbeddingLayer:
    kind: Any = _ENDINGS.get(path.suffix.lower(), ZarrLayer if path.is_dir() else CogLayer)
    try:
        layer = kind(path, pooling) if kind is TableLayer else kind(path)
    except TerraFMError:
        raise
    except (RasterioError, pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise TerraFMError(
            f"{path} cannot be read as embeddings ({reason}): give a COG, Zarr store or GeoParquet table that `terrafm "
            "embed` wrote."
        ) from error
    if isinstance(layer, MapLayer) and pooling is not None:
        raise TerraFMError(f"{path} is a map, which has one vector per pixel: leave out `pooling`.")
    return layer


def _candidates(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _ENDINGS or (path.is_dir() and (path / "zarr.json").is_file()):
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from _candidates(path)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _of_stac(path: Path) -> list[Path]:
    """Returns the files that a STAC item or collection names, below its folder."""
    try:
        content = json.loads(read_text(path) or "null")
        if content["type"] == "Collection":
            links = [link["href"] for link in content["links"] if link.get("rel") == "item"]
            files = [file for link in links for file in _of_stac(_below(path, link))]
        else:
            known = [asset["href"] for asset in content["assets"].values()]
            files = [_below(path, href) for href in known if Path(href).suffix.lower() in _ENDINGS]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, TerraFMError):
            raise
        files = []
    if not files:
        raise TerraFMError(f"{path} is no STAC item or collection that names embeddings: give the files themselves.")
    return list(dict.fromkeys(files))


def _below(path: Path, href: str) -> Path:
    name = str(href).removeprefix("./")
    if not is_safe(name):
        raise TerraFMError(
            f"{path} names {str(href)[:200]!r}, which is no file below its folder: give the file itself."
        )
    return path.parent / name


def _degrees(value: float) -> str:
    return f"{value:.4f}°"
