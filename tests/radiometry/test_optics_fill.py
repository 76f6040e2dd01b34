"""A number that all bands share is fill only where it is not simply the brightest there is."""

import numpy as np
import pytest

from terrafm_tg.radiometry.optics import _find_common


@pytest.mark.parametrize(
    ("rows", "value", "rest", "fill"),
    [
        (20, 255, None, (255.0,)),  # among natural numbers
        (20, 4200, None, ()),  # numbers that were cut at the top
        (100, 1500, None, ()),  # one color all over
        (20, 400, 1500, ()),  # two of them
    ],
)
def test_fill_among_usual_numbers(rows, value, rest, fill):
    rng = np.random.default_rng(0)
    pixels = {
        band: np.full((100, 100), rest, np.uint16) if rest else rng.integers(200, 4000, (100, 100)).astype(np.uint16)
        for band in ("B02", "B03", "B04")
    }
    for values in pixels.values():
        values[:rows] = value
    assert _find_common(pixels, (0.0,)) == fill
