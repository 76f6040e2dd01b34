"""The planet as a whole: its climate as a function of latitude and longitude, and which cells to render."""

from dataclasses import dataclass

import numpy as np

from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.errors import TerraFMError

from .fields import Frame, key_of, mix

#: Names of the planet's large-scale fields, see :meth:`Planet.at`.
LARGE_SCALE = (
    "temperature",  # mean of the year, degrees Celsius
    "moisture",  # 0 desert to 1 rain forest
    "elevation",  # above the sea in units of a hill; negative: sea
    "relief",  # 0 plain to 1 mountains
    "wetness",  # 0 drained to 1 waterlogged
    "lakes",  # 0 none to 1 more water than land
    "people",  # 0 none to 1 city
    "biomass",  # of the forests, 0 young to 1 old
    "roughness",  # of the soil, 0 to 1
    "soil_red",
    "soil_bright",
    "leaf_loss",  # 0 evergreen to 1 deciduous
    "leaf_color",
    "clumping",  # how strongly patterns show, 0 faint to 1 stark
)
#: Share of the clusters of cells per theme; the tail is long as on Earth.
THEMES = {
    "forest": 0.19,
    "lakes": 0.15,
    "farmland": 0.15,
    "steppe": 0.08,
    "desert": 0.09,
    "savanna": 0.08,
    "city": 0.07,
    "ice": 0.05,
    "tundra": 0.04,
    "marsh": 0.04,
    "mangrove coast": 0.03,
    "sea": 0.02,
}
#: What a theme looks for: temperature range, and where in [0, 1] or so the other fields should lie.
_WISH = {
    "forest": ((2, 26), {"moisture": 0.7, "wetness": 0.3, "people": 0.2, "elevation": 1.2}),
    "lakes": ((-2, 24), {"lakes": 0.95, "people": 0.3, "elevation": 0.9}),
    "farmland": ((6, 24), {"moisture": 0.5, "wetness": 0.3, "people": 0.6, "elevation": 1.0, "relief": 0.1}),
    "steppe": ((2, 20), {"moisture": 0.44, "wetness": 0.3, "people": 0.2, "elevation": 1.2}),
    "desert": ((10, 30), {"moisture": 0.08, "wetness": 0.1, "people": 0.1, "elevation": 1.2}),
    "savanna": ((16, 30), {"moisture": 0.32, "wetness": 0.2, "people": 0.2, "elevation": 1.2}),
    "city": ((4, 26), {"moisture": 0.5, "wetness": 0.2, "people": 0.95, "elevation": 0.8, "relief": 0.1}),
    "ice": ((-25, -9), {"elevation": 1.2}),
    "tundra": ((-8, -2), {"elevation": 1.0, "moisture": 0.5, "people": 0.1}),
    "marsh": ((2, 26), {"wetness": 0.9, "moisture": 0.7, "elevation": 0.5, "relief": 0.05, "people": 0.2}),
    "mangrove coast": ((21, 30), {"elevation": 0.1, "moisture": 0.6, "relief": 0.1, "people": 0.2}),
    "sea": ((-2, 30), {"elevation": -1.5}),
}


@dataclass(frozen=True)
class Planet:
    """A planet; everything on it is a function of the seed and the place."""

    seed: int  # the planet's number

    def at(self, lat: np.ndarray, lon: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the fields of :data:`LARGE_SCALE` at every pair of ``lat`` (H,) and ``lon`` (W,): arrays (H, W)."""
        frame = Frame(np.asarray(lon, dtype=float) * 10, np.asarray(lat, dtype=float) * 10, mix(self.seed, 1))
        n = frame.fractals(dict.fromkeys(LARGE_SCALE, (256, 16, 0.7)))
        cold = np.abs(np.asarray(lat, dtype=float))[:, None] / 90
        unit = {name: 0.5 + 0.32 * n[name] for name in LARGE_SCALE}
        return {
            **{name: np.clip(field, 0, 1) for name, field in unit.items()},
            "temperature": 28 - 46 * cold**1.5 + 5 * n["temperature"],
            "elevation": 0.9 + 1.2 * n["elevation"],
            "relief": np.clip(unit["relief"], 0, 1) ** 2,
        }

    def cells(self, count: int) -> list[GridCell]:
        """Chooses clusters of neighboring cells, spread over climates with the shares of :data:`THEMES`.

        A cluster is 1x1 to 2x2 cells and at least 25 cells (250 km) from the next, so that a split by blocks
        of cells with a gap between them loses few.

        Returns:
            The cells, cluster after cluster.
        """
        rng = np.random.default_rng(mix(self.seed, key_of("clusters")))
        places = _places(rng)
        lat, lon = np.arange(-89.75, 90, 0.5), np.arange(-179.75, 180, 0.5)
        row, col = grid.cells_at(*places.T)
        nearest = np.rint((places - (lat[0], lon[0])) * 2).astype(int).T % [[len(lat)], [len(lon)]]  # 180° E is 180° W
        climate = {name: field[*nearest] for name, field in self.at(lat, lon).items()}
        badness = {theme: _badness(theme, climate) + 0.05 * rng.standard_normal(len(places)) for theme in THEMES}
        free = np.ones(len(places), dtype=bool)
        made = dict.fromkeys(THEMES, 0)
        cells: list[GridCell] = []
        while len(cells) < count:
            if not free.any():
                raise TerraFMError(f"A simulated planet holds at most {len(cells)} cells, not {count}: ask for fewer.")
            theme = min(THEMES, key=lambda t: (made[t] + 0.5) / THEMES[t])
            place = int(np.argmin(np.where(free, badness[theme], np.inf)))
            free[place] = False
            rows, cols = rng.integers(1, 3, size=2)
            cluster = [GridCell(int(row[place]) + r, int(col[place]) + c) for r in range(rows) for c in range(cols)]
            made[theme] += len(cluster)
            cells += cluster
        return cells[:count]


def _places(rng: np.random.Generator) -> np.ndarray:
    """Returns latitudes and longitudes (n, 2) of the corners that a cluster may have, at least 25 cells apart."""
    places = []
    for row in range(-640, 780, 48):
        half = int(grid.cells_per_row(row)) // 2
        for col in range(-half + 8, half - 48, 48):
            r, c = row + 4 * rng.integers(0, 5), col + rng.integers(0, 20)
            places.append(((r + 0.5) * 180 / grid.ROWS, (c + 0.5) * 360 / grid.cells_per_row(r)))
    return np.array(places)


def _badness(theme: str, climate: dict[str, np.ndarray]) -> np.ndarray:
    """Scores how badly places suit a theme."""
    (low, high), wish = _WISH[theme]
    temperature = climate["temperature"]
    misfit = np.maximum(0, low - temperature) / 3 + np.maximum(0, temperature - high) / 3
    return misfit + sum(np.abs(climate[name] - value) for name, value in wish.items())
