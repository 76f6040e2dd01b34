"""Change between two dates: the cosine distance of the embeddings of the same places."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.layers import Layer, write_layer
from terrafm_tg.inference.products.picture import write_picture
from terrafm_tg.inference.products.polygons import write_frame
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import work_folder

from .map_output import output_places, pieces, windows
from .opened import only_layer, open_embeddings
from .table_picture import write_table_picture
from .tables import Pooling, TableLayer
from .vectors import MADE_BY, EmbeddingLayer, MapLayer, normalized

#: What the scores are called.
UNIT = "cosine distance"
_SAME = 1e-3  # of a pixel, at each corner
_SAMPLE = 1 << 20  # scores that a threshold is made from


@dataclass(frozen=True)
class Change:
    """Result of a comparison of two products.

    Args:
        files: That were written, the scores first.
        quantiles: The 5th, 50th and 95th percentile of the scores.
        missing: Share of the places without a score.
        threshold: Scores above it count as changed; None where no polygons were asked for.
        changed: Share of the scored places that changed.
        areas: Number of changed areas, or of changed rows.
        said: What a user should know, in sentences.
    """

    files: list[Path]
    quantiles: tuple[float, ...]
    missing: float
    threshold: float | None
    changed: float
    areas: int
    said: tuple[str, ...]


@checked(threshold=(0, 2))
def change(
    before: str | PathLike[str],
    after: str | PathLike[str],
    out: str | PathLike[str],
    threshold: float | Literal["robust"] | None = None,
    pooling: Pooling | None = None,
    picture: bool = True,
) -> Change:
    """Scores the change between two dates: 1 minus the cosine of the two embeddings of a place, 0 for none and up to 2.

    Args:
        before: A map or table that `terrafm embed` wrote, of the earlier date.
        after: That of the later date, from the same model; a map on another grid is put on that of `before` (nearest
            pixel).
        out: The map of scores (.tif), or the table (.parquet).
        threshold: Write polygons of what changed by more, too: a score, or robust for the median and three standard
            deviations as the median absolute deviation estimates them.
        pooling: Which of a table's vectors, where it has several.
        picture: Write a quick look, too.

    Returns:
        What was written.

    Raises:
        TerraFMError: If the embeddings cannot be compared, share no place, or the output cannot be used.
    """
    a, b = open_embeddings(before, pooling), open_embeddings(after, pooling)
    first, second = only_layer(a, "change"), only_layer(b, "change")
    said = compare_makers(first, second)
    maps = [isinstance(layer, MapLayer) for layer in (first, second)]
    if maps[0] != maps[1]:
        raise TerraFMError(f"{first.path} and {second.path} are a map and a table: give two maps, or two tables.")
    (path,) = output_places(a, Path(out), "change")
    output_places(b, path)  # which is no source of it, either
    if isinstance(first, MapLayer) and isinstance(second, MapLayer):
        return _change_of_maps(first, second, path, threshold, picture, said)
    assert isinstance(first, TableLayer)
    assert isinstance(second, TableLayer)
    return _change_of_tables(first, second, path, threshold, picture, said)


def compare_makers(first: EmbeddingLayer, second: EmbeddingLayer) -> list[str]:
    """Returns what is not known of two products, in sentences.

    Raises:
        TerraFMError: If they are known to be of different models, pooling or PCA, or differ in width.
    """
    said = []
    names = f"{first.path} and {second.path}"
    if first.dims != second.dims:
        raise TerraFMError(
            f"{names} hold embeddings of {first.dims} and of {second.dims} values, which cannot be compared: make both "
            "with one model and one PCA."
        )
    for key in MADE_BY:
        (one, text), (other, others) = (_maker(layer.about, key) for layer in (first, second))
        if one != other and (key == "reduction" or (one and other)):
            raise TerraFMError(
                f"{names} differ in their {_WORDS.get(key, key)} ({text} and {others}), so their embeddings cannot be "
                f"compared: make both with the same{', by `--pca` with the file of the first' * (key == 'reduction')}."
            )
    if not (first.about.get("model") and second.about.get("model")):
        said.append("Not both say which model they come from: scores mean something only if it is the same.")
    sensors = [layer.about.get("modalities") for layer in (first, second)]
    if sensors[0] and sensors[1] and sorted(sensors[0]) != sorted(sensors[1]):
        said.append(f"Sensors differ ({sensors[0]} and {sensors[1]}): a part of the score is theirs.")
    if first.date and first.date == second.date:
        said.append(f"Both are of {first.date}.")
    return said


_WORDS = {"reduction": "PCA"}


def _maker(about: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Returns what tells two makers apart, and how to call it."""
    value = about.get(key)
    if key == "reduction":  # types and scales may differ, components may not
        if not isinstance(value, Mapping) or not value.get("components"):
            return "", "none"
        digest = sha256(base64.b64decode(value["components"]) + base64.b64decode(value.get("mean", ""))).hexdigest()
        return digest, digest[:8]
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text, text or "none"


