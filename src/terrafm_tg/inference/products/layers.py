"""Files of a map: classes with a color table and names, probabilities, entropy, or numbers, as COGs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.utils.files import atomic_write, write_text

from .legend import Legend


@dataclass(frozen=True)
class Layer:
    """One file of a map.

    Args:
        ending: Behind the map's name, such as ``_entropy``.
        bands: Places of its bands among those of the parts.
        names: Of the bands.
        dtype: Of the file.
        nodata: Of the file.
        scale: Of whole numbers that stand for shares: value times scale.
        unit: Of the bands.
        legend: Of classes.
    """

    ending: str
    bands: slice
    names: Sequence[str]
    dtype: str
    nodata: float
    scale: float = 1.0
    unit: str = ""
    legend: Legend | None = None


def write_layer(path: Path, parts: MapParts, layer: Layer) -> None:
    """Writes one file of a map from its parts, atomically.

    Args:
        path: The GeoTIFF; names of classes lie beside it in ``<path>.aux.xml``, where GDAL and QGIS look for them.
        parts: All of them.
        layer: What to write of them.
    """
    import rasterio
    from rasterio.shutil import copy as convert

    resampling = "MODE" if layer.legend else "AVERAGE"
    if layer.legend is not None:
        write_text(path.with_name(f"{path.name}.aux.xml"), _categories(layer.legend))
    with atomic_write(path, sole_writer=True) as part:
        draft = part.with_name(f"{part.name}.draft")
        try:
            with rasterio.open(
                draft, "w", driver="GTiff", width=parts.width, height=parts.height, count=len(layer.names),
                dtype=layer.dtype, crs=parts.crs, transform=parts.affine, nodata=layer.nodata, tiled=True,
                compress="ZSTD", BIGTIFF="IF_SAFER",
            ) as file:  # fmt: skip
                _describe(file, parts, layer)
                for rows, values in parts.rows():
                    own = values[..., layer.bands]
                    if layer.legend is not None:
                        own = np.where(np.isfinite(own), own, layer.nodata)
                    block = np.moveaxis(own, -1, 0).astype(layer.dtype)
                    file.write(block, window=((rows.start, rows.stop), (0, parts.width)))
            convert(
                draft, part, driver="COG", COMPRESS="ZSTD", PREDICTOR="YES" if layer.legend is None else "NO",
                OVERVIEW_RESAMPLING=resampling, BIGTIFF="IF_SAFER", STATISTICS="NO",
            )  # fmt: skip
        finally:
            for left in (draft, draft.with_name(f"{draft.name}.aux.xml"), part.with_name(f"{part.name}.aux.xml")):
                left.unlink(missing_ok=True)


def _describe(file: Any, parts: MapParts, layer: Layer) -> None:
    file.descriptions = tuple(layer.names)
    file.scales = (layer.scale,) * len(layer.names)
    if layer.unit:
        file.units = (layer.unit,) * len(layer.names)
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parts.about.items()}
    if layer.legend is not None:
        file.write_colormap(1, {i: (*color, 255) for i, color in enumerate(layer.legend.colors)})
        told["classes"] = json.dumps(dict(enumerate(layer.legend.names)), ensure_ascii=False)
    file.update_tags(**told)


def _categories(legend: Legend) -> str:
    """Returns GDAL's file of names, as it stands beside a raster."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    names = ElementTree.SubElement(band, "CategoryNames")
    for name in legend.names:
        ElementTree.SubElement(names, "Category").text = name
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def count_classes(parts: MapParts, classes: int) -> tuple[NDArray[np.int64], int]:
    """Counts the pixels of each class, and those that are missing."""
    counts, missing = np.zeros(classes, np.int64), 0
    for _, values in parts.rows():
        band = values[..., 0]
        there = np.isfinite(band) & (band < classes)
        counts += np.bincount(band[there].astype(np.intp), minlength=classes)
        missing += int((~there).sum())
    return counts, missing
