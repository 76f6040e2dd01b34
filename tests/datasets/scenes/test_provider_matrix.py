"""Every provider's files with every baseline, the offset applied or not, metadata true, absent or lying.

Each case ends in the exact pixels, or in a refusal whose sentence names the setting that decides; never in others.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import providers as p
import pytest
from rasterio.crs import CRS

from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pixels import read_tile
from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import UNKNOWN, Settings

BASELINES = (209, 301, 400, 511, 9999)
AT_TEN = ("earth_engine", "openeo", "stack")
RUNS = [(name, False) for name in p.OPTICAL_WRITERS] + [(name, True) for name in p.OPTICAL_WRITERS if name != "eopf"]
DOCS = Path(__file__).parents[3] / "docs/your_data.md"


def cases():
    """Yields the offset that pixels hold, and claims on them: baseline, and that the offset is taken off."""
    for offset in (0, 1000):
        yield "absent", offset, None, None
        for baseline in BASELINES:
            usual = 1000 if baseline >= 400 else 0
            if offset == usual or baseline == 9999:
                yield "true", offset, baseline, False
            else:
                yield "lying", offset, baseline, False
            if usual:  # taken off, it says
                yield ("lying" if offset else "true"), offset, baseline, True


def write(root, provider, image):
    if provider == "safe":
        return p.safe(root, image, driver="GTiff", metadata=image.baseline is not None)
    if provider == "earth_engine":
        return p.earth_engine(root, image, harmonized=bool(image.applied))
    return p.OPTICAL_WRITERS[provider](root, image)


def outcome(root, image, provider, offset):
    try:
        _, ((scene, verdict),) = find_judged(root, Settings())
    except TerraFMError as error:
        return str(error)
    if verdict.offset == UNKNOWN:  # what datasets ask for
        return "set `offset`"
    size, crs = (scene.height, scene.width), CRS.from_epsg(scene.epsg)
    groups = read_tile(root, scene, verdict, crs, scene.transform, size, harmonize=True)
    for resolution, expected in p.native_groups(image, "s2l2a", provider in AT_TEN).items():
        np.testing.assert_array_equal(groups[resolution], expected - np.uint16(offset))
    return "exact"


@pytest.fixture(scope="module")
def counted():
    return {}


@pytest.mark.parametrize(("provider", "snow"), RUNS)
def test_exact_or_refused(tmp_path, counted, provider, snow):
    """Over land, whose dark pixels tell the offset; and over snow, where metadata alone do, and lies go unnoticed."""
    found = Counter()
    for number, (said, offset, baseline, applied) in enumerate(cases()):
        if snow and (said == "lying" or (provider == "safe" and not offset and baseline in (400, 511, 9999))):
            continue  # a SAFE folder's metadata cannot say that the offset is taken off
        image = p.optical(60, offset + 5000 * snow, baseline=baseline, applied=applied)
        root = tmp_path / str(number)
        write(root / "S2L2A", provider, image)
        result = outcome(root, image, provider, offset)
        assert result == "exact" or re.search(r"set `(offset|unit|scale|bands|folders)", result), result
        assert result == "exact" or snow or said != "absent", result
        found["exact" if result == "exact" else "refused"] += 1
    counted[provider, snow] = found


def test_the_count_stands_in_the_docs(counted):
    if len(counted) < len(RUNS):
        pytest.skip("not all of the matrix was run")
    for snow, where in ((False, "land"), (True, "snow")):
        total = sum((found for (_, s), found in counted.items() if s == snow), Counter())
        line = f"over {where}, {total.total()} cases: {total['exact']} exact, {total['refused']} refused, 0 wrong"
        assert line in " ".join(DOCS.read_text().split()), line