def same_grid(first: MapLayer, second: MapLayer) -> bool:
    """Tells whether two maps have the same pixels."""
    if first.crs != second.crs or (first.height, first.width) != (second.height, second.width):
        return False
    corners = np.array([0, first.width, 0]), np.array([0, 0, first.height])
    there = ~second.transform * (first.transform * corners)
    return bool(np.abs(np.array(there) - np.array(corners)).max() < _SAME)


def _on_grid(first: MapLayer, second: MapLayer, rows: slice, columns: slice, same: bool) -> NDArray[np.float32]:
    """Reads the second map's embeddings at the pixels of a window of the first, NaN outside of it."""
    if same:
        return second.read(rows, columns)
    place = np.arange(rows.start, rows.stop)[:, None] * first.width + np.arange(columns.start, columns.stop)
    own = second.pixels(*first.lonlat(place.ravel()))
    found = np.full((own.size, second.dims), np.nan, np.float32)
    inside = own >= 0
    found[inside] = second.take(own[inside])
    return found.reshape(*place.shape, -1)


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 minus the cosine of vectors (n, D), NaN where one is missing or zero."""
    a, b = normalized(a), normalized(b)
    # From the difference, which keeps its digits where both are nearly the same.
    distances = ((a - b) ** 2).sum(axis=1) / 2
    zero = ~(a.any(axis=1) & b.any(axis=1))
    return np.where(zero, np.float32("nan"), distances)


def robust_threshold(scores: NDArray) -> float:
    """Returns the median and three standard deviations, as the median absolute deviation estimates them."""
    middle = float(np.median(scores))
    return middle + 3 * 1.4826 * float(np.median(np.abs(scores - middle)))


def _change_of_maps(
    first: MapLayer,
    second: MapLayer,
    path: Path,
    threshold: float | Literal["robust"] | None,
    picture: bool,
    said: list[str],
) -> Change:
    same = same_grid(first, second)
    if not same:
        said.append(
            f"{second.path.name} lies on another grid ({second.crs.name}, {second.width} × {second.height} pixels): "
            f"the nearest embedding is taken at each pixel of {first.path.name}."
        )
    about = {"before": first.path.name, "after": second.path.name, "score": UNIT}
    with work_folder(path) as folder:
        parts = pieces(first, folder, 1, about)
        sample, count = list[NDArray](), 0
        every = max(1, first.count // _SAMPLE)
        for row, column, rows, columns in windows(parts):
            a = first.read(rows, columns)
            b = _on_grid(first, second, rows, columns, same)
            scores = distance(a.reshape(-1, first.dims), b.reshape(-1, first.dims))
            parts.write(row, column, scores.reshape(*a.shape[:2], 1))
            known = scores[np.isfinite(scores)]
            count += len(known)
            sample.append(known[::every])
        if not count:
            raise TerraFMError(
                f"{first.path} and {second.path} share no place with an embedding in both: give maps of one area."
            )
        scores = np.concatenate(sample)
        write_layer(path, parts, Layer("", slice(0, 1), ["change"], "float32", np.nan, unit=UNIT))
        files = [path]
        limit, changed, areas = None, 0.0, 0
        if threshold is not None:
            limit = robust_threshold(scores) if threshold == "robust" else float(threshold)
            polygons = path.with_name(f"{path.stem}_polygons.geojson")
            areas, changed = _write_areas(polygons, parts, limit)
            files.append(polygons)
    if picture:
        image = path.with_suffix(".png")
        dates = f", {first.date} to {second.date}" if {first.date, second.date} - {"", first.date} else ""
        write_picture(image, path, f"{first.name}: change{dates}", None, [], UNIT)
        files.append(image)
    return Change(files, _quantiles(scores), 1 - count / first.count, limit, changed, areas, tuple(said))


def _write_areas(path: Path, parts: MapParts, limit: float) -> tuple[int, float]:
    """Writes the connected areas above a threshold as polygons in degrees; returns their number and share."""
    import geopandas as gpd
    from rasterio.features import shapes
    from scipy import ndimage

    scores = np.concatenate([values[..., 0] for _, values in parts.rows()])
    above = scores > limit  # not where missing
    areas, count = ndimage.label(above)
    numbers = np.arange(1, count + 1)
    found = {int(n): shape for shape, n in shapes(areas.astype(np.int32), mask=above, transform=parts.affine)}
    frame = gpd.GeoDataFrame(
        {
            "pixels": np.bincount(areas.ravel(), minlength=count + 1)[1:],
            "mean": ndimage.mean(scores, areas, numbers),
            "max": ndimage.maximum(scores, areas, numbers),
        },
        geometry=[shapely.from_geojson(json.dumps(found[n])) for n in numbers],
        crs=parts.crs,
    )
    write_frame(frame.sort_values("max", ascending=False, ignore_index=True), path, "change")
    return count, float(above.sum() / np.isfinite(scores).sum())


def _change_of_tables(
    first: TableLayer,
    second: TableLayer,
    path: Path,
    threshold: float | Literal["robust"] | None,
    picture: bool,
    said: list[str],
) -> Change:
    partner, by = _partners(first, second)
    both = np.flatnonzero(partner >= 0)
    if len(both) < first.count or len(both) < second.count:
        said.append(f"{len(both):,} of {first.count:,} and {second.count:,} rows are of one place, by {by}.")
    scores = np.full(first.count, np.nan, np.float32)
    for part in first.parts():
        here = np.flatnonzero(partner[part.place] >= 0)
        scores[part.place[here]] = distance(part.x[here], second.take(partner[part.place[here]]))
    known = scores[np.isfinite(scores)]
    if not len(known):
        raise TerraFMError(
            f"{first.path} and {second.path} share no place with an embedding in both, by {by}: give tables of one "
            "area."
        )
    limit, changed = None, 0.0
    columns = first.identity() | {"change": scores}
    if threshold is not None:
        limit = robust_threshold(known) if threshold == "robust" else float(threshold)
        columns["changed"], changed = scores > limit, float((known > limit).mean())
    import geopandas as gpd

    write_frame(gpd.GeoDataFrame(columns, geometry=first.geometries, crs=first.crs), path, "change")
    files = [path]
    if picture:
        files.append(path.with_suffix(".png"))
        write_table_picture(files[-1], first, scores, unit=UNIT)
    areas = int((known > limit).sum()) if limit is not None else 0
    return Change(files, _quantiles(known), 1 - len(known) / first.count, limit, changed, areas, tuple(said))


def _partners(first: TableLayer, second: TableLayer) -> tuple[NDArray[np.int64], str]:
    """Returns the row of another table at the place of each, -1 where there is none, and how it is known."""
    keys = [[shapely.to_wkb(shapely.set_precision(x.geometries, 1e-7)) for x in (first, second)]]
    keys += [[x.values("grid_cell") for x in (first, second)]] if _unique_cells(first, second) else []
    partner, by = np.full(first.count, -1), ""
    for own, other in keys:
        by = "grid_cell" if by else "geometry"
        rows = pd.Series(np.arange(second.count), index=other)
        rows = rows[~rows.index.duplicated()]
        partner = rows.reindex(own).fillna(-1).to_numpy(np.int64)
        if (partner >= 0).any():
            break
    return partner, by


def _unique_cells(*tables: TableLayer) -> bool:
    return all("grid_cell" in x.columns and pd.Index(x.values("grid_cell")).is_unique for x in tables)


def _quantiles(scores: NDArray) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(scores, (0.05, 0.5, 0.95)))
