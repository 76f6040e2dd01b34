"""The nearest places to some, by the cosine of their embeddings: among all of them, or through an index."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products.polygons import check_format, write_frame
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked
from terrafm_tg.utils.files import write_text

from .index import open_search_index
from .opened import Embeddings, open_embeddings
from .places import read_places
from .tables import Pooling
from .vectors import distances, keep_nearest, normalized


@checked(k=COUNT, min_distance=NOT_NEGATIVE)
def search(
    embeddings: str | PathLike[str],
    at: Sequence[Sequence[float]] | Sequence[float] | str | PathLike[str],
    k: int = 10,
    index: Literal["exact", "ivf"] = "exact",
    min_distance: float = 0.0,
    together: bool = False,
    rebuild: bool = False,
    pooling: Pooling | None = None,
    out: str | PathLike[str] | None = None,
) -> pd.DataFrame:
    """Finds the places whose embeddings are nearest in cosine to those at some points.

    Args:
        embeddings: What `terrafm embed` wrote: a COG, Zarr store or GeoParquet table, a folder of them, or a STAC item
            or collection.
        at: Points as longitude,latitude in degrees, several one behind the other; or a file of points or polygons
            (GeoJSON, GeoParquet, CSV).
        k: Places per point.
        index: Compare with all embeddings (exact), or through an inverted file (ivf): made once, kept beside the
            embeddings with its recall, and refused when these have changed.
        min_distance: Meters around each point that are left out: neighbors look alike, and share pixels. Where 0, only
            the point's own pixel or row is.
        together: Search once, for what all points have in common (the mean of their directions).
        rebuild: Make the index anew.
        pooling: Which of a table's vectors, where it has several.
        out: File to write the places to: .geojson, .gpkg, .parquet or .csv.

    Returns:
        A row per place found: `query` (number of the point), `rank` from 1, `lon`, `lat`, `similarity` (the cosine),
        `date` and `file` of its embedding, and `place` in it (row * width + column of a map, row of a table). Its
        `attrs` have the point's own vectors in `queries`, and `recall` of the index.

    Raises:
        TerraFMError: If the embeddings or points cannot be read, a point has no embedding, or the index is out of date.
    """
    if out is not None and Path(out).suffix.lower() != ".csv":
        check_format(Path(out), "out")
    opened = open_embeddings(embeddings, pooling)
    points = _points(at)
    own = own_places(opened, points)
    queries = normalized(_vectors(opened, own))
    excluded = [_excluded(opened, point, place, min_distance) for point, place in zip(points, own, strict=True)]
    if together:
        queries, excluded = normalized(queries.mean(axis=0, keepdims=True)), [np.unique(np.concatenate(excluded))]
    about: dict[str, Any] = {}
    if index == "ivf":
        found = open_search_index(opened, rebuild)
        about = {"recall": found.recall, "index": str(found.path), "made": found.made}
        ids, similarity = found.search(queries, k, excluded)
    else:
        ids, similarity = search_all(opened, queries, k, excluded)
    table = _table(opened, ids, similarity)
    if out is not None:
        _write(table, Path(out))
    table.attrs = about | {"queries": [_said(opened, point, place) for point, place in zip(points, own, strict=True)]}
    return table


def search_all(
    opened: Embeddings, queries: NDArray[np.float32], k: int, excluded: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Compares queries with all embeddings, a part of them at a time.

    Args:
        opened: The embeddings.
        queries: Of length one, (q, D).
        k: How many to find of each.
        excluded: For each query the numbers of places (:meth:`~.opened.Embeddings.ids`) that are left out, sorted.

    Returns:
        Numbers of the nearest places and cosines, (q, k), the nearest first; -1 and -inf where there are fewer.
    """
    best = np.full((len(queries), 0), -np.inf, np.float32)
    which = np.full((len(queries), 0), -1, np.int64)
    for layer, part in opened.parts():
        ids = opened.ids(layer, part.place)
        cosines = queries @ normalized(part.x).T
        for row, out in zip(cosines, excluded, strict=True):
            row[np.isin(ids, out)] = -np.inf
        best, which = keep_nearest(best, which, cosines, ids, k)
    return np.where(np.isfinite(best), which, -1), best


