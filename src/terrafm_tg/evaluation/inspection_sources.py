"""Inspection of whatever a path holds: an archive, a packed store, a folder, a product or a file of scenes."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rasterio.errors import NotGeoreferencedWarning

from terrafm_tg.datasets import PackedTiles, SentinelFolder, TileDataset
from terrafm_tg.datasets.folder.dataset import tile_scenes
from terrafm_tg.datasets.scenes.fetched import locate_catalog
from terrafm_tg.datasets.scenes.find import find_at
from terrafm_tg.datasets.scenes.judged import judge_scenes
from terrafm_tg.datasets.scenes.scene import Scene, files_to_columns
from terrafm_tg.datasets.scenes.stac.catalog import CATALOGS, ITEMS, StacScenes, image_sources, open_stac, read_items
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.datasets.source import find_kind
from terrafm_tg.datasets.store.folder import MARKER
from terrafm_tg.datasets.tiles.outlines import is_geographic
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.radiometry import Settings, Verdict
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, check_arguments, checked

from .inspection import Inspection, Look, combinations, days_apart, describe_images, images_of, look_at


@checked(tile_size=COUNT)
def inspect_source(
    root: str | os.PathLike[str], tile_size: int | None = None, search: StacSearch | None = None, **settings: Any
) -> Inspection:
    """Finds out what a path holds and how its pixels are read, and looks at some tiles of each sensor.

    Args:
        root: Archive, packed store, folder of scenes, product (SAFE, zipped or not), single file; or a STAC item, item
            collection, catalog or API, by path, address or name (``planetary-computer``, ``earth-search``).
        tile_size: Edge of a tile in 10 m pixels; where None, as it would be indexed.
        search: Conditions on the items of a catalog.
        **settings: Of the dataset that reads it, such as ``offset`` of :class:`~terrafm_tg.datasets.SentinelFolder`.

    Returns:
        What was understood; ``problem`` says why it cannot be trained on.

    Raises:
        TerraFMError: If there is nothing at the path, or a setting is not for what lies there.
    """
    path = Path(root)
    given = {name: value for name, value in ({"tile_size": tile_size} | settings).items() if value is not None}
    catalog = str(root) in CATALOGS or "://" in str(root) or (path.suffix in (".json", ".geojson") and path.is_file())
    if not catalog and not path.exists():
        raise TerraFMError(f"{path} does not exist: give an archive, a folder or a file of scenes.")
    if search is not None and not catalog:
        raise TerraFMError(
            f"A box, dates and the like choose from a STAC catalog, which {path} is not: leave them out."
        )
    store = not catalog and (path / MARKER).is_file()
    kind = SentinelFolder if catalog else PackedTiles if store else find_kind(path)
    if stray := next((name for name in given if name not in signature(kind).parameters), None):
        raise TerraFMError(f"`{stray}` is no setting for {path}, which is read by {kind.__name__}: leave it out.")
    check_arguments(getattr(kind, "__init__"), given, max_days=NOT_NEGATIVE)  # noqa: B009
    found = Inspection(os.fspath(root))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # chips without a place are said by the reader
        if kind is SentinelFolder:
            found = _scenes(found, open_stac(root, search) if catalog else path, given)
        else:
            found = _archive(found, kind, path, given)
    sentences = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
    return replace(found, said=[*found.said, *dict.fromkeys(sentences)])


def _archive(found: Inspection, kind: Callable[..., TileDataset], path: Path, given: Mapping[str, Any]) -> Inspection:
    """Inspects an archive of a known layout."""
    known: Any = signature(kind).parameters
    if "tile_size" in known and "tile_size" not in given:
        given = {**given, "tile_size": getattr(kind, "find_tile_size")(path)}  # noqa: B009
    try:
        return _look(found, kind(path, **given))
    except TerraFMError as error:
        found = replace(found, problem=str(error))
    try:  # the offset alone may be unknown
        return _look(found, kind(path, **given, harmonize=False)) if "harmonize" in known else found
    except TerraFMError:
        return found


def _look(found: Inspection, dataset: TileDataset) -> Inspection:
    """Looks at the tiles of a dataset, and describes its images where that is not done yet."""
    looks, problems = list[Look](), [found.problem] if found.problem else []
    for modality in dataset.modalities:
        try:
            looks.append(look_at(dataset, modality, beside=looks[0].row if looks else None))
        except TerraFMError as error:
            problems.append(str(error))
    kind, table = type(dataset).__name__, dataset.table
    images = images_of(table)
    sensors, used = found.sensors or describe_images(images, kind), images["modality"].value_counts()
    tiles = {name: int(table[f"has_{name}"].sum()) if f"has_{name}" in table else 0 for name in sensors}
    sizes = table[["height", "width"]].to_numpy() if "height" in table else np.array(dataset.tile_size)
    doubts = [f"{look.missing:.0%} of the pixels of {look.modality} missing" for look in looks if look.missing > 0.25]
    if sizes.min(axis=None) < PATCH_SIZE:
        doubts.append(f"tiles of {sizes.min(axis=None)} px smaller than one patch of the encoder ({PATCH_SIZE} px)")
    return replace(
        found,
        kind=kind,
        tiles=len(dataset),
        tile_sizes=tuple(dict.fromkeys(map(int, (sizes.min(axis=None), sizes.max(axis=None))))),
        sensors={
            name: sensor | {"tiles": tiles[name], "unused": sensor["images"] - int(used.get(name, 0))}
            for name, sensor in sensors.items()
        },
        together=combinations(table),
        days=days_apart(table),
        looks=looks,
        doubts=[*found.doubts, *doubts],
        problem=problems[0] if problems else "",
    )


def _scenes(found: Inspection, source: Path | StacScenes, given: dict[str, Any]) -> Inspection:
    """Inspects scenes, of which some may be refused or contradict themselves while others are understood."""
    given = {"remote": False} | given
    folders = given.pop("folders", None)
    joining = {name: given.pop(name) for name in ("max_days", "join", "small_images") if name in given}
    tile_size = given.pop("tile_size", None) or SentinelFolder.find_tile_size(Path())
    reading = {name: given.pop(name) for name in ("ambiguous_offset", "mask_clouds", "remote") if name in given}
    try:
        settings = Settings(**given)
        if isinstance(source, Path) and (source / ITEMS).is_file():
            source = read_items(source / ITEMS, image_sources(reading["remote"]))
        elif isinstance(source, StacScenes):  # the user named the catalog, and so the places of its images
            reading["remote"] = [*source.sources]
        if isinstance(source, StacScenes):
            root, scenes = source.root or Path(), locate_catalog(source)
        else:
            root, scenes = find_at(source, settings, folders)
        judged, contradictions = _judge(root, scenes.scenes, settings)
        found = replace(
            found,
            sensors=describe_images(_images(judged, [scene for scene, _ in contradictions], settings)),
            contradictions=[(scene.files[0], sentence) for scene, sentence in contradictions],
            refused=scenes.refused,
            said=scenes.said,
            problem=_first_problem(contradictions, len(judged)),
        )
        if not judged:
            return replace(found, problem=found.problem or _nothing(found))
        bbox = source.bbox if isinstance(source, StacScenes) else None
        table = tile_scenes(judged, tile_size, **joining, bbox=bbox)
        found = _used(found, _images(judged, [], settings), table)
    except TerraFMError as error:
        return replace(found, problem=str(error))
    try:
        return _look(found, SentinelFolder(root, tile_size=tile_size, index=table, **reading))
    except TerraFMError as error:
        found, reading = replace(found, problem=found.problem or str(error)), {"remote": reading["remote"]}
    return _look(found, SentinelFolder(root, tile_size=tile_size, index=table, harmonize=False, **reading))


def _images(judged: Sequence[tuple[Scene, Verdict]], unsettled: Sequence[Scene], settings: Settings) -> pd.DataFrame:
    """Lists scenes as :func:`describe_images` takes them; those without a verdict, too."""
    rows = []
    for scene, verdict in [*judged, *((scene, None) for scene in unsettled)]:
        order = sorted(scene.bands, key=lambda band: scene.bands[band].index)
        by = scene.claims.source.get("bands", f"their usual order ({', '.join(order)})")
        known = MODALITIES[scene.modality]
        bands = [band for band in (*known.bands, *known.extra) if band in scene.bands]
        rows.append({
            "modality": scene.modality, "path": files_to_columns(scene)[0].replace("{}", "*"), "product": scene.product,
            "date": scene.time, "bands": " ".join(bands), "epsg": scene.epsg, "cloud": scene.cloud_cover,
            "bands_by": "`bands`" if settings.of("bands", scene.modality) else by,
            "pixel": _pixel(scene), "masks": ", ".join(scene.masks) or None,
            "verdict": None if verdict is None else verdict.to_json(),
            "offset": None if verdict is None else verdict.offset,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["modality"])


def _first_problem(contradictions: Sequence[tuple[Scene, str]], others: int) -> str:
    if not contradictions:
        return ""
    fix = ", which then holds for all images, or take this one away." if others else "."
    return contradictions[0][1].removesuffix(".") + fix


def _used(found: Inspection, images: pd.DataFrame, table: pd.DataFrame) -> Inspection:
    """Describes the images that are in tiles, and counts the others."""
    held = images_of(table)
    keys = [
        pd.MultiIndex.from_arrays([
            x["modality"], x["path"].astype(str).str.replace("{}", "*"), x["product"].astype(str),
            pd.to_datetime(x["date"]).astype("datetime64[us]").astype("int64"),
        ])
        for x in (images, held)
    ]  # fmt: skip
    used = images[keys[0].isin(keys[1])]
    sensors, doubts = describe_images(used), list[str]()
    for name, sensor in found.sensors.items():
        left_out = sensor["images"] - sensors.setdefault(name, sensor | {"images": 0})["images"]
        sensors[name]["images"] = sensor["images"]
        if left_out:
            doubts.append(f"{left_out:,} of {sensor['images']:,} images of {name} left out")
    if enlarged := table.attrs.get("pairing", {}).get("enlarged", 0):
        doubts.append(f"pixels of {enlarged:,} images enlarged to 10 m")
    return replace(found, sensors={name: sensors[name] for name in found.sensors}, doubts=doubts)


def _pixel(scene: Scene) -> str | None:
    """Says the pixel size of a scene's finest band as its georeference has it, which may be wrong."""
    if scene.transform is None or scene.epsg is None:
        return None
    size = -scene.transform.e
    return f"about {size * 111_320:.0f} m, in degrees" if is_geographic(scene.epsg) else f"{size:.3g} m"


