"""STAC: an item per product, and the collection of a run.

Items follow the embeddings extension 0.0.1, whose schema admits STAC 1.0.0 only, so this is the version that they name;
they are valid as STAC 1.1.0, too. Nothing says when a file was written: the same run gives the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from shapely.geometry import box, mapping
from shapely.geometry.polygon import orient

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.footprints import footprint
from terrafm_tg.inference.products.mlm import EXTENSIONS, NO_END, license_of, model_item
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.inference.products.zarr import pixel_meters
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.files import write_json

_VERSION = "1.0.0"
_COMMON = ("embeddings/v0.0.1", "processing/v1.2.0", "file/v2.1.0")
#: Media types of products and previews by ending.
MEDIA = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".zarr": "application/vnd.zarr; version=3",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
}
#: What the embeddings extension calls runtime parameters.
_RUNTIME = ("window", "overlap", "stride", "min_valid", "pooling", "masked_clouds", "precision")
_MOST_BANDS = 128  # that are told one by one
_FIRST = "2014-04-03T00:00:00Z"  # no image of a Sentinel is older


def write_item(
    parts: MapParts,
    product: Path,
    path: Path,
    reduction: Reduction,
    preview: Path | None = None,
    collection: Path | None = None,
) -> None:
    """Writes the STAC item of a map.

    Args:
        parts: The map, whose ``about`` says what it is made of.
        product: The COG or Zarr store, already written.
        path: The item, ``.json``; its name is the item's id, and links are relative to its folder.
        reduction: How the vectors are stored.
        preview: A picture of the image, where there is one.
        collection: The collection that the item will be in, where there is one.
    """
    crs = CRS(parts.crs)
    gsd = round(pixel_meters(parts), 2)
    code = {"proj:code": f"EPSG:{parts.epsg}"} if parts.epsg else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
    asset = _asset(product, path, ["data", "embedding"], "A vector of the model per pixel") | {
        "gsd": gsd, "data_type": reduction.dtype, "nodata": _nodata(reduction), "raster:sampling": "area",
        "raster:spatial_resolution": gsd, "proj:shape": [parts.height, parts.width],
        "proj:transform": list(parts.transform[:6]),
    }  # fmt: skip
    if reduction.stored <= _MOST_BANDS:
        scales = (
            [{}] * reduction.stored if reduction.scale is None else [{"raster:scale": s} for s in _scales(reduction)]
        )
        asset["bands"] = [{"name": f"d{band:03d}", **scale} for band, scale in enumerate(scales)]
    assets = {"embeddings": asset}
    if preview is not None:
        role = "thumbnail" if preview.suffix == ".png" else "overview"
        assets["preview"] = _asset(
            preview, path, [role, "visual"], "The image in natural colors, or its radar channels"
        )
    shape = footprint(parts.crs, parts.affine, parts.height, parts.width)
    extra = {"gsd": gsd, **code, **_stored([reduction]), "terrafm:dimensions": reduction.stored}
    _write_item(path, shape, None, parts.about, extra, assets, ("projection/v2.0.0", "raster/v2.0.0"), collection)


def write_table_item(
    product: Path,
    path: Path,
    about: Mapping[str, Any],
    reductions: Mapping[str, Reduction],
    collection: Path | None = None,
) -> None:
    """Writes the STAC item of a table.

    Args:
        product: The GeoParquet file, already written. Where ``about`` has no dates, those of its columns are told.
        path: The item, as of :func:`write_item`.
        about: What the table is made of.
        reductions: How the vectors of each column are stored.
        collection: The collection that the item will be in, where there is one.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(product) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        bounds = [_bounds(shapely.from_wkb(b[0].to_numpy(False))) for b in file.iter_batches(columns=["geometry"])]
        times = [field.name for field in schema if str(field.type).startswith("timestamp")]
        dates = dict(about.get("dates") or {}) or {name: _ends(file.read([name])[name]) for name in times}
    bbox = _extent(np.concatenate(bounds))
    said = {name: f"A vector of {one.stored} numbers" for name, one in reductions.items()}
    columns = [
        {"name": field.name, "type": str(field.type)}
        | ({"description": said[field.name]} if field.name in said else {})
        for field in schema
    ]
    first = next(iter(reductions.values()))
    asset = _asset(product, path, ["data", "embedding"], "A row with a vector per place")
    table = {"table:columns": columns, "table:primary_geometry": "geometry", "table:row_count": count}
    extra = {**table, **_stored(list(reductions.values())), "terrafm:dimensions": first.stored}
    assets = {"embeddings": asset | {"data_type": first.dtype}}
    told = {**about, "dates": dates}
    _write_item(path, _area(bbox), bbox, told, extra, assets, ("table/v1.2.0",), collection)


