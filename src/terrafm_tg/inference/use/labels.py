"""Labels of a map: points and polygons of known classes, and the embeddings that they lie in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from terrafm_tg.errors import TerraFMError

from .opened import Embeddings
from .places import read_places
from .tables import TableLayer
from .vectors import EmbeddingLayer, MapLayer

if TYPE_CHECKING:
    import geopandas as gpd

#: Embeddings of one polygon that are used, evenly spread over it: more of one place teach little.
MOST = 256
_COLUMNS = ("class", "label", "class_name", "category", "land_cover", "name")


@dataclass(frozen=True)
class Labels:
    """Embeddings of known class.

    Args:
        classes: Names of the classes, in order.
        x: Embeddings, (n, D).
        y: Their classes, int64 (n,).
        place: Which point or polygon of the file each belongs to, int64 (n,).
        lon: Longitude of its middle, (n,).
        lat: Latitude, (n,).
        said: What was left out, in sentences.
    """

    classes: tuple[str, ...]
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    place: NDArray[np.int64]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    said: tuple[str, ...]


def read_labels(opened: Embeddings, path: Path, column: str | None = None, crs: str | None = None) -> Labels:
    """Reads points or polygons with a class, and the embeddings there.

    Args:
        opened: The embeddings.
        path: GeoJSON, GeoParquet or CSV (:func:`~.places.read_places`).
        column: Name of the classes' column; the only one, or the usual names, where None.
        crs: Of the coordinates, where the file does not tell.

    Raises:
        TerraFMError: If the file cannot be read, has no such column, no label lies on an embedding, or fewer than two
            classes are left.
    """
    frame = read_places(path, crs)
    column = _column(frame, path, column)
    frame, said = frame[frame[column].notna()].reset_index(drop=True), list[str]()
    names = frame[column].map(_text)
    found = [_lie_in(layer, frame) for layer in opened.layers]
    features = np.concatenate([pair[0] for pair in found])
    seen = np.unique(features)
    if len(seen) < len(frame):
        if not len(seen):
            _refuse_outside(opened, frame, path)
        said.append(
            f"{_number(len(frame) - len(seen), 'label')} of {len(frame):,} outside of the embeddings: left out."
        )
    parts, lost, used, conflicts = [], set[int](), set[int](), 0
    for layer, (feature, place) in zip(opened.layers, found, strict=True):
        feature, place, pixels, torn = _agreed(feature, place, names.to_numpy())
        conflicts += pixels
        lost |= torn
        used |= set(feature.tolist())
        x = layer.take(place)
        there = np.isfinite(x).all(axis=1)
        parts.append((x[there], feature[there], *layer.lonlat(place[there])))
        missing = np.setdiff1d(feature, feature[there])
        if len(missing):
            said.append(f"{_number(len(missing), 'label')} where {layer.path.name} is missing: left out there.")
    if conflicts:
        said.append(
            f"{_number(conflicts, 'pixel or row', 'pixels or rows')} with labels of different classes: left out"
            + (f", and so {_number(len(lost - used), 'label')}." if lost - used else ".")
        )
    x, feature, lon, lat = (np.concatenate(some) for some in zip(*parts, strict=True))
    classes, y = np.unique(names.to_numpy(dtype=str)[feature], return_inverse=True)
    if len(classes) < 2:
        held = f"of one class, {classes[0]}" if len(classes) else "on no embedding that is there"
        raise TerraFMError(
            f"{path} has labels {held} ({' '.join(said)}): give labels of two classes or more.".replace(" ()", "")
        )
    return Labels(tuple(map(str, classes)), x, y.astype(np.int64), feature, lon, lat, tuple(said))


def _column(frame: "gpd.GeoDataFrame", path: Path, column: str | None) -> str:
    names = [str(name) for name in frame.columns if name != frame.geometry.name]
    if column is None:
        usual = [name for name in names if name.lower() in _COLUMNS]
        column = (
            names[0] if len(names) == 1 else next(iter(sorted(usual, key=lambda x: _COLUMNS.index(x.lower()))), None)
        )
    if column not in names:
        held = f"its columns are {', '.join(names)}" if names else "it has no column but the geometry"
        raise TerraFMError(
            f"{path} has no column {column or 'of classes'}: {held}; name that of the classes (`column`)."
        )
    return column


def _text(value: Any) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if whole else value).strip()


def _lie_in(layer: EmbeddingLayer, frame: "gpd.GeoDataFrame") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns pairs of a feature and a place of the layer that it lies on."""
    shapes = frame.geometry.to_crs(layer.crs).to_numpy()
    if isinstance(layer, MapLayer):
        point = shapely.get_type_id(shapes) == shapely.GeometryType.POINT
        lonlat = frame.geometry[point].to_crs(4326)
        places = layer.pixels(lonlat.x.to_numpy(), lonlat.y.to_numpy())
        inside = places >= 0
        pairs = [(np.flatnonzero(point)[inside], places[inside])]
        for i in np.flatnonzero(~point):
            some = _thinned(_pixels_in(layer, shapes[i]))
            pairs.append((np.full(len(some), i), some))
    else:
        assert isinstance(layer, TableLayer)
        pairs = []
        degrees = frame.geometry.representative_point().to_crs(4326)
        for number, shape in enumerate(shapes):
            some = layer.rows_in(shape) if shapely.area(shape) else layer.rows_at(degrees.x[number], degrees.y[number])
            some = _thinned(some)
            pairs.append((np.full(len(some), number), some))
    return tuple(np.concatenate(part).astype(np.int64) for part in zip(*pairs, strict=True))  # type: ignore[return-value]