def _nothing(found: Inspection) -> str:
    """Says that there is no usable image, and what is wrong with the first one that was refused."""
    reason = "none of its files ends in .tif, .jp2, .npy, .nc or .zip, and no folder is a SAFE product or a Zarr store"
    if found.refused:
        reason = f"{found.refused[0][0]}: {found.refused[0][1]}".rstrip(".")
    return (
        f"No image of Sentinel-1 or Sentinel-2 in {found.root} can be used ({reason}): docs/your_data.md lists what is "
        "taken."
    )


def _judge(
    root: Path, scenes: Sequence[Scene], settings: Settings
) -> tuple[list[tuple[Scene, Verdict]], list[tuple[Scene, str]]]:
    """Judges all scenes together, or where some contradict themselves, the others.

    Returns:
        Scenes with verdicts, and each scene that contradicts itself with the sentence that says so.
    """
    if not scenes:
        return [], []
    try:
        return judge_scenes(root, scenes, settings), []
    except TerraFMError as error:
        together = str(error)
    right, contradictions = [], []
    for scene in scenes:
        try:
            judge_scenes(root, [scene], settings)
        except TerraFMError as error:
            contradictions.append((scene, str(error)))
        else:
            right.append(scene)
    if not contradictions:
        return [], [(scenes[0], together)]
    judged, more = _judge(root, right, settings)
    return judged, contradictions + more