def write_collection(items: Sequence[Path], path: Path, about: Mapping[str, Any]) -> list[Path]:
    """Writes the collection of some items of one run, and the model as an item where its weights have an address.

    It refers to the model card, ``README.md`` beside it, for the products that the embeddings are made of.

    Args:
        items: The items' files, at least one, in this folder or below.
        path: The collection, usually ``collection.json``; its folder's name is its id.
        about: What all items are made of.

    Returns:
        What was written.
    """
    about, found = _plain(about), [json.loads(item.read_text()) for item in items]
    properties = [item["properties"] for item in found]
    first, asset = properties[0], found[0]["assets"]["embeddings"]
    spans = [(p.get("start_datetime") or p["datetime"], p.get("end_datetime") or p["datetime"]) for p in properties]
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    boxes = np.array([side for item in found for side in _sides(item["bbox"])])
    model = model_item(about)
    card = {"href": "./README.md", "type": "text/markdown"}
    to_model = {"href": "./model.json", "type": "application/geo+json"} if model else card
    links = [
        {"rel": "root", "href": f"./{path.name}", "type": "application/json"},
        {"rel": "describedby", **card, "title": "Model card"},
        {"rel": "emb:model", **to_model, "title": str(about.get("model", "TerraFM"))},
        {"rel": "emb:source-data", **card, "title": "Names and dates of the products"},
        *license_of(about)[1],
        *({"rel": "item", "href": _href(one, path), "type": "application/geo+json"} for one in items),
    ]
    codes = sorted({p["proj:code"] for p in properties if p.get("proj:code")})
    places = any(column["name"] == "place" for column in first.get("table:columns", ()))
    embedded = {"emb:type": "chip", "emb:dimensions": first["terrafm:dimensions"], "data_type": asset["data_type"]}
    kept = ("type", "roles", "title", "data_type", "nodata")
    name = path.resolve().parent.name
    content = {
        "type": "Collection", "stac_version": _VERSION,
        "stac_extensions": [EXTENSIONS.format(one) for one in ("embeddings/v0.0.1", "item-assets/v1.0.0")],
        "id": name, "title": f"TerraFM embeddings: {name}", "description": _lineage(about),
        "license": license_of(about)[0],
        "extent": {
            "spatial": {"bbox": [_extent(boxes)]},
            "temporal": {"interval": [[None if start == _FIRST else start, None if end == NO_END else end]]},
        },
        **embedded,
        **({"gsd": first["gsd"]} if "gsd" in first else {}),
        "emb:chip_layout": _layout(about, "table:columns" in first, places),
        "summaries": {key: [value] for key, value in embedded.items()} | ({"proj:code": codes} if codes else {}),
        "item_assets": {"embeddings": {key: asset[key] for key in kept if key in asset}},
        **_own(about),
        "links": links,
    }  # fmt: skip
    write_json(path, content)
    if model:
        write_json(path.with_name("model.json"), model)
    return [path, path.with_name("model.json")] if model else [path]


def _write_item(
    path: Path, shape: shapely.Geometry, bbox: list[float] | None, about: Mapping[str, Any], extra: dict[str, Any],
    assets: dict[str, Any], extensions: Sequence[str], collection: Path | None,
) -> None:  # fmt: skip
    about = _plain(about)
    shape = _rounded(shape)
    name, _, version = str(about.get("software") or "terrafm-tg").partition(" ")
    license, links = license_of(about)
    rels = ("root", "parent", "collection") if collection is not None else ()
    back = [{"rel": rel, "href": _href(collection, path), "type": "application/json"} for rel in rels if collection]
    named = [one for names in (about.get("products") or {}).values() for one in names]
    addresses = [one for one in named if str(one).startswith(("https://", "s3://", "gs://"))]
    sources = [{"rel": rel, "href": address} for address in addresses for rel in ("derived_from", "emb:source-data")]
    runtime = {key: about[key] for key in _RUNTIME if key in about}
    content = {
        "type": "Feature", "stac_version": _VERSION,
        "stac_extensions": [EXTENSIONS.format(one) for one in (*_COMMON, *extensions)],
        "id": path.stem,
        **({"collection": collection.resolve().parent.name} if collection is not None else {}),
        "geometry": mapping(shape), "bbox": bbox or _extent(_bounds(np.array([shape]))),
        "properties": {
            **_times([date for dates in (about.get("dates") or {}).values() for date in dates]),
            "license": license,
            "processing:level": "L4", "processing:lineage": _lineage(about),
            "processing:software": {name: version or "unknown"},
            **({"emb:runtime_parameters": runtime} if runtime else {}),
            **extra, **_own(about),
        },
        "links": [*back, *links, *sources],
        "assets": assets,
    }  # fmt: skip
    write_json(path, content)


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """Makes values that JSON can hold of whatever there is; numbers that it cannot hold are null."""
    return json.loads(json.dumps(dict(about), default=str), parse_constant=lambda _: None)


