"""Bursts of OPERA's RTC-S1, each in files of its own: those of one acquisition are one scene."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd
from affine import Affine
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds

from .scene import Scene

_OPERA = re.compile(r"OPERA_L2_RTC-S1_(T\d{3})-\d{6}-IW\d_\d{8}T\d{6}Z_\d{8}T\d{6}Z_(S1[A-D]_\d+_v[\d.]+)")
_GAP = pd.Timedelta(60, "s")  # between bursts of one pass that lie beside each other: 3 seconds


def merge_bursts(scenes: Iterable[Scene]) -> list[Scene]:
    """Merges bursts of the same track and satellite that follow each other; other scenes stay as they are."""
    kept, passes = list[Scene](), defaultdict[tuple[str, str, tuple[str, ...]], list[Scene]](list)
    for scene in scenes:
        match = _OPERA.match(scene.product)
        if match and scene.time is not None and scene.transform is not None:
            passes[match[1], match[2], tuple(scene.bands)].append(scene)
        else:
            kept.append(scene)
    for (track, version, _), bursts in passes.items():
        bursts.sort(key=lambda scene: (scene.time, scene.product))
        group = [bursts[0]]
        for burst in [*bursts[1:], None]:
            if burst is not None and pd.Timestamp(burst.time) - pd.Timestamp(group[-1].time) <= _GAP:
                group.append(burst)
                continue
            kept.append(_merge(group, f"OPERA_L2_RTC-S1_{track}_{group[0].time:%Y%m%dT%H%M%S}Z_{version}"))
            group = [burst] if burst is not None else []
    return kept


def _merge(bursts: list[Scene], name: str) -> Scene:
    """Makes one scene of bursts, on the grid of most of them."""
    if len(bursts) == 1:
        return bursts[0]
    epsg = Counter(burst.epsg for burst in bursts).most_common(1)[0][0]
    first = next(burst for burst in bursts if burst.epsg == epsg)
    grid: Affine = first.transform
    boxes = []
    for burst in bursts:
        box = array_bounds(burst.height, burst.width, burst.transform)
        boxes.append(box if burst.epsg == epsg else transform_bounds(burst.epsg, epsg, *box, densify_pts=21))
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    left, bottom, right, top = min(lefts), min(bottoms), max(rights), max(tops)
    column, row = (left - grid.c) // grid.a, (top - grid.f) // grid.e  # down and left, to whole pixels
    column_end, row_end = -((grid.c - right) // grid.a), -((grid.f - bottom) // grid.e)
    return replace(
        first, product=name, time=bursts[0].time, claims=replace(first.claims, product=name), parts=tuple(bursts),
        transform=Affine(grid.a, 0, grid.c + column * grid.a, 0, grid.e, grid.f + row * grid.e),
        height=round(row_end - row), width=round(column_end - column),
    )  # fmt: skip
