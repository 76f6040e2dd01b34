"""Names of results, and maps in the making on the grid of some embeddings."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.parts import MapParts

from .opened import Embeddings
from .vectors import PART, MapLayer


def output_places(opened: Embeddings, out: Path, ending: str = "classes") -> list[Path]:
    """Returns the file to write for each layer.

    Raises:
        TerraFMError: If one file is named for several, its ending is of another form, or it is a source.
    """
    wanted = [".tif" if isinstance(layer, MapLayer) else ".parquet" for layer in opened.layers]
    if not out.suffix or out.is_dir():
        root = opened.path if opened.path.is_dir() else opened.path.parent
        names = ["_".join(layer.path.relative_to(root).with_suffix("").parts) for layer in opened.layers]
        found = [out / f"{name}_{ending}{kind}" for name, kind in zip(names, wanted, strict=True)]
    elif len(opened.layers) > 1:
        raise TerraFMError(
            f"{opened.path} holds {len(opened.layers)} files of embeddings: give a folder instead of {out}."
        )
    elif out.suffix.lower() != wanted[0]:
        raise TerraFMError(f"`out` is {out}: of {opened.layers[0].path.name} it ends in {wanted[0]}, or is a folder.")
    else:
        found = [out]
    for path in found:
        if any(path.resolve() == layer.path.resolve() for layer in opened.layers):
            raise TerraFMError(f"`out` is {path}, the embeddings themselves: give another file.")
    return found


def pieces(layer: MapLayer, folder: Path, depth: int, about: dict[str, Any]) -> MapParts:
    """Plans a map on the grid of some embeddings, in parts that are read at once."""
    edge = max(1, math.isqrt(PART // layer.dims))
    edge = edge // 64 * 64 or edge  # so that parts end where most blocks do
    parts = MapParts(
        folder, layer.name, layer.crs.to_wkt(), tuple(layer.transform)[:6], layer.height, layer.width, depth, edge,
        about={key: layer.about[key] for key in ("model", "weights", "dates") if key in layer.about} | about,
    )  # fmt: skip
    parts.begin()
    return parts


def windows(parts: MapParts) -> Iterator[tuple[int, int, slice, slice]]:
    """Lists the parts: row and column, and the rows and columns of the map."""
    down, across = parts.grid
    for row in range(down):
        for column in range(across):
            yield row, column, *parts.slices(row, column)
