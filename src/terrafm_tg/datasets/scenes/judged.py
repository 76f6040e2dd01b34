"""Scenes with the verdict on their pixels, which one judge finds for all of them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rasterio.transform import array_bounds
from shapely import box

from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import OFFSET, UNKNOWN, OffsetError, Settings, Verdict, judge, native, settle
from terrafm_tg.utils.parallel import map_threads

from .find import find_at
from .pixels import PLACES, WINDOW, telling_pixels
from .scene import Scene

_SAME = 0.5  # of the union of two images that they share, which then show one place


def find_judged(
    path: Path, settings: Settings, folders: Mapping[str, str] | None = None
) -> tuple[Path, list[tuple[Scene, Verdict]]]:
    """Finds the scenes below a folder and judges them; those that cannot be used are named in a warning.

    Args:
        path: The folder, or a single product or file.
        settings: The user's word.
        folders: As for :func:`~.find.find_scenes`.

    Returns:
        The root of their files, and scenes with verdicts.

    Raises:
        TerraFMError: If there is none, a setting is wrong, or evidence excludes each other.
    """
    root, found = find_at(path, settings, folders)
    if not found.scenes:
        count = len(found.refused)
        reason = f"{count:,} images, first {': '.join(found.refused[0])}" if count else "it holds no image"
        raise TerraFMError(
            f"No scene of Sentinel-1 or Sentinel-2 below {path} can be used ({reason}): docs/your_data.md has what is "
            "taken, and how."
        )
    judged = judge_scenes(root, found.scenes, settings)
    for sentence in found.said[:1]:
        warnings.warn(sentence, stacklevel=3)
    if found.refused:
        count, first = len(found.refused), ": ".join(found.refused[0])
        warnings.warn(f"{count:,} images below {path} are left out, first {first}.", stacklevel=3)
    return root, judged


def judge_scenes(root: Path, scenes: Sequence[Scene], settings: Settings | None = None) -> list[tuple[Scene, Verdict]]:
    """Finds how the numbers of each scene are to be read, by what is said of them and by themselves.

    Where the pixels in its middle do not tell the offset of a scene, those of other places in it do, and the L1C scene
    beside an L2A scene, of the same place and day: what metadata say of it is then not taken at its word.

    Args:
        root: Of their files.
        scenes: The scenes.
        settings: The user's word, which decides a contradiction.

    Returns:
        Each scene, of the modality of its verdict, with that.

    Raises:
        TerraFMError: If evidence excludes each other, or numbers can be of no unit: naming the setting that decides.
    """

    def alone(scene: Scene) -> Verdict:
        verdict = judge(scene.claims, telling_pixels(root, scene), settings)
        if _proved(verdict, settings) or max(scene.height, scene.width) <= WINDOW or "://" in scene.files[0]:
            return verdict
        for place in PLACES[1:]:  # the middle is all cloud, snow or sand
            try:
                other = judge(scene.claims, telling_pixels(root, scene, [place]), settings)
            except OffsetError:
                raise
            except TerraFMError:  # of its other bands: the middle tells of those
                continue
            if other.seen and other.modality == verdict.modality:
                return other
        return verdict

    verdicts = map_threads(alone, scenes, 4)
    judged = [
        (replace(scene, modality=verdict.modality), verdict) for scene, verdict in zip(scenes, verdicts, strict=True)
    ]
    known = [(s, v) for s, v in judged if v.modality == "s2l1c" and v.offset != UNKNOWN]
    for place, (scene, verdict) in enumerate(judged):
        if verdict.modality == "s2l2a" and not _proved(verdict, settings):
            partner = next((pair for pair in known if _beside(scene, pair[0])), None)
            if partner is not None:
                pixels = {b: native(x, partner[1], None, True) for b, x in telling_pixels(root, partner[0]).items()}
                judged[place] = scene, judge(scene.claims, telling_pixels(root, scene), settings, pixels)
    settled = settle([scene.claims for scene, _ in judged], [verdict for _, verdict in judged])
    return [(scene, verdict) for (scene, _), verdict in zip(judged, settled, strict=True)]


def _proved(verdict: Verdict, settings: Settings | None) -> bool:
    """Tells if no more evidence of a scene's offset is needed: radar, pixels that tell, or the user's word."""
    told = settings is not None and settings.of("offset", verdict.modality) in (0, OFFSET)
    return verdict.unit != "DN" or verdict.seen or told


def _beside(scene: Scene, other: Scene) -> bool:
    """Tells if two scenes show one place on one day, as far as days are known."""
    if scene.epsg != other.epsg or scene.transform is None or other.transform is None:
        return False
    apart = abs(scene.time - other.time) if scene.time is not None and other.time is not None else pd.Timedelta(0)
    a, b = (box(*array_bounds(s.height, s.width, s.transform)) for s in (scene, other))
    shared = a.intersection(b).area
    return bool(apart <= pd.Timedelta(1, "D") and shared >= _SAME * (a.area + b.area - shared) and np.isfinite(shared))
