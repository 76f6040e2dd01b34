"""The model card of a run's products: what they are, what made them, and how they are read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from terrafm_tg.inference.products.mlm import license_of, modalities_of
from terrafm_tg.utils.files import write_text

_MOST = 100  # products that are listed one by one
_FORMATS = {
    ".tif": "Cloud-optimized GeoTIFF, a band per dimension, north up",
    ".zarr": "Zarr v3 store, `embeddings` (embedding, y, x)",
    ".parquet": "GeoParquet 1.1, a row with a vector per place",
}
_UNITS = {"dB": "decibels", "DN": "digital numbers: reflectance times 10,000, without an offset"}
_SETTINGS = {
    "pooling": "vector", "stride": "pixels of 10 m between vectors", "window": "pixels of 10 m seen at once",
    "overlap": "share of a window that the next one covers", "min_valid": "least share of valid pixels",
    "masked_clouds": "clouds count as missing", "precision": "precision of the computation", "run": "run",
}  # fmt: skip


def write_card(path: Path, about: Mapping[str, Any], items: Sequence[Path]) -> None:
    """Writes the card, in Markdown.

    Args:
        path: The card, ``README.md`` in the folder of the collection.
        about: What all products are made of.
        items: The STAC items of the products, at least one; the card takes names, dates and formats from them.
    """
    found = [json.loads(item.read_text()) for item in items]
    first = found[0]
    properties, asset = first["properties"], first["assets"]["embeddings"]
    product = (items[0].parent / asset["href"]).resolve()
    name = product.relative_to(path.resolve().parent).as_posix()
    sensors = sorted({sensor for item in found for sensor in item["properties"].get("terrafm:modalities") or ()})
    sensors = sensors or list(about.get("modalities") or ())
    reduced = "emb:postprocessing" in properties
    lines = [
        f"# {path.resolve().parent.name}: embeddings by {about.get('model', 'TerraFM')}",
        "",
        f"{len(found)} {'product' if len(found) == 1 else 'products'}: {_FORMATS[product.suffix]}. A vector has "
        f"{properties['terrafm:dimensions']} numbers, {asset['data_type']}"
        + (", principal components of the model's vector" if reduced else "")
        + ". `collection.json` and the items beside the products are their STAC metadata.",
        "",
        "## Model",
        "",
        "| | |",
        "|---|---|",
        f"| model | {about.get('model', 'TerraFM')} |",
        f"| weights | {about.get('weights', 'unknown')} |",
        f"| license | {license_of(about)[0]} |",
        f"| software | {about.get('software', 'terrafm-tg')} |",
        *(f"| {said} | {about[key]} |" for key, said in _SETTINGS.items() if key in about),
        "",
        "TerraFM: A Scalable Foundation Model for Unified Multisensor Earth Observation, "
        "[arXiv:2506.06281](https://arxiv.org/abs/2506.06281).",
        "",
        "## Input",
        "",
        *_inputs(about, sensors),
        "## Products",
        "",
        *_products(found),
        "",
        "## Reading",
        "",
        *_reading(name, asset["data_type"], reduced),
    ]
    write_text(path, "\n".join(lines).rstrip() + "\n")


def _inputs(about: Mapping[str, Any], sensors: Sequence[str]) -> Iterator[str]:
    """Tells bands, units and statistics."""
    own = "the model's own" if isinstance(about.get("statistics"), Mapping) else "the published ones"
    yield f"A value x becomes (x - (mean - 2 std)) / (4 std). Statistics are {own}; a missing pixel counts as the mean."
    yield ""
    for modality in modalities_of(about, sensors):
        yield f"{modality.title} (`{modality.name}`), in {_UNITS[modality.unit]}:"
        yield ""
        yield from ("| band | mean | std |", "|---|---|---|")
        for band, mean, std in zip(modality.bands, modality.mean, modality.std, strict=True):
            yield f"| {band} | {mean:g} | {std:g} |"
        yield ""


def _products(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tells names and dates of what the embeddings are made of."""
    yield from ("| item | made of | acquired |", "|---|---|---|")
    for item in found[:_MOST]:
        said = item["properties"]
        named = [str(one) for names in (said.get("terrafm:products") or {}).values() for one in names]
        start, end = (said.get(key) or said.get("datetime") for key in ("start_datetime", "end_datetime"))
        times = "unknown" if end and end.startswith("9999") else start if start == end else f"{start} to {end}"
        yield f"| {item['id']} | {', '.join(named) or 'see the columns of its rows'} | {times} |"
    if len(found) > _MOST:
        yield f"\n{len(found) - _MOST:,} more are in `collection.json`."


