"""Images of a source: scenes of all sensors joined by place and date, or the tiles of an archive."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds

from terrafm_tg.datasets.majortom.grid import utm_zones
from terrafm_tg.datasets.scenes.fetched import judge_catalog
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pairs import ANCHORS, cover, products_table
from terrafm_tg.datasets.scenes.scene import Scene
from terrafm_tg.datasets.scenes.stac.catalog import is_catalog, open_stac
from terrafm_tg.datasets.scenes.stac.search import StacSearch, boxes_meet
from terrafm_tg.datasets.source import find_kind
from terrafm_tg.datasets.store.folder import MARKER
from terrafm_tg.datasets.tiles.outlines import BOX, boxes
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.radiometry import UNKNOWN, Settings, Verdict

from .images import Image, SceneImage, TileImage, opened_tiles, renamed, shape_of

#: Least share of an image that another sensor's scene must show to be joined.
_SOME = 0.01
_SAME_PASS = pd.Timedelta("12h")  # frames of one pass of a satellite; the next pass over a place is later
_METERS = 10.0
_CLOSE = 0.02  # of 10 m, by which a scene's pixels may differ from it


def find_images(
    source: str | os.PathLike[str],
    modalities: Sequence[str] | None = None,
    search: StacSearch | None = None,
    max_days: float | None = None,
    mask_clouds: bool = False,
    **settings: Any,
) -> list[Image]:
    """Finds the images of a source.

    An optical scene is joined with the nearest radar of its place; each scene that is in no image then is one of its
    own. Images lie on the grid of their optical scene where its pixels are of 10 m or a multiple in a projected CRS,
    otherwise on one of 10 m in the UTM zone of their middle.

    Args:
        source: Scene (file, SAFE, zipped or not), folder of scenes, archive of tiles with or without an index, packed
            store; or a STAC item, item collection, catalog or API, by path, address or name.
        modalities: Those to read; all that there are where None.
        search: Conditions for items of a STAC catalog; of scenes on disk only its box holds.
        max_days: Do not join images that are further apart in time.
        mask_clouds: Count pixels as missing that the product's own mask calls cloud or its shadow.
        settings: The user's word on pixels: ``folders``, ``bands``, ``unit``, ``scale``, ``offset``, ``nodata``, as for
            :class:`~terrafm_tg.datasets.SentinelFolder`; of archives, those of their dataset.

    Raises:
        TerraFMError: If there is none, evidence contradicts itself, or a setting is not for the source.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    names = None if modalities is None else [get_modality(name).name for name in modalities]
    path = Path(source)
    if not is_catalog(source):
        if not path.exists():
            raise TerraFMError(f"{path} does not exist: give a scene, a folder, an archive, a store or a STAC catalog.")
        if (path / MARKER).is_file() or (path.is_dir() and find_kind(path).__name__ != "SentinelFolder"):
            return _tiles(os.fspath(source), names, search, given)
    folders = given.pop("folders", None)
    word = Settings(**{"offset": "detect"} | given)
    if is_catalog(source):
        catalog = open_stac(source, search)
        root, judged = catalog.root or Path(), judge_catalog(catalog, word)
    else:
        root, judged = find_judged(path, word, folders)
    bbox = None if search is None or search.bbox is None else tuple(search.bbox)
    judged = [(scene, verdict) for scene, verdict in judged if names is None or scene.modality in names]
    return join_scenes(root, judged, bbox, max_days, mask_clouds)


