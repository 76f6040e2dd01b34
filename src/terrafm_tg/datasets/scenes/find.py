"""Scenes of Sentinel-1 and Sentinel-2 below a folder, as providers lay them out: names, folders, formats."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from rasterio.errors import RasterioError

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.radiometry import Settings
from terrafm_tg.utils.trust import zip_members

from .bursts import merge_bursts
from .cubes import cube_layouts
from .describe import Layout, RefusedError, StacksError, describe
from .names import RADAR, read_name
from .said import forget_metadata
from .scene import BandSource, Found, Scene

_IMAGES = (".tif", ".tiff", ".jp2", ".npy")
_FILES = (*_IMAGES, ".nc", ".nc4", ".cdf", ".zip")
_STORE = (".zgroup", ".zarray", ".zmetadata", "zarr.json")
_RESOLUTION = re.compile(r"(?<=\{\})_?([126]0)m\b")
_BY_RESOLUTION = re.compile(r"R[126]0m", re.IGNORECASE)
_NATIVE = dict(zip(MODALITIES["s2l2a"].bands, MODALITIES["s2l2a"].resolutions, strict=True)) | {"B10": 60}
_OURS = re.compile(r"(?i)^ESA_WorldCover|^climate\.tif$")


def find_scenes(
    root: str | os.PathLike[str], settings: Settings | None = None, folders: Mapping[str, str] | None = None
) -> Found:
    """Finds all scenes at any depth below a folder, also behind links and in zip files.

    Takes SAFE folders, files per band by the names of ESA, CDSE, Earth Search, Planetary Computer, ASF and OPERA, or by
    STAC's common names; stacks whose bands have names, or are in the usual order; NetCDF and Zarr cubes; EOPF products;
    and chips without a place. See ``docs/your_data.md``.

    Args:
        root: The folder.
        settings: The user's word: ``bands`` orders those of files, before their names.
        folders: Folders below the root by modality, and no others; where None, all are looked through, and usual names
            (``S1RTC``, ``s2a``, ...) tell the modality.

    Returns:
        The scenes, and what looks like an image and is none that can be used, with the reason.

    Raises:
        TerraFMError: If the folder, or one that was named, is missing.
    """
    root, settings = Path(root), settings or Settings()
    forget_metadata()
    if not root.is_dir():
        raise TerraFMError(f"{root} is no folder: give one with Sentinel-1 or Sentinel-2 images.")
    for name, folder in (folders or {}).items():
        if not (root / folder).is_dir():
            raise TerraFMError(f"{root / folder} is no folder: correct `folders` for {get_modality(name).name}.")
    chosen = {name: PurePosixPath(folder).as_posix() for name, folder in (folders or {"": "."}).items()}
    scenes, said = list[Scene](), list[str]()
    refused, minor = list[tuple[str, str]](), list[tuple[str, str]]()
    for modality, folder in chosen.items():
        files = list(scene_files(root, folder))
        with ThreadPoolExecutor(8) as pool:  # opening waits for the disk
            work = partial(_outcomes, root, settings, modality or None)
            for layout, result in pool.map(work, _layouts(root, files)):
                said += layout.said
                for outcome in result:
                    if isinstance(outcome, Scene):
                        scenes.append(outcome)
                    else:
                        (minor if outcome.minor else refused).append((layout.path.replace("{}", "*"), str(outcome)))
    scenes, doubles = _without_doubles(merge_bursts(scenes))
    return Found(sorted(scenes, key=_order), (refused + doubles) or ([] if scenes else minor), said)


def find_at(
    path: Path, settings: Settings | None = None, folders: Mapping[str, str] | None = None
) -> tuple[Path, Found]:
    """Finds scenes below a folder; those of a file or a product in its folder, whose name tells about it.

    Args:
        path: Folder, product (SAFE, zipped or not) or file.
        settings: As for :func:`find_scenes`.
        folders: Likewise.

    Returns:
        The root of their files, and the scenes.
    """
    if not path.exists() or (path.is_dir() and path.suffix.upper() != ".SAFE"):
        return path, find_scenes(path, settings, folders)
    root, name = path.resolve().parent, path.resolve().name
    if path.is_dir():
        return root, find_scenes(root, settings, folders or {"": name})
    found = find_scenes(root, settings, folders)
    own = [s for s in found.scenes if any(file == name or file.startswith(f"{name}/") for file in s.files)]
    refused = [(at, why) for at, why in found.refused if at == name or at.startswith(f"{name}/")]
    return root, Found(own, refused, found.said)


def _order(scene: Scene) -> tuple[str, str, str, tuple[str, ...]]:
    return scene.modality, str(scene.time), scene.product, scene.files


def scene_files(root: Path, folder: str = ".") -> Iterator[str]:
    """Yields the files below a folder that may hold pixels, in order, through links; of a Zarr store, its folder.

    Args:
        root: Of the names.
        folder: Below the root.
    """
    seen = set[str]()
    for base, folders, names in os.walk(root / folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        place = Path(base).relative_to(root)
        if set(_STORE) & {*names}:
            folders.clear()
            yield place.as_posix()
            continue
        # OSCD has each image twice: as it is, and in imgs_1_rect resampled without a georeference.
        folders[:] = sorted(x for x in folders if not (x.endswith("_rect") and x.removesuffix("_rect") in folders))
        for name in sorted(names):
            if name.lower().endswith(_FILES) and not _OURS.search(name):
                yield (place / name).as_posix()


def state_files(root: Path) -> Iterator[Path]:
    """Yields files whose change means that scenes below a root changed: images, and the metadata of Zarr stores."""
    for name in scene_files(root):
        path = root / name
        yield from (file for file in map(path.joinpath, _STORE) if file.is_file()) if path.is_dir() else [path]


def _layouts(root: Path, files: Iterable[str]) -> list[Layout]:
    """Groups files by what belongs together."""
    per_band: dict[str, list[tuple[str, str]]] = defaultdict(list)
    found = list[Layout]()
    for path in files:
        if path.lower().endswith(".zip"):
            inside = [f"{path}/{member}" for member in zip_members(root / path) if member.lower().endswith(_IMAGES)]
            found += _layouts(root, inside) if not path.lower().endswith(".zip/") and inside else []
        elif not path.lower().endswith(_IMAGES):
            found.append(Layout(path, PurePosixPath(path).stem, stack=BandSource(path), cube=True))
        else:
            key, band = _place(path)
            if key:
                per_band[key].append((band, path))
            elif band != "-":
                found.append(_stack(path))
    for key, held in per_band.items():
        bands = {band for band, _ in held if band in _NATIVE or band in RADAR}
        sure = any(read_name(_stem(path)).coded for band, path in held if band in bands) or len(bands) > 1
        if not bands or (not sure and "/{}" not in f"/{key}"):
            found += [_stack(path) for band, path in held if band in bands]
            continue
        layout = Layout(key, _product_name(key))
        for band, path in sorted(held, key=lambda x: (_fitness(*x), x[1])):
            group = layout.bands if band in bands else layout.masks
            group.setdefault(band, BandSource(path))
        layout.units = {unit for _, path in held if (unit := read_name(_stem(path)).unit)}
        found.append(layout)
    return sorted(found, key=lambda layout: layout.path)


def _stack(path: str) -> Layout:
    return Layout(path, _stem(path), stack=BandSource(path), named=False)


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _place(path: str) -> tuple[str, str]:
    """Returns the pattern of a product's files and the band or mask of this one.

    Without a pattern, the band is ``-`` for layers that are not read, and empty for a file by itself.
    """
    file = PurePosixPath(path)
    name = read_name(file.stem)
    folder = file.parent
    if name.band or (name.mask and "{}" in name.rest):
        at_end = name.rest.endswith("{}") or name.coded
        rest = _RESOLUTION.sub("", name.rest)
        folder = folder.parent if _BY_RESOLUTION.fullmatch(folder.name) else folder
        return (
            ((folder / f"{rest}{file.suffix}").as_posix(), name.band or name.mask) if at_end or name.mask else ("", "")
        )
    above = read_name(folder.name)  # a folder per band
    if above.band and above.rest == "{}" and above.coded and not name.layer:
        return (folder.parent / "{}" / file.name).as_posix(), above.band
    return "", "-" if name.layer or name.mask else ""


def _product_name(pattern: str) -> str:
    """Names a product after the pattern of its files, or their folder where nothing else is in it."""
    file = PurePosixPath(pattern)
    name = file.name[: -len(file.suffix)] if file.suffix else file.name
    bare = re.sub(r"[_.-]{2,}", "_", name.replace("{}", "")).strip("_-. ")
    return file.parent.name if not bare or re.fullmatch(r"(?i)iw.rtc|iw|ew", bare) else bare


def _fitness(band: str, path: str) -> float:
    """Ranks the files of one band: at its native resolution, else coarser, else finer."""
    found = re.search(r"_([126]0)m\b", _stem(path)) or re.search(r"(?i)/R([126]0)m/", path)
    if found is None or band not in _NATIVE:
        return float(found[1]) if found else 0
    res, native = int(found[1]), _NATIVE[band]
    return res / native if res >= native else 10 + native / res


def _outcomes(
    root: Path, settings: Settings, modality: str | None, layout: Layout
) -> tuple[Layout, list[Scene | RefusedError]]:
    """Returns the scenes of files that belong together, or the reasons why there are none."""
    try:
        if not layout.cube:
            return layout, [describe(root, settings, modality, layout)]
        parts = list(cube_layouts(root, layout.path, layout.name))
    except StacksError:
        parts = [_stack(source.path) for source in layout.bands.values()]
    except RefusedError as error:
        return layout, [error]
    except TerraFMError as error:
        return layout, [RefusedError(str(error).removeprefix(f"{root / layout.path} ").rstrip("."))]
    except (RasterioError, ValueError, OSError) as error:
        return layout, [RefusedError(f"it cannot be read ({error})")]
    return layout, [outcome for part in parts for outcome in _outcomes(root, settings, modality, part)[1]]


def _without_doubles(scenes: list[Scene]) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Leaves out what is there twice: a product, zipped and unpacked."""
    kept, doubles = dict[tuple[object, ...], Scene](), list[tuple[str, str]]()
    for scene in sorted(scenes, key=_order):
        grid = scene.epsg, scene.transform, scene.height, scene.width
        product = scene.claims.baseline is not None and scene.epsg is not None
        key = scene.modality, scene.product, scene.time, *grid, () if product else scene.files
        if (first := kept.setdefault(key, scene)) is not scene:
            doubles.append((scene.files[0], f"it is the same product as {first.files[0]}"))
    return list(kept.values()), doubles
