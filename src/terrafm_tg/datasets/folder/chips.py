"""Chips without a place on the ground: each gets one where nobody measures, to be indexed like others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from affine import Affine

from terrafm_tg.datasets.scenes.names import read_name
from terrafm_tg.datasets.scenes.said import by_folder
from terrafm_tg.datasets.scenes.scene import Scene
from terrafm_tg.datasets.tiles.table import MAX_TILE
from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import Verdict

#: CRS of chips: polar stereographic of the north. North of 85 degrees nobody measures, and there is no land cover.
EPSG = 32661
_CORNER = 2_050_000.0, 1_950_000.0  # meters east and north: beside the pole, far from 180 degrees
_RES, _STEP, _ROW = 0.05, 250.0, 1400  # meters of a pixel and between chips, so that none overlap; chips side by side


def place_chips(scenes: Sequence[tuple[Scene, Verdict]]) -> tuple[list[tuple[Scene, Verdict]], list[str]]:
    """Gives chips without a place one each; those of one name in the folders of several sensors share theirs.

    Returns:
        The scenes, and a sentence that says it, where there are any.
    """
    numbers = dict[str, int]()
    placed = []
    for scene, verdict in scenes:
        if scene.transform is None:
            number = numbers.setdefault(_chip_name(scene), len(numbers))
            if max(scene.height, scene.width) > MAX_TILE or number >= _ROW**2:
                raise TerraFMError(
                    f"{scene.files[0]} has no place on the ground and is {scene.height} x {scene.width} pixels: cut "
                    f"such images into chips of {MAX_TILE} at most, and take {_ROW**2:,} at most in a folder."
                )
            x, y = _CORNER[0] + _STEP * (number % _ROW), _CORNER[1] - _STEP * (number // _ROW)
            scene = replace(scene, epsg=EPSG, transform=Affine(_RES, 0, x, 0, -_RES, y), placed=False)
        placed.append((scene, verdict))
    count = sum(not scene.placed for scene, _ in placed)
    said = (
        f"{count:,} {'image has' if count == 1 else 'images have'} no place on the ground (chips): those of one name "
        f"are joined ({len(numbers):,} in all), and nothing is known of their land cover, climate and region."
    )
    return placed, [said] if numbers else []


def _chip_name(scene: Scene) -> str:
    """Names a chip by its path without what names its sensor, band or ending."""
    path = PurePosixPath(scene.files[0])
    parts = [part for part in path.parts[:-1] if by_folder(f"{part}/x")[0] is None]
    stem = read_name(path.stem).rest.replace("{}", "") if len(scene.files) > 1 else path.stem
    return "/".join([*parts, stem])