def join_scenes(
    root: Path,
    judged: Sequence[tuple[Scene, Verdict]],
    bbox: tuple[float, ...] | None = None,
    max_days: float | None = None,
    cloudy: bool = False,
) -> list[Image]:
    """Joins scenes to images; see :func:`find_images`.

    Args:
        root: Of their files.
        judged: The scenes.
        bbox: West, south, east, north in degrees: images are cut to it, and scenes outside left out.
        max_days: Do not join images that are further apart in time.
        cloudy: Count pixels under clouds as missing.

    Raises:
        TerraFMError: If none has a place on the ground, or the offset of one is not known.
    """
    for scene, verdict in judged:
        if verdict.unit == "DN" and verdict.offset == UNKNOWN:
            raise TerraFMError(
                f"Whether {scene.files[0]} holds the +1000 DN of baseline 04.00 is not known: set `offset` to 0 or "
                "1000."
            )
    lost = [scene for scene, _ in judged if scene.transform is None]
    judged = [(scene, verdict) for scene, verdict in judged if scene.transform is not None]
    if lost:
        what = f"{len(lost):,} images have no place on the ground, first {lost[0].files[0]}"
        if not judged:
            raise TerraFMError(f"{what}: maps and tables of places need one; `terrafm predict` takes chips without.")
        warnings.warn(f"{what}: they are left out.", stacklevel=3)
    around = [_box(one) for one in judged]
    if bbox is not None:
        judged = [one for one, box in zip(judged, around, strict=True) if boxes_meet(box, list(bbox))]
    if not judged:
        raise TerraFMError("No image is left to look at: choose other modalities or another box.")
    return renamed([_image(root, group, bbox, cloudy) for group in _groups(judged, max_days)])


def _box(one: tuple[Scene, Verdict]) -> tuple[float, ...]:
    """Returns west, south, east, north of a scene in degrees."""
    around = boxes(products_table([one]).astype({"epsg": np.int32}))
    return tuple(float(around[side][0]) for side in BOX)


def _groups(
    judged: Sequence[tuple[Scene, Verdict]], max_days: float | None
) -> list[dict[str, list[tuple[Scene, Verdict]]]]:
    """Groups scenes: each that no other has taken, with the nearest of every other sensor over its place."""
    order = sorted(judged, key=lambda one: (ANCHORS.index(one[0].modality), str(one[0].time), one[0].product))
    tables, around = [products_table([one]) for one in order], [list(_box(one)) for one in order]
    taken: set[int] = set()
    limit = pd.Timedelta(days=36_500 if max_days is None else max_days)
    groups = []
    for i, (scene, verdict) in enumerate(order):
        if i in taken:
            continue
        taken.add(i)
        group = {scene.modality: [(scene, verdict)]}
        for name in ANCHORS[ANCHORS.index(scene.modality) + 1 :]:
            near = []
            for j in (j for j, (other, _) in enumerate(order) if other.modality == name):
                if _apart(scene, order[j][0]) <= limit and boxes_meet(tuple(around[i]), around[j]):
                    share = float(cover(tables[i], tables[j])[0])
                    near += [(_apart(scene, order[j][0]), -share, j)] * (share >= _SOME)
            if near := sorted(near):
                together = [j for _, _, j in near if _apart(order[near[0][2]][0], order[j][0]) <= _SAME_PASS]
                group[name] = [order[j] for j in together]
                taken.update(together)
        groups.append(group)
    return groups


def _apart(scene: Scene, other: Scene) -> pd.Timedelta:
    """Returns the time between two scenes; none where one is not known."""
    return pd.Timedelta(0) if scene.time is None or other.time is None else abs(scene.time - other.time)


def _image(
    root: Path, group: Mapping[str, Sequence[tuple[Scene, Verdict]]], bbox: tuple[float, ...] | None, cloudy: bool
) -> SceneImage:
    """Makes an image of a group of scenes, cut to a box."""
    anchor = next(iter(group.values()))[0][0]
    crs, transform, height, width = grid_of(anchor)
    if bbox is not None:
        transform, height, width = _cut(crs, transform, height, width, bbox)
    return SceneImage(
        name=anchor.product,
        crs=crs,
        transform=transform,
        height=height,
        width=width,
        products={name: [scene.product for scene, _ in group[name]] for name in MODALITIES if name in group},
        dates={
            name: [scene.time.isoformat() for scene, _ in group[name] if scene.time is not None]
            for name in MODALITIES
            if name in group
        },
        cloud=anchor.cloud_cover,
        root=root,
        scenes={name: tuple(group[name]) for name in MODALITIES if name in group},
        cloudy=cloudy,
    )


