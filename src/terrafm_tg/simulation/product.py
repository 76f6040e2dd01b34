"""Acquisitions over a cell: dates, orbits, processing baselines and the names that products carry."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from terrafm_tg.datasets.majortom.grid import GridCell

from .fields import key_of, mix

#: Share of cells that Sentinel-1 does not cover (Major-TOM: about a third).
WITHOUT_RADAR = 0.25
#: Share of cells whose L1C product is of another date than the L2A product.
OWN_L1C_DATE = 0.2
#: Added to the digital numbers from baseline 04.00 on.
OFFSET = 1000
_FIRST_DAY = datetime(2021, 4, 1)
_DAYS = 1000
#: Baseline 04.00 became operational; before it products are 03.00 unless reprocessed to 05.00.
_BASELINE_4 = datetime(2022, 1, 25)


@dataclass(frozen=True)
class Acquisition:
    """One acquisition over a cell."""

    id: str  # product name, as ESA forms it
    time: datetime  # of acquisition
    key: int  # all that is random about it (clouds, wind, speckle) follows from this key
    offset: int = 0  # added to the digital numbers of an optical product
    ascending: bool = False  # direction of the orbit

    def rng(self, what: str) -> np.random.Generator:
        """Returns a generator of random numbers for one aspect of this acquisition."""
        return np.random.default_rng(mix(self.key, key_of(what)))


def plan_acquisitions(seed: int, cell: GridCell) -> dict[str, Acquisition]:
    """Plans the acquisitions over a cell by modality; no ``s1rtc`` where Sentinel-1 does not cover it."""
    key = mix(seed, key_of("products"), cell.row, cell.col)
    rng = np.random.default_rng(key)
    hour = 10.5 - cell.corner[1] / 15  # Sentinel-2 passes at 10:30 local time
    day = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)), hours=hour % 24, seconds=int(rng.integers(900)))
    other = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)), hours=hour % 24, seconds=int(rng.integers(900)))
    l1c_day = other if rng.random() < OWN_L1C_DATE else day
    delay = timedelta(days=int(rng.integers(1, 40)) * (1 if rng.random() < 0.5 else -1), hours=7.3)
    reprocessed = rng.random(2) < 0.3
    orbit = int(rng.integers(1, 144))
    satellite, ascending = "AB"[int(rng.integers(2))], bool(rng.random() < 0.5)
    plan = {}
    if rng.random() >= WITHOUT_RADAR:
        time = (day + delay).replace(microsecond=0)
        stop = time + timedelta(seconds=25)
        dates = f"{time:%Y%m%dT%H%M%S}_{stop:%Y%m%dT%H%M%S}"
        name = f"S1A_IW_GRDH_1SDV_{dates}_{40000 + orbit:06d}_{mix(key, 4) % 2**24:06X}_rtc"
        plan["s1rtc"] = Acquisition(name, time, mix(key, 5), ascending=ascending)
    plan["s2l1c"] = _optical("L1C", l1c_day, bool(reprocessed[0]), satellite, orbit, cell, key)
    plan["s2l2a"] = _optical("L2A", day, bool(reprocessed[1]), satellite, orbit, cell, key)
    return plan


def _optical(
    level: str, time: datetime, reprocessed: bool, satellite: str, orbit: int, cell: GridCell, key: int
) -> Acquisition:
    """Plans a Sentinel-2 product; both levels of one date share its key, hence its clouds."""
    time = time.replace(microsecond=0)
    baseline = "N0500" if reprocessed else "N0400" if time >= _BASELINE_4 else "N0300"
    made = max(time, datetime(2023, 6, 12)) + timedelta(minutes=mix(key, 6) % 100000) if reprocessed else time
    made += timedelta(hours=6)
    tile = f"R{orbit:03d}_T{_military_tile(cell)}"
    name = f"S2{satellite}_MSI{level}_{time:%Y%m%dT%H%M%S}_{baseline}_{tile}_{made:%Y%m%dT%H%M%S}"
    return Acquisition(name, time, mix(key, int(time.timestamp())), offset=0 if baseline == "N0300" else OFFSET)


def _military_tile(cell: GridCell) -> str:
    """Returns zone, latitude band and a pair of letters, as in ``33NZA`` (the pair is not the true one)."""
    lat = cell.corner[0]
    band = "CDEFGHJKLMNPQRSTUVWX"[int(np.clip((lat + 80) // 8, 0, 19))]
    pair = "ABCDEFGHJKLMNPQRSTUV"[cell.col % 20] + "ABCDEFGHJKLMNPQRSTUV"[cell.row % 20]
    return f"{cell.epsg % 100:02d}{band}{pair}"