def _pixels_in(layer: MapLayer, shape: Any) -> NDArray[np.int64]:
    """Returns the pixels whose middles lie in a polygon (that a line touches); of a small one, that of its inside."""
    if shapely.is_empty(shape) or not np.isfinite(shapely.bounds(shape)).all():
        return np.empty(0, np.int64)
    bounds = shapely.bounds(shape)
    x, y = ~layer.transform * (bounds[[0, 2]], bounds[[1, 3]])
    top, bottom = max(0, int(np.floor(y.min()))), min(layer.height, int(np.ceil(y.max())))
    left, right = max(0, int(np.floor(x.min()))), min(layer.width, int(np.ceil(x.max())))
    if top >= bottom or left >= right:
        return np.empty(0, np.int64)
    here = layer.transform * Affine.translation(left, top)
    size = bottom - top, right - left
    rows, columns = np.nonzero(geometry_mask([shape], size, here, invert=True, all_touched=not shapely.area(shape)))
    if not len(rows):
        inside = shapely.point_on_surface(shape)
        at: tuple[float, float] = ~layer.transform * (shapely.get_x(inside), shapely.get_y(inside))
        columns, rows = np.array([math.floor(at[0]) - left]), np.array([math.floor(at[1]) - top])
        if not (0 <= rows[0] < size[0] and 0 <= columns[0] < size[1]):
            return np.empty(0, np.int64)
    return (rows + top) * layer.width + columns + left


def _thinned(places: NDArray) -> NDArray[np.int64]:
    if len(places) <= MOST:
        return places.astype(np.int64)
    return places[np.linspace(0, len(places) - 1, MOST).round().astype(int)].astype(np.int64)


def _agreed(
    feature: NDArray[np.int64], place: NDArray[np.int64], names: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int, set[int]]:
    """Leaves each place once, and none that has labels of different classes; returns their number and labels, too."""
    frame = pd.DataFrame({"feature": feature, "place": place, "name": names[feature]})
    classes = frame.groupby("place")["name"].transform("nunique")
    kept = frame[classes == 1].drop_duplicates("place")
    torn = frame[classes > 1]
    return kept["feature"].to_numpy(), kept["place"].to_numpy(), torn["place"].nunique(), {*torn["feature"].tolist()}


def _refuse_outside(opened: Embeddings, frame: "gpd.GeoDataFrame", path: Path) -> None:
    degrees = frame.geometry.representative_point().to_crs(4326)
    opened.check_inside(np.stack([degrees.x, degrees.y], axis=1), f"All labels of {path} lie, as the first does,")
    raise TerraFMError(f"No label of {path} lies on {opened.path}: give labels inside of it.")


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def places_in_words(names: Sequence[str]) -> str:
    """Joins names for a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
