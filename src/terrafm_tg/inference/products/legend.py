"""The legend of a map: names and colors of its classes."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES

#: Red, green, blue, 0 to 255.
type Color = tuple[int, int, int]

#: Of what is no class of its own.
_PALE: Color = (222, 222, 222)
_NOTHING = ("background", "no change", "none", "other", "unlabeled", "unlabelled", "unchanged")
#: Colors that are told apart well (Tol, "bright" and "vibrant"), for the first classes.
_FIRST: tuple[Color, ...] = (
    (68, 119, 170), (238, 102, 119), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119),
    (238, 119, 51), (0, 153, 136), (153, 153, 51), (136, 34, 85),
)  # fmt: skip
#: Words of names that WorldCover's colors suit, by the place in its legend.
_SPOKEN = {
    0: {"forest", "forests", "tree", "trees", "wood", "woodland"}, 1: {"shrub", "shrubs"},
    2: {"grass", "grassland", "meadow", "pasture"}, 3: {"crop", "crops", "cropland", "field", "fields", "farmland"},
    4: {"built", "urban", "town", "city", "settlement", "buildings"}, 5: {"bare", "sand", "rock", "desert"},
    6: {"snow", "ice", "glacier"}, 7: {"water", "lake", "river", "sea", "ocean", "pond"},
    8: {"wetland", "marsh", "swamp"}, 9: {"mangrove", "mangroves"},
}  # fmt: skip
_NOT = {"no", "non", "not", "without"}
_OCEAN: Color = (0, 60, 140)
_HEX = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Legend:
    """Names and colors, by class.

    Args:
        names: Printable, one per class.
        colors: Likewise.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]


def make_legend(
    names: Sequence[str], count: int, colors: Sequence[str] | Mapping[str, str] | None = None, more: str | None = None
) -> Legend:
    """Makes the legend of a map.

    Args:
        names: Of the classes; ``class 0`` and so on where there are none.
        count: Number of classes.
        colors: ``#rrggbb`` of each class, in order or by name. By default WorldCover's where all names are of its
            legend, and else colors that differ.
        more: Name of one more class: of none of the labels.

    Raises:
        TerraFMError: If a color is none, of no class, or missing from a list.
    """
    given = [_CONTROL.sub(" ", name).strip() for name in names] or [""] * count
    texts = [name or f"class {number}" for number, name in enumerate(given)]
    own = _default(texts)
    if isinstance(colors, Mapping):
        for name in colors:
            if name not in texts:
                raise TerraFMError(f"`colors` names {name!r}, which is no class: use {', '.join(texts[:20])}.")
        own = [_color(colors[name]) if name in colors else color for name, color in zip(texts, own, strict=True)]
    elif colors is not None:
        if len(colors) != len(texts):
            raise TerraFMError(f"`colors` has {len(colors)}, and there are {len(texts)} classes: give one for each.")
        own = [_color(color) for color in colors]
    if more is not None:
        texts, own = [*texts, more], [*own, _PALE]
    return Legend(tuple(texts), tuple(own))


def _default(names: Sequence[str]) -> list[Color]:
    """WorldCover's colors, or others that differ."""
    known = {
        name.lower(): color for name, color in zip(CLASS_NAMES, [*(c.color for c in CLASSES), _OCEAN], strict=True)
    }
    if all(name.lower() in known for name in names):
        return [known[name.lower()] for name in names]
    found: list[Color] = []
    for name in names:
        usual = _PALE if name.lower() in _NOTHING else _usual(name)
        if usual is not None and usual not in found:
            found.append(usual)
            continue
        number = 0
        while (color := _nth(number)) in found:
            number += 1
        found.append(color)
    return found


def _usual(name: str) -> Color | None:
    """The color in which maps show what a name speaks of; None where it says that it is not that, or nothing known."""
    words = set(re.findall(r"[a-z]+", name.lower()))
    if words & _NOT:
        return None
    return next((CLASSES[number].color for number, known in _SPOKEN.items() if words & known), None)


def _nth(number: int) -> Color:
    """The color of that number: beyond the first ones by the golden angle, in four shades."""
    if number < len(_FIRST):
        return _FIRST[number]
    number -= len(_FIRST)
    red, green, blue = colorsys.hls_to_rgb(0.61803398875 * number % 1, (0.4, 0.6, 0.3, 0.72)[number % 4], 0.65)
    return round(red * 255), round(green * 255), round(blue * 255)


def _color(text: str) -> Color:
    found = _HEX.fullmatch(text)
    if found is None:
        raise TerraFMError(f"`colors` has {text!r}: write a color as #rrggbb, such as #006400.")
    red, green, blue = (int(part, 16) for part in found.groups())
    return red, green, blue
