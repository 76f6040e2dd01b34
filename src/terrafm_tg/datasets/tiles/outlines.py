"""Footprints of tiles in longitude and latitude, where longitude is a circle and poles have area."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray

#: Columns of a tile table: the box around each footprint in EPSG:4326.
BOX = ("xmin", "ymin", "xmax", "ymax")
#: Columns of which a footprint is computed; the last four where tiles are not of one size.
GRID = ("epsg", "x", "y", "xres", "yres", "height", "width")
_CHUNK = 1 << 18  # rows whose footprints are computed at once
_POLAR = 85.5  # degrees of latitude beyond which edges are not straight in longitude and latitude,
_WIDE = 0.2  # where they are so many degrees of longitude apart; Major-TOM ends before
_STEPS = 32  # points along such an edge
_AT_POLE = 90 - 1e-7  # a centimeter off


def outlines(table: pd.DataFrame, tile_size: int | None = None) -> NDArray:
    """Returns footprints in EPSG:4326 of north-up grids.

    Args:
        table: ``epsg``, ``x`` and ``y`` of the upper left corner; ``xres``, ``yres``, ``height``, ``width``
            where they are not ``tile_size`` pixels of 10 m.
        tile_size: Edge in 10 m pixels.

    Returns:
        (n,) polygons, that begin at -180 degrees or more. One that 180 degrees cuts goes on beyond; one around a pole
        goes from -180 to 180 degrees and up to it.
    """
    return np.concatenate([_polygons(*part) for part in _rings(table, tile_size)])


def boxes(table: pd.DataFrame, tile_size: int | None = None) -> dict[str, NDArray]:
    """Returns the columns ``BOX``: the boxes around :func:`outlines`, which are not kept."""
    parts = []
    for rings, polar in _rings(table, tile_size):
        part = np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)
        part[list(polar)] = shapely.bounds(list(polar.values())).reshape(-1, 4)
        parts.append(part)
    return dict(zip(BOX, np.concatenate(parts).T.copy(), strict=True))


def _polygons(rings: NDArray, polar: dict[int, shapely.Polygon]) -> NDArray:
    polygons = shapely.polygons(rings)
    polygons[list(polar)] = list(polar.values())
    return polygons


def edges(table: pd.DataFrame, tile_size: int | None) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Returns left, top, right and bottom (n,) of the tiles of a table, each in its own CRS."""
    left, top = table["x"].to_numpy(np.float64), table["y"].to_numpy(np.float64)
    if "xres" in table or tile_size is None:
        right = left + (table["width"] * table["xres"]).to_numpy()
        return left, top, right, top - (table["height"] * table["yres"]).to_numpy()
    return left, top, left + tile_size * 10.0, top - tile_size * 10.0


def _rings(table: pd.DataFrame, tile_size: int | None) -> Iterator[tuple[NDArray, dict[int, shapely.Polygon]]]:
    """Yields the corners of some tiles after the other, (n, 4, 2), and the outlines of those at a pole."""
    for start in range(0, max(len(table), 1), _CHUNK):
        part = table.iloc[start : start + _CHUNK]
        left, top, right, bottom = edges(part, tile_size)
        x, y = np.stack([left, right, right, left], axis=1), np.stack([top, top, bottom, bottom], axis=1)
        rings, epsg = np.empty((len(part), 4, 2)), part["epsg"].to_numpy()
        for code in np.unique(epsg):
            here = epsg == code
            rings[here] = np.stack(transformer(f"EPSG:{code}", 4326).transform(x[here], y[here]), axis=-1)
        split = np.ptp(rings[..., 0], axis=1) > 180
        rings[split, :, 0] %= 360
        rings[..., 0] -= 360 * np.floor((rings[..., 0].min(axis=1, keepdims=True) + 180) / 360)
        far = np.flatnonzero((np.abs(rings[..., 1]).max(axis=1) > _POLAR) & (np.ptp(rings[..., 0], axis=1) > _WIDE))
        box = np.column_stack([left, bottom, right, top])
        polar = {row: _polar(int(epsg[row]), *box[row]) for row in far.tolist() if not is_geographic(int(epsg[row]))}
        yield rings, polar


