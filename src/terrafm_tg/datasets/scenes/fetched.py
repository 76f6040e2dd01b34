"""Scenes of a catalog: placed by the headers of their files, and the bytes of a part of them fetched together."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rasterio.crs import CRS
from rasterio.errors import RasterioError

from terrafm_tg.datasets.tiles.warp import needed_window
from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import Settings, Verdict
from terrafm_tg.utils.parallel import map_threads
from terrafm_tg.utils.remote import OF_THE_FILE, RemoteError
from terrafm_tg.utils.remote_file import RemoteFile, Span, block_spans

from .judged import judge_scenes
from .rasters import Raster, open_raster, steps
from .remote import remote_file
from .scene import Found, Scene
from .stac.catalog import StacScenes

#: A box (left, bottom, right, top) in a CRS.
Box = tuple[CRS, tuple[float, float, float, float]]
_THREADS = 16


def judge_catalog(
    catalog: StacScenes, settings: Settings, look_at: Callable[[Scene], tuple[float, ...] | None] | None = None
) -> list[tuple[Scene, Verdict]]:
    """Opens the files of a catalog's scenes and judges their pixels; those that cannot be used are named in a warning.

    Args:
        catalog: The scenes.
        settings: The user's word.
        look_at: Chooses the part of a scene whose pixels tell: west, south, east, north in degrees.

    Returns:
        Scenes with their place, and the box of the search as what is wanted, and verdicts.

    Raises:
        TerraFMError: If none can be used, evidence excludes each other, or a server cannot be read.
    """
    found = locate_catalog(catalog)
    if not found.scenes:
        raise TerraFMError(f"No scene of the catalog can be used; first {': '.join(found.refused[0])}")
    for sentence in found.said:
        warnings.warn(sentence, stacklevel=3)
    if found.refused:
        warnings.warn(f"{len(found.refused):,} items are left out, first {': '.join(found.refused[0])}", stacklevel=3)
    scenes = found.scenes
    looked_at = scenes if look_at is None else [replace(scene, wanted=look_at(scene)) for scene in scenes]
    judged = judge_scenes(catalog.root or Path(), looked_at, settings)
    return [(replace(scene, wanted=catalog.bbox), verdict) for scene, verdict in judged]


def locate_catalog(catalog: StacScenes) -> Found:
    """Opens the files of scenes that a catalog described: they place them, and may declare what items do not.

    Args:
        catalog: The scenes.

    Returns:
        Scenes with the grid of their finest band and the box of the search, and what cannot be used with the reason.

    Raises:
        RemoteError: If a server cannot be read.
    """
    root = catalog.root or Path()

    def locate(scene: Scene) -> Scene | str:
        try:
            with ExitStack() as stack:
                rasters = {b: stack.enter_context(open_raster(root, source)) for b, source in scene.bands.items()}
                return _placed(scene, rasters)
        except (RasterioError, ValueError, OSError) as error:
            if isinstance(error, RemoteError) and not isinstance(error, OF_THE_FILE):
                raise
            return str(error)

    scenes = [replace(scene, wanted=catalog.bbox) for scene in catalog.scenes]
    found = list(zip(scenes, map_threads(locate, scenes, _THREADS), strict=True))
    refused = [(scene.product, result) for scene, result in found if isinstance(result, str)]
    return Found(
        [result for _, result in found if isinstance(result, Scene)], [*catalog.refused, *refused], catalog.said
    )


def _placed(scene: Scene, rasters: dict[str, Raster]) -> Scene:
    """Completes a scene by the headers of its files.

    Raises:
        TerraFMError: If they contradict each other or the item.
    """
    if problem := next((raster.problem for raster in rasters.values() if raster.problem), ""):
        raise TerraFMError(f"{problem[0].upper()}{problem[1:]}.")
    codes = {raster.epsg for raster in rasters.values()}
    if len(codes) > 1 or None in codes:
        raise TerraFMError("Its files have no CRS with an EPSG code, or different ones.")
    finest = min(rasters.values(), key=lambda raster: raster.transform.a if raster.transform else math.inf)
    place = finest.transform
    assert place is not None
    if scene.transform is not None and scene.epsg is not None:
        apart = max(abs(a - b) for a, b in zip(place[:6], scene.transform[:6], strict=True))
        if scene.epsg != finest.epsg or apart > place.a or (scene.height, scene.width) != finest.shape:
            raise TerraFMError(
                f"Its item places it at {scene.transform.c:.10g}, {scene.transform.f:.10g} of EPSG:{scene.epsg} and "
                f"its files at {place.c:.10g}, {place.f:.10g} of EPSG:{finest.epsg}, which contradict each other."
            )
    tags = {rasters[band].declared(source.index) for band, source in scene.bands.items()}
    scales = {(tag.scale, tag.offset) for tag in tags}
    claims, source = scene.claims, dict(scene.claims.source)
    if len(scales) > 1:
        raise TerraFMError(f"Its bands declare different scales, such as {sorted(scales)[:2]}.")
    (scale, offset) = scales.pop()
    if (scale, offset) != (1.0, 0.0):
        said = (claims.scale or 1.0, claims.offset or 0.0)
        if claims.scale is not None and not all(map(math.isclose, said, (scale, offset))):
            raise TerraFMError(
                f"Its item has scale {said[0]:g} and offset {said[1]:g} and its files {scale:g} and {offset:g}, which "
                "contradict each other."
            )
        source |= dict.fromkeys(("scale", "offset"), "its tags")
        claims = replace(claims, scale=scale, offset=offset)
    if (nodata := next((tag.nodata for tag in tags if tag.nodata is not None), None)) is not None:
        claims = replace(claims, nodata=nodata)
    height, width = finest.shape
    return replace(
        scene, claims=replace(claims, source=source), epsg=finest.epsg, transform=place, height=height, width=width,
        steps=steps(rasters, finest),
    )  # fmt: skip


def needed_spans(scene: Scene, masks: Iterable[str], boxes: Sequence[Box]) -> list[tuple[RemoteFile, list[Span]]]:
    """Finds the bytes of a scene on a server that boxes need.

    Args:
        scene: The scene.
        masks: Names of the masks that will be read.
        boxes: The boxes.

    Returns:
        Its files, each once, with the spans of the blocks; of formats that do not tell, none.

    Raises:
        RemoteError: If a header cannot be read.
    """
    places: dict[str, set[int]] = {}
    for source in (*scene.bands.values(), *(scene.masks[name] for name in masks if name in scene.masks)):
        if "://" in source.path:
            places.setdefault(source.path, set()).add(source.index)

    def spans(entry: tuple[str, set[int]]) -> tuple[RemoteFile, list[Span]]:
        file, found = remote_file(entry[0]), list[Span]()
        with file.opened() as src:
            for crs, bounds in boxes:
                if (window := needed_window(src, crs, bounds)) is not None:
                    found += block_spans(src, window, entry[1])
        return file, found

    return map_threads(spans, [*places.items()], _THREADS)
