"""Maps of embeddings as Zarr v3, with the conventions geoemb, proj and spatial, and CF's."""

import json
import shutil
import warnings
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.transform import array_bounds

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.cog import block_size
from terrafm_tg.inference.products.reduce import Reduction
from terrafm_tg.utils.files import work_folder

if TYPE_CHECKING:
    import zarr

_CHUNK = 64  # pixels: the edge of a chunk of all dimensions, less where these take more than 8 MB
_SHARD = 1 << 26  # bytes of a shard before compression
_MANY = 1024  # chunks that are files of their own: GDAL reads shards from 3.13 on
_SENSORS = "https://documentation.dataspace.copernicus.eu/Data/SentinelMissions"
_CONVENTIONS = (
    {
        "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
        "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "name": "geoemb:",
        "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial",
        "description": "Spatial coordinate information",
    },
)


def write_zarr(parts: MapParts, path: Path, reduction: Reduction, sharded: bool | None = None) -> None:
    """Writes a finished map as a Zarr v3 store, whole or not at all, in memory that does not depend on its size.

    It holds ``embeddings`` (embedding, y, x), the coordinates ``y``, ``x`` and ``embedding``, ``spatial_ref`` with the
    CRS, and for int8 ``scale`` (embedding,): a value is ``embeddings * scale``. A missing vector is the fill value. The
    same map gives the same bytes.

    Args:
        parts: The map, float32, all parts of which are there.
        path: The store's folder; one that is there is replaced.
        reduction: How its vectors are stored.
        sharded: Put chunks into shards of 64 MB, which GDAL reads from 3.13 on; None where there are more than 1,024.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    edge = min(_CHUNK, block_size(reduction))
    if sharded is None:
        sharded = -(-parts.height // edge) * -(-parts.width // edge) > _MANY
    shard = _shard_size(edge, reduction)
    with work_folder(path) as folder:
        group = zarr.create_group(folder / "store", zarr_format=3, attributes=attributes(parts, reduction))
        _write_coordinates(group, parts, reduction)
        array = group.create_array(
            "embeddings",
            shape=(reduction.stored, parts.height, parts.width),
            chunks=(reduction.stored, edge, edge),
            shards=(reduction.stored, shard, shard) if sharded else None,
            dtype=reduction.dtype,
            fill_value=reduction.missing,
            compressors=ZstdCodec(level=3),
            dimension_names=("embedding", "y", "x"),
            attributes=_attributes_of_array(reduction),
        )
        step = shard if sharded else edge * max(1, parts.part // edge)
        for top, left in product(range(0, parts.height, step), range(0, parts.width, step)):
            places = slice(top, min(top + step, parts.height)), slice(left, min(left + step, parts.width))
            array[:, places[0], places[1]] = _read(parts, places, reduction).transpose(2, 0, 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # which readers find or pass over
            zarr.consolidate_metadata(group.store)
        if path.is_dir():
            shutil.move(path, folder / "old")
        (folder / "store").rename(path)


def attributes(parts: MapParts, reduction: Reduction) -> dict[str, Any]:
    """Returns the attributes of the store: of three conventions, and ``terrafm`` with what the map is made of."""
    about, code = parts.about, parts.epsg
    size = [int(about.get(key, 16)) for key in ("patch", "stride")]
    found = {
        "zarr_conventions": list(_CONVENTIONS),
        "geoemb:type": "chip",
        "geoemb:dimensions": reduction.stored,
        "geoemb:model": model_uri(about),
        "geoemb:source_data": source_uris(about),
        "geoemb:data_type": reduction.dtype,
        "geoemb:gsd": pixel_meters(parts),
        "geoemb:chip_layout": {"layout_type": "regular_grid", "chip_size": size[:1] * 2, "stride": size[1:] * 2},
        "geoemb:build_version": str(about.get("software", "terrafm-tg")),
        **({"proj:code": f"EPSG:{code}"} if code else {"proj:wkt2": CRS(parts.crs).to_wkt()}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": [float(number) for number in parts.transform[:6]],
        "spatial:shape": [parts.height, parts.width],
        "spatial:bbox": list(array_bounds(parts.height, parts.width, parts.affine)),
        "spatial:registration": "pixel",
        "terrafm": about | {"reduction": json.loads(reduction.to_json())},
    }
    if reduction.scale is not None:
        scale = {"type": "array", "array_name": "scale"}
        found["geoemb:quantization"] = {
            "method": "per_dimension_scale", "original_dtype": "float32", "quantized_dtype": "int8", "scale": scale
        }  # fmt: skip
    return found


def model_uri(about: dict[str, Any]) -> str:
    """Returns the address of a map's weights; a name of its own where they lie on a disk."""
    weights = str(about.get("weights", ""))
    return weights if "://" in weights else f"urn:terrafm-tg:model:{quote(str(about.get('model', 'unknown')))}"


