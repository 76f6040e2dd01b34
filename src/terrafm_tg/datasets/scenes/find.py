"""Sentinel scenes in a folder, found by TorchGeo's file conventions: SAFE folders, files per band, radar."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torchgeo.datasets import Sentinel1, Sentinel2

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.files import files_below

#: Units in which radar scenes come; amplitude is the root of power.
UNITS = ("linear", "dB", "amplitude")
_NAMED_UNITS = {"p": "linear", "d": "dB", "a": "amplitude"}  # in ASF's names
_IMAGES = (".jp2", ".tif", ".tiff")
_OPTICAL = re.compile(Sentinel2.filename_regex.format("10m"), re.VERBOSE)
_RTC = re.compile(Sentinel1.filename_regex, re.VERBOSE)
_PRODUCT = re.compile(r"S2[A-D]_MSI(?P<level>L1C|L2A)_\d{8}T\d{6}_N\d{4}_.*")
_BASELINE = re.compile(r"N\d{4}")
_CLOUD = re.compile(rb"Cloud_Coverage_Assessment>\s*(\d+\.?\d*)\s*<")
_TIME = re.compile(r"\d{8}T\d{6}")


@dataclass(frozen=True)
class NamedScene:
    """One scene of one sensor.

    Args:
        modality: ``s1rtc``, ``s2l1c`` or ``s2l2a``.
        product: Its name, for Sentinel-2 with the processing baseline.
        time: Of acquisition.
        files: Band names and files.
        unit: ``DN``, or of :data:`UNITS`.
        cloud_cover: Of the whole scene in percent, where its metadata tell.
    """

    modality: str
    product: str
    time: pd.Timestamp
    files: tuple[tuple[str, Path], ...]
    unit: str = "DN"
    cloud_cover: float | None = None


def find_scenes(folder: Path, radar_unit: str | None = None, baseline: str | None = None) -> list[NamedScene]:
    """Finds all usable scenes at any depth below a folder.

    Sentinel-2: files such as ``T33UUP_20210501T101031_B02_10m.jp2`` (L2A, in a folder per resolution) or
    ``T33UUP_20210501T101031_B02.jp2`` (L1C) of :class:`torchgeo.datasets.Sentinel2`, JPEG 2000 or GeoTIFF. Where a
    folder above them is named as a product (``S2A_MSIL2A_20210501T101031_N0300_..._.SAFE``), it gives level and
    baseline. Sentinel-1: files such as ``S1..._VV.tif`` with ``S1..._VH.tif`` beside, of
    :class:`torchgeo.datasets.Sentinel1`.

    Args:
        folder: Where to look.
        radar_unit: Unit of radar scenes, one of :data:`UNITS`; may be None where ASF's names say it.
        baseline: Processing baseline such as ``N0509`` of scenes without it in their folder's name.

    Returns:
        The scenes, by modality and name. Those that lack a band are left out with a warning.

    Raises:
        TerraFMError: If there is none, or a unit or baseline is missing, unknown, or not what a name says.
    """
    if radar_unit not in (None, *UNITS):
        raise TerraFMError(f"`radar_unit` must be {', '.join(map(repr, UNITS))}, got {radar_unit!r}.")
    if baseline is not None and not _BASELINE.fullmatch(baseline):
        raise TerraFMError(f"`baseline` must be N and four digits, such as 'N0509', got {baseline!r}.")
    if not folder.is_dir():
        raise TerraFMError(f"{folder} is no folder: give one with Sentinel-1 or Sentinel-2 scenes.")
    found: dict[tuple[str, str], NamedScene] = {}
    problems = []
    for scene in (*_optical(folder, baseline), *_radar(folder, radar_unit)):
        needed = MODALITIES[scene.modality]
        if missing := [band for band in needed.bands if band not in dict(scene.files)]:
            problems.append(f"{scene.product} lacks {', '.join(missing)}")
        elif (same := found.setdefault((scene.modality, scene.product), scene)) is not scene:
            problems.append(f"{scene.product} lies in {scene.files[0][1].parent} and {same.files[0][1].parent}")
    if not found:
        reason = f"; {problems[0]}" if problems else ""
        raise TerraFMError(
            f"No Sentinel scene below {folder}{reason}: expected files such as T33UUP_20210501T101031_B02_10m.jp2, "
            "T33UUP_20210501T101031_B02.jp2 or S1A_IW_20210501T051031_..._VV.tif with all their bands."
        )
    if problems:
        warnings.warn(f"{len(problems)} scenes below {folder} are left out, first: {problems[0]}.", stacklevel=3)
    return [found[key] for key in sorted(found)]


def _images(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in files_below(folder, *_IMAGES) if path.match(pattern))


def _optical(folder: Path, baseline: str | None) -> Iterator[NamedScene]:
    for path in _images(folder, Sentinel2.filename_glob.format("B02")):
        if (match := _OPTICAL.fullmatch(path.name)) is None:
            continue
        level = "L2A" if match["resolution"] else "L1C"
        above = (_PRODUCT.fullmatch(part.removesuffix(".SAFE")) for part in reversed(path.parts[:-1]))
        named = next(filter(None, above), None)
        if named is not None and named["level"] != level:
            raise TerraFMError(
                f"{path.name} is named as {level} and lies in {named[0]}: L2A files end in their resolution (_10m)."
            )
        if named is None and baseline is None:
            raise TerraFMError(
                f"No folder above {path} names its processing baseline, which tells whether it holds +1000 DN: set "
                "`baseline`, such as N0509 (N0400 and later hold it) or N0301."
            )
        product = named[0] if named else f"S2_MSI{level}_{match['date']}_{baseline}_T{match['tile']}"
        files = {band: _other_band(path, match, band) for band in Sentinel2.all_bands}
        held = tuple((band, file) for band, file in files.items() if file.is_file())
        cloud = _cloud_cover(path, level) if named else None
        yield NamedScene(f"s2{level.lower()}", product, pd.to_datetime(match["date"]), held, cloud_cover=cloud)


def _other_band(path: Path, match: re.Match[str], band: str) -> Path:
    """Finds the file of another band, as TorchGeo's class finds it: L2A names its resolution."""
    name, resolution = path.name, Sentinel2.resolutions[band]
    if not match["resolution"]:
        return path.with_name(name[: match.start("band")] + band + name[match.end("band") :])
    name = f"{name[: match.start('band')]}{band}_{resolution}{name[match.end('resolution') :]}"
    for parent in (path.parent.parent / f"R{resolution}", path.parent):  # COGs may lie in one folder
        if (parent / name).is_file():
            return parent / name
    return path.with_name(name)