def grid_of(scene: Scene) -> tuple[str, Affine, int, int]:
    """Returns the grid of 10 m that a scene is looked at on: CRS, transform, height, width.

    Its own, where its pixels are squares of 10 m or a multiple; otherwise one in the UTM zone of its middle, whose
    corner lies on a multiple of 10 m.
    """
    assert scene.transform is not None
    crs, t = CRS.from_epsg(scene.epsg), scene.transform
    times = round(t.a / _METERS) if crs.is_projected else 0
    meters = crs.is_projected and crs.linear_units_factor[1] == 1.0
    if meters and times >= 1 and max(abs(t.a / times - _METERS), abs(-t.e / times - _METERS)) <= _CLOSE * _METERS:
        fine = t * Affine.scale(1 / times)
        return f"EPSG:{scene.epsg}", fine, scene.height * times, scene.width * times
    bounds = array_bounds(scene.height, scene.width, t)
    west, south, east, north = transform_bounds(crs, CRS.from_epsg(4326), *bounds, densify_pts=21)
    middle = (west + (east + 360 * (east < west))) / 2
    code = int(utm_zones((south + north) / 2, (middle + 180) % 360 - 180))
    box = transform_bounds(crs, CRS.from_epsg(code), *bounds, densify_pts=21)
    left, top = math.floor(box[0] / _METERS) * _METERS, math.ceil(box[3] / _METERS) * _METERS
    height, width = (max(math.ceil(side / _METERS), 1) for side in (top - box[1], box[2] - left))
    return f"EPSG:{code}", Affine(_METERS, 0, left, 0, -_METERS, top), height, width


#: Pixels that cells of a map and bands of every resolution end on, so that a cut scene keeps its grid.
_WHOLE = 48


def _cut(crs: str, transform: Affine, height: int, width: int, bbox: tuple[float, ...]) -> tuple[Affine, int, int]:
    """Cuts a grid to a box in degrees, outwards to whole tokens of the uncut one."""
    west, south, east, north = bbox
    middle = transform * (width / 2, height / 2)
    lon = transform_bounds(crs, CRS.from_epsg(4326), *middle, *middle)[0]
    east += 360 * (east < west)
    turn = 360 * round((lon - (west + east) / 2) / 360)
    left, bottom, right, top = transform_bounds(
        CRS.from_epsg(4326), crs, west + turn, south, east + turn, north, densify_pts=21
    )
    inverse = ~transform
    columns, rows = zip(inverse * (left, top), inverse * (right, bottom), strict=True)
    x0, x1, y0, y1 = (
        min(max(int(edge(value / _WHOLE)) * _WHOLE, 0), size)
        for edge, value, size in (
            (math.floor, columns[0], width), (math.ceil, columns[1], width),
            (math.floor, rows[0], height), (math.ceil, rows[1], height),
        )
    )  # fmt: skip
    return transform * Affine.translation(x0, y0), max(y1 - y0, 1), max(x1 - x0, 1)


def _tiles(root: str, names: list[str] | None, search: StacSearch | None, given: dict[str, Any]) -> list[Image]:
    """Makes an image of every tile of an archive."""
    known = {"modalities": tuple(names)} if names else {}
    settings = tuple(sorted((known | given).items()))
    dataset = opened_tiles(root, settings)
    table, images = dataset.table, list[Image]()
    dates = {m.name: table[f"date_{m.name}"] for m in dataset.modalities if f"date_{m.name}" in table}
    products = {m.name: table[f"product_{m.name}"] for m in dataset.modalities if f"product_{m.name}" in table}
    around = boxes(table, dataset.tile_size)
    for row in range(len(table)):
        box = tuple(float(around[side][row]) for side in BOX)
        if search is not None and search.bbox is not None and not boxes_meet(box, search.bbox):
            continue
        held = [m.name for m in dataset.modalities if table[f"has_{m.name}"].iat[row]]
        height, width = shape_of(dataset, row)
        where = f"{table['cell'].iat[row]}_{int(table['quadrant'].iat[row])}"
        images.append(
            TileImage(
                name=where, crs=f"EPSG:{int(table['epsg'].iat[row])}", transform=dataset._transform(row),
                height=height, width=width,
                products={n: [str(products[n].iat[row])] if n in products else [where] for n in held},
                dates={n: [pd.Timestamp(dates[n].iat[row]).isoformat()] for n in held
                       if n in dates and not pd.isna(dates[n].iat[row])},
                root=root, row=row, settings=settings,
            )
        )  # fmt: skip
    if not images:
        raise TerraFMError(f"No tile of {root} lies in the box: choose another.")
    return renamed(images)
