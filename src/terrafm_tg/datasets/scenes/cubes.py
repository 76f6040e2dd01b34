"""Scenes in a cube, NetCDF or Zarr: openEO's, one's own, ESA's EOPF products."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from .describe import Layout, RefusedError
from .names import read_name, read_order
from .rasters import cube_group, find_axes, product_properties
from .said import Said, by_names, from_properties
from .scene import BandSource

_MEASURED = "measurements"  # of EOPF; beside it are masks, angles and quality by the same names


def cube_layouts(root: Path, path: str, name: str) -> Iterator[Layout]:
    """Finds the images in a cube, one for each date.

    Args:
        root: Of the path.
        path: Of the NetCDF file or the Zarr store.
        name: Of the product, where the cube does not tell it.

    Raises:
        RefusedError: If there is none.
        TerraFMError: If it cannot be opened.
        ValueError: Likewise.
    """
    attributes = cube_group(root / path).attrs
    properties = product_properties(attributes)
    says = from_properties(Said(), properties, "its own metadata") if properties else Said()
    held = attributes.get("stac_discovery")
    if isinstance(held, dict) and isinstance(held.get("id"), str):
        says = says.join(by_names(held["id"]))
    dates: dict[tuple[int | None, pd.Timestamp | None], Layout] = {}
    reason = "it holds no variable that is named as a band of Sentinel-1 or Sentinel-2"
    for group in _groups(root / path):
        data = cube_group(root / path, group)
        for variable in sorted(map(str, data.variables)):
            array = data[variable]
            axes = find_axes(array.dims)
            if not (axes.row and axes.column) or array.dtype.kind not in "iuf":
                if array.dtype.kind == "c" or "azimuth_time" in array.dims:
                    reason = "it is radar that is not geocoded: correct it for terrain first"
                continue
            place = f"{group}/{variable}" if group else variable
            times = (
                data[axes.time].values if axes.time in data.coords else np.array([None] * array.sizes.get(axes.time, 1))
            )
            for index, value in enumerate(np.atleast_1d(times)):
                number = index if axes.time else None
                time = (
                    None
                    if value is None or not np.issubdtype(np.asarray(value).dtype, np.datetime64)
                    else pd.Timestamp(value)
                )
                layout = dates.setdefault((number, time), Layout(path, name, named=True, says=says))
                _add(layout, BandSource(path, 1, place, number), data, variable, axes.band)
    found = [(key, layout) for key, layout in dates.items() if layout.bands or layout.stack]
    if not found:
        raise RefusedError(reason)
    for (_, time), layout in found:
        if time is not None:
            stamp = time.strftime("%Y%m%dT%H%M%S") if time.time() else time.strftime("%Y%m%d")
            layout.says = replace(
                layout.says, time=time, source={**layout.says.source, "time": "its dimension of time"}
            )
            layout.name = name if len(found) == 1 else f"{name}_{stamp}"
        yield layout


def _add(layout: Layout, source: BandSource, data: object, variable: str, dimension: str) -> None:
    """Adds a variable of a cube to the images of its date: a band, a mask, or several along a dimension."""
    array = data[variable]  # type: ignore[index]
    if dimension and array.sizes[dimension] > 1:
        if dimension not in array.coords:
            layout.stack = layout.stack or source
            return
        order = read_order([str(text) for text in array[dimension].values])
        if order.problem or not order.bands:
            layout.stack = layout.stack or source
            return
        layout.units |= {*order.units.values()}
        for group, places in ((layout.bands, order.bands), (layout.masks, order.masks)):
            group |= {band: replace(source, index=place + 1) for band, place in places.items() if band not in group}
        return
    name = read_name(variable)
    if name.band:
        layout.bands.setdefault(name.band, source)
        layout.units |= {name.unit} - {""}
    elif name.mask:
        layout.masks.setdefault(name.mask, source)


def _groups(path: Path) -> list[str]:
    """Lists the groups of a cube whose variables are looked at: finer ones first."""
    if not path.is_dir():
        return [""]
    found = []
    for base, folders, names in os.walk(path):
        folders.sort()
        if {".zgroup", "zarr.json"} & {*names} and any(
            (Path(base) / folder / file).is_file() for folder in folders for file in (".zarray", "zarr.json")
        ):
            found.append(PurePosixPath(Path(base).relative_to(path).as_posix()).as_posix().removeprefix("."))
    measured = [group for group in found if group.split("/")[0] == _MEASURED]
    return measured or found