def _cloud_cover(path: Path, level: str) -> float | None:
    """Reads the cloud cover from the product's own metadata, where they lie above the file."""
    file = next(filter(Path.is_file, (parent / f"MTD_MSI{level}.xml" for parent in path.parents)), None)
    found = file and _CLOUD.search(file.read_bytes())
    return float(found[1]) if found else None


def _radar(folder: Path, unit: str | None) -> Iterator[NamedScene]:
    for path in _images(folder, Sentinel1.filename_glob.format("VV")):
        stem, time = path.stem, _TIME.search(path.name)
        if not stem.endswith("VV") or time is None:
            continue
        match = _RTC.match(path.name)
        named = _NAMED_UNITS[match["scale"]] if match else None
        if named and unit and named != unit:
            raise TerraFMError(f"`radar_unit` is {unit!r}, but the name of {path.name} says {named!r}: leave it out.")
        if named is None and unit is None:
            raise TerraFMError(
                f"The name of {path.name} does not tell its unit: set `radar_unit` to 'linear' (power), 'dB' or "
                "'amplitude'."
            )
        bands = {band: path.with_name(f"{stem[:-2]}{band}{path.suffix}") for band in ("VV", "VH")}
        held = tuple((band, file) for band, file in bands.items() if file.is_file())
        yield NamedScene("s1rtc", stem[:-2].rstrip("_-"), pd.to_datetime(time[0]), held, named or unit or "")