def _reading(name: str, dtype: str, reduced: bool) -> Iterator[str]:
    """Gives the code that reads the first product."""
    kind = Path(name).suffix
    if kind == ".tif":
        yield from _code("gdalinfo " + name, language="console")
        scaled = " * np.array(src.scales)[:, None, None]" if dtype == "int8" else ""
        yield from _code(
            "import numpy as np", "import rasterio", "", f'with rasterio.open("{name}") as src:',
            '    values = src.read(masked=True).astype("float32")' + scaled,
            "    values = values.filled(np.nan)  # (dimension, row, column)",
            "    tags = src.tags()",
        )  # fmt: skip
        yield "With xarray, through rioxarray:\n"
        yield from _code("import rioxarray", "", f'array = rioxarray.open_rasterio("{name}", mask_and_scale=True)')
        yield "With TorchGeo, which gives stored numbers:\n"
        yield from _code(
            "from torchgeo.datasets import RasterDataset", "", f'dataset = RasterDataset("{name}")',
            'image = dataset[dataset.bounds]["image"]',
        )  # fmt: skip
        kept, vectors = 'json.loads(tags["TERRAFM_REDUCTION"])', "np.moveaxis(values, 0, -1)"
    elif kind == ".zarr":
        yield from _code(
            "import numpy as np", "import xarray", "", f'cube = xarray.open_zarr("{name}")',
            "values = cube.embeddings" + (" * cube.scale" if dtype == "int8" else "") + "  # (embedding, y, x)",
        )  # fmt: skip
        kept, vectors = 'cube.attrs["terrafm"]["reduction"]', 'values.transpose("y", "x", "embedding").values'
    else:
        yield from _code(
            "import geopandas as gpd", "import numpy as np", "", f'table = gpd.read_parquet("{name}")',
            'column = next(name for name in table if name.startswith("embedding"))',
            "table = table[table[column].notna()]", "numbers = np.stack(table[column])  # (row, dimension)",
        )  # fmt: skip
        yield "With TorchGeo, where rows are tiles, as with Major-TOM's embeddings:\n"
        yield from _code(
            "from torchgeo.datasets import EarthEmbeddings", "", f'dataset = EarthEmbeddings("{name}")',
            'vector = dataset[0]["embedding"]',
        )  # fmt: skip
        said = f'json.loads(pq.read_schema("{name}").metadata[b"terrafm"])'
        kept, vectors = f'{said}["reductions"][column]', "numbers"
    if kind == ".parquet" and dtype == "int8":
        vectors = 'numbers * array("scale")'
    if reduced or (kind == ".parquet" and dtype == "int8"):
        yield "Stored numbers become the model's vectors again, to rounding"
        yield "(what principal components leave out is lost):\n" if reduced else "(int8 has a scale per dimension):\n"
        last = ' @ array("components").reshape(-1, kept["depth"]) + array("mean")' if reduced else ""
        yield from _code(
            "import base64", "import json", "", *(["import pyarrow.parquet as pq", ""] if kind == ".parquet" else []),
            f"kept = {kept}",
            "def array(name):", '    return np.frombuffer(base64.b64decode(kept[name]), "<f4")', "",
            f"vectors = {vectors}{last}  # (..., dimension)",
        )  # fmt: skip


def _code(*lines: str, language: str = "python") -> Iterator[str]:
    yield from (f"```{language}", *lines, "```", "")