def own_places(opened: Embeddings, points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the number of the place of each point (n, 2) that has an embedding: of several layers, in the newest.

    Raises:
        TerraFMError: If a point lies outside, or has no embedding.
    """
    found = np.full(len(points), -1, np.int64)
    order = sorted(range(len(opened.layers)), key=lambda i: opened.layers[i].date, reverse=True)
    for number, (lon, lat) in enumerate(points):
        missing = False
        for i in order:
            place = opened.layers[i].find(lon, lat) if abs(lat) <= 90 else None
            if place is None:
                continue
            at = np.array([place])
            if np.isfinite(opened.layers[i].take(at)).all():
                found[number] = opened.ids(i, at)[0]
                break
            missing = True
        if found[number] < 0 and missing:
            raise TerraFMError(
                f"The embedding at {lon:g},{lat:g} is missing in {opened.path} (no valid pixels there): give a place "
                "beside it."
            )
        if found[number] < 0:
            opened.check_inside(points[number : number + 1], "`at` lies")
    return found


def _write(table: pd.DataFrame, path: Path) -> None:
    import geopandas as gpd

    if path.suffix.lower() == ".csv":
        return write_text(path, table.to_csv(index=False))
    shapes = gpd.points_from_xy(table["lon"], table["lat"])
    return write_frame(gpd.GeoDataFrame(table, geometry=shapes, crs=4326), path, "places")


def _points(at: Sequence[Sequence[float]] | Sequence[float] | str | PathLike[str]) -> NDArray[np.float64]:
    if isinstance(at, str | PathLike):
        import shapely

        frame = read_places(Path(at)).to_crs(4326)
        inside = shapely.point_on_surface(frame.geometry.to_numpy())
        return np.stack([shapely.get_x(inside), shapely.get_y(inside)], axis=1)
    points = np.asarray(at, float)
    if points.ndim == 1:
        points = points[None]
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise TerraFMError(f"`at` is {at!r}: it must be points of two numbers, longitude and latitude in degrees.")
    return points


def _vectors(opened: Embeddings, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    layers, places = opened.places(ids)
    return np.concatenate([opened.layers[i].take(place[None]) for i, place in zip(layers, places, strict=True)])


def _excluded(opened: Embeddings, point: NDArray[np.float64], own: int, meters: float) -> NDArray[np.int64]:
    lon, lat = point
    near = [opened.ids(i, layer.near(lon, lat, meters)) for i, layer in enumerate(opened.layers)] if meters else []
    return np.unique(np.concatenate([np.array([own]), *near]))


def _table(opened: Embeddings, ids: NDArray[np.int64], similarity: NDArray[np.float32]) -> pd.DataFrame:
    query, column = np.nonzero(ids >= 0)
    layers, places = opened.places(ids[query, column])
    lon, lat = np.empty(len(query)), np.empty(len(query))
    for i in np.unique(layers):
        here = layers == i
        lon[here], lat[here] = opened.layers[i].lonlat(places[here])
    files = [opened.layers[i] for i in layers]
    return pd.DataFrame(
        {
            "query": query + 1,
            "rank": column + 1,
            "lon": lon,
            "lat": lat,
            "similarity": similarity[query, column],
            "date": [layer.date_of(place) for layer, place in zip(files, places, strict=True)],
            "file": [layer.path.name for layer in files],
            "place": places,
        }
    )


def _said(opened: Embeddings, point: NDArray[np.float64], number: int) -> str:
    lon, lat = point
    (layer,), (place,) = opened.places(np.array([number]))
    found = opened.layers[layer]
    (a,), (b,) = found.lonlat(np.array([place]))
    away = float(distances(a, b, lon, lat))
    date = found.date_of(place)
    return f"{lon:g},{lat:g}: the embedding {away:,.0f} m from it in {found.path.name}{f', {date}' * bool(date)}"