def _own(about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what only this package's files say."""
    return {f"terrafm:{key}": value for key, value in about.items() if key not in ("license", "software")}


def _lineage(about: Mapping[str, Any]) -> str:
    sensors = [MODALITIES[name].title if name in MODALITIES else str(name) for name in about.get("modalities") or ()]
    return f"Embeddings by {about.get('model', 'TerraFM')}{' of ' + ' and '.join(sensors) if sensors else ''}"


def _layout(about: Mapping[str, Any], table: bool, places: bool) -> dict[str, Any]:
    """Says which pixels of 10 m a vector is of."""
    size, step = (about.get("window"),) * 2 if table else (about.get("patch"), about.get("stride"))
    known = {"chip_size": size, "stride": None if places else step}
    squares = {key: [value, value] for key, value in known.items() if isinstance(value, int)}
    return {"layout_type": "variable_grid" if places else "regular_grid", **squares}


def _stored(reductions: Sequence[Reduction]) -> dict[str, Any]:
    """Says how stored numbers came of vectors."""
    first, found = reductions[0], dict[str, Any]()
    if first.components is not None:
        expression = "(vectors - mean) @ components.T"
        found["emb:postprocessing"] = {"format": "numpy", "expression": expression}
    if first.dtype != "float32":
        method = "linear, a scale per dimension: value = number * scale" if first.scale is not None else "rounding"
        found["emb:quantization"] = {"method": method, "original_dtype": "float32", "quantized_dtype": first.dtype}
        if first.scale is not None and len(reductions) == 1 and first.stored <= _MOST_BANDS:
            found["emb:quantization"] |= {"scale": _scales(first), "offset": [0.0]}
    return found


def _scales(reduction: Reduction) -> list[float]:
    """Returns the scales with as many digits as float32 has."""
    assert reduction.scale is not None
    return [float(f"{scale:.9g}") for scale in reduction.scale.tolist()]


def _nodata(reduction: Reduction) -> int | str:
    return int(reduction.missing) if reduction.dtype == "int8" else "nan"


def _asset(file: Path, path: Path, roles: list[str], title: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "href": _href(file, path),
        "type": MEDIA[file.suffix.lower()],
        "title": title,
        "roles": roles,
    }
    if file.is_file():
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found |= {"file:size": file.stat().st_size, "file:checksum": f"1220{digest}"}  # multihash: sha2-256, 32 bytes
    return found


def _href(target: Path, path: Path) -> str:
    relative = Path(os.path.relpath(target.resolve(), path.resolve().parent)).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def _times(dates: Sequence[str]) -> dict[str, str | None]:
    """Returns the item's time or times."""
    moments = sorted({_utc(date) for date in dates})
    if len(moments) == 1:
        return {"datetime": moments[0]}
    start, end = (moments[0], moments[-1]) if moments else (_FIRST, NO_END)
    return {"datetime": None, "start_datetime": start, "end_datetime": end}


def _utc(date: str) -> str:
    moment = datetime.fromisoformat(date)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _ends(column: Any) -> list[str]:
    """Returns the first and the last time of a column, where it has any."""
    import pyarrow.compute as pc

    ends = pc.min_max(column).as_py()
    return [moment.isoformat() for moment in (ends["min"], ends["max"]) if moment is not None]


def _rounded(shape: shapely.Geometry) -> shapely.Geometry:
    """Returns polygons to a centimeter, exterior rings against the clock, as GeoJSON wants them."""
    parts = [orient(part) for part in shapely.get_parts(shapely.transform(shape, lambda points: points.round(7)))]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _bounds(shapes: NDArray) -> NDArray[np.float64]:
    return shapely.bounds(shapely.get_parts(shapes))


def _sides(bbox: Sequence[float]) -> list[list[float]]:
    """Splits a box that goes over 180 degrees there."""
    west, south, east, north = bbox
    if west <= east:
        return [[west, south, east, north]]
    return [[west, south, 180.0, north], [-180.0, south, east, north]]


def _extent(bounds: NDArray[np.float64]) -> list[float]:
    """Returns the box around boxes (n, 4), the narrowest one: its west is east of its east where it goes over 180."""
    bounds = bounds[np.argsort(bounds[:, 0], kind="stable")]
    west, east = bounds[:, 0], np.maximum.accumulate(bounds[:, 2])
    gaps = west[1:] - east[:-1]
    left, right = west[0], east[-1]
    if len(gaps) and gaps.max() > left + 360 - right:
        widest = int(gaps.argmax())
        left, right = west[widest + 1], east[widest]
    return [round(float(x), 7) for x in (left, bounds[:, 1].min(), right, bounds[:, 3].max())]


def _area(bbox: Sequence[float]) -> shapely.Geometry:
    """Returns a box as polygons, a meter wide where it is a point."""
    sides = [box(w, s, max(e, w + 1e-5), max(n, s + 1e-5)) for w, s, e, n in _sides(bbox)]
    return sides[0] if len(sides) == 1 else shapely.MultiPolygon(sides)