def _polar(epsg: int, left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    """Computes the footprint of one tile near a pole, or around it."""
    to_lonlat = transformer(f"EPSG:{epsg}", 4326)
    sign = np.sign(to_lonlat.transform((left + right) / 2, (bottom + top) / 2)[1])
    pole = to_lonlat.transform(0, sign * 90, direction="INVERSE")
    # with a corner where the pole lies on an edge
    x = np.union1d(np.linspace(left, right, _STEPS), np.clip(pole[0], left, right))
    y = np.union1d(np.linspace(bottom, top, _STEPS), np.clip(pole[1], bottom, top))
    down, up = np.full(len(x) - 1, bottom), np.full(len(x) - 1, top)
    start, end = np.full(len(y) - 1, left), np.full(len(y) - 1, right)
    x, y = np.concatenate([x[:-1], end, x[:0:-1], start]), np.concatenate([down, y[:-1], up, y[:0:-1]])
    lon, lat = to_lonlat.transform(x, y)
    if left < pole[0] < right and bottom < pole[1] < top:
        order = np.argsort(lon)
        lon, lat = lon[order], lat[order]
        cut = np.interp(180, [lon[-1], lon[0] + 360], [lat[-1], lat[0]])
        lon, lat = [-180, *lon, 180, 180, -180], [cut, *lat, cut, sign * 90, sign * 90]
        return shapely.Polygon(zip(lon, lat, strict=True))
    if (np.abs(lat) > _AT_POLE).any():  # there, every longitude is: the footprint has an edge along the pole
        at = int(np.abs(lat).argmax())
        lon, lat = np.roll(lon, -at)[1:], np.roll(lat, -at)[1:]
        lon = np.unwrap(lon, period=360)
        lon, lat = np.append(lon, lon[[-1, 0]]), np.append(lat, [sign * 90, sign * 90])
    else:
        lon = np.unwrap(lon, period=360)
    lon -= 360 * np.floor((lon.min() + 180) / 360)
    return shapely.Polygon(np.column_stack([lon, lat]))


def turned(lon: ArrayLike, west: ArrayLike) -> NDArray[np.float64]:
    """Returns longitudes at that turn of the globe that lies less than one east of ``west``; exact where it is so."""
    lon = np.asarray(lon, dtype=np.float64)
    return lon - 360 * np.floor((lon - np.asarray(west)) / 360)


def middle(x: slice, is_angle: bool) -> float:
    """Returns the middle of a slice; of longitudes also of one from the west of 180 degrees to the east of it."""
    return (x.start + x.stop + 360 * (is_angle and x.stop < x.start)) / 2


def to_zones(lon: NDArray, lat: NDArray, epsg: NDArray) -> tuple[NDArray, NDArray]:
    """Converts places to x and y in the CRS that each has, (n,) or (n, k) for (n,) codes."""
    return _by_zone(lon, lat, epsg, "FORWARD")


def from_zones(x: NDArray, y: NDArray, epsg: NDArray) -> tuple[NDArray, NDArray]:
    """Converts x and y in the CRS that each place has to longitude and latitude, (n,) or (n, k) for (n,) codes."""
    return _by_zone(x, y, epsg, "INVERSE")


def _by_zone(x: NDArray, y: NDArray, epsg: NDArray, direction: str) -> tuple[NDArray, NDArray]:
    to_x, to_y = np.empty(x.shape), np.empty(x.shape)
    for code in np.unique(epsg):
        here = epsg == code
        to_x[here], to_y[here] = transformer("EPSG:4326", int(code)).transform(x[here], y[here], direction=direction)
    return to_x, to_y


@lru_cache(maxsize=256)
def transformer(crs: str, epsg: int) -> pyproj.Transformer:
    """Returns pyproj's transformer, x before y."""
    return pyproj.Transformer.from_crs(crs, epsg, always_xy=True)


@lru_cache(maxsize=256)
def is_geographic(epsg: int) -> bool:
    """Tells whether the coordinates of a CRS are longitude and latitude."""
    return bool(pyproj.CRS.from_epsg(epsg).is_geographic)