def source_uris(about: dict[str, Any]) -> list[str]:
    """Returns the addresses of the collections that a map's images are of."""
    sensors = sorted({f"Sentinel{name[1]}" for name in about.get("modalities", []) if name[:2] in ("s1", "s2")})
    return [f"{_SENSORS}/{sensor}.html" for sensor in sensors] or [f"{_SENSORS}.html"]


def pixel_meters(parts: MapParts) -> float:
    """Returns the edge of a pixel; in degrees, its height."""
    crs = CRS(parts.crs)
    factor = crs.axis_info[0].unit_conversion_factor
    return abs(parts.transform[4]) * (factor * 6371008.8 if crs.is_geographic else factor)


def _shard_size(edge: int, reduction: Reduction) -> int:
    """Returns the edge of a shard in pixels: chunks times a power of two."""
    shard = edge
    while (2 * shard) ** 2 * reduction.stored * np.dtype(reduction.dtype).itemsize <= _SHARD:
        shard *= 2
    return shard


def _attributes_of_array(reduction: Reduction) -> dict[str, Any]:
    found: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref", "long_name": "embedding"}
    if reduction.scale is not None:
        found |= {"coordinates": "spatial_ref scale", "_FillValue": int(reduction.missing)}
    return found


def _write_coordinates(group: "zarr.Group", parts: MapParts, reduction: Reduction) -> None:
    """Writes the middles of pixels, the dimensions' numbers, the CRS, and the scales."""
    t, crs = parts.affine, CRS(parts.crs)
    said = {axis["axis"].lower(): {k: v for k, v in axis.items() if k != "axis"} for axis in crs.cs_to_cf()}
    arrays: dict[str, tuple[NDArray, dict[str, Any]]] = {
        "y": (t.f + t.e * (np.arange(parts.height) + 0.5), said.get("y", {}) | {"axis": "Y"}),
        "x": (t.c + t.a * (np.arange(parts.width) + 0.5), said.get("x", {}) | {"axis": "X"}),
        "embedding": (np.arange(reduction.stored), {"long_name": "dimension of the embedding"}),
    }
    for name, (values, attributes_of) in arrays.items():
        group.create_array(name, data=values, chunks=values.shape, dimension_names=(name,), attributes=attributes_of)
    if reduction.scale is not None:
        group.create_array(
            "scale", data=reduction.scale, chunks=reduction.scale.shape, dimension_names=("embedding",),
            attributes={"long_name": "value of one step of embeddings"},
        )  # fmt: skip
    numbers = f"{t.c!r} {t.a!r} 0.0 {t.f!r} 0.0 {t.e!r}"
    group.create_array("spatial_ref", data=np.array(0), attributes=crs.to_cf() | {"GeoTransform": numbers})


def _read(parts: MapParts, places: tuple[slice, slice], reduction: Reduction) -> NDArray:
    """Reads stored numbers (h, w, stored) of some of the map's pixels."""
    rows, columns = places
    found = np.empty((rows.stop - rows.start, columns.stop - columns.start, reduction.stored), reduction.dtype)
    numbers = (range(side.start // parts.part, -(-side.stop // parts.part)) for side in places)
    for row, column in product(*numbers):
        here = parts.slices(row, column)
        common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(places, here, strict=True)]
        inside, out = (
            tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, base, strict=True))
            for base in (here, places)
        )
        found[out] = reduction.encode(parts.read(row, column)[inside])
    return found
