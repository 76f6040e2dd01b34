"""The latent fields of one picture: they decide land cover and looks, and no sensor sees them directly."""

import numpy as np

from terrafm_tg.datasets.majortom.grid import GridCell

from .fields import Frame, mix
from .planet import Planet

#: Fields finer than the climate: longest and shortest wavelength in pixels, fall of the amplitude per octave.
_FINE = {
    "hills": (512, 4, 0.45),
    "drainage": (1024, 8, 0.42),
    "vigour": (1024, 8, 0.42),
    "people": (1024, 32, 0.45),
    "river": (512, 16, 0.45),
    "basin": (256, 8, 0.45),
    "rocks": (1024, 8, 0.45),
    "bend_x": (1024, 64, 0.50),
    "bend_y": (1024, 64, 0.50),
    "grain": (16, 4, 0.80),
    "bushes": (8, 8, 1.00),
    "network": (16, 16, 1.00),
    "pools": (32, 8, 0.60),
    "patches": (64, 16, 0.70),
}
_CORNERS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]


class Latents:
    """Fields (H, W) of a cell's picture of ``size`` x ``size`` pixels, float32; pictures that overlap have the same.

    Args:
        planet: The planet.
        cell: The cell.
        size: Pixels across the picture.
    """

    def __init__(self, planet: Planet, cell: GridCell, size: int) -> None:
        transform = cell.transform(size)
        frame = Frame(
            x=transform.c / 10 + np.arange(size) + 0.5,
            y=transform.f / 10 - np.arange(size) - 0.5,
            key=mix(planet.seed, 2, cell.epsg),
        )
        #: Each of :data:`~.planet.LARGE_SCALE`.
        self.climate = climate = _climate(planet, cell, size)
        #: Random fields of zero mean and unit variance, from the wavelength of hills to that of crowns.
        self.fine = fine = frame.fractals(_FINE)
        #: Above the sea, in units of a hill; negative: sea.
        self.height = climate["elevation"] + (0.15 + 1.3 * climate["relief"]) * fine["hills"]
        north, east = np.gradient(self.height)
        #: Of the terrain, east and north, (2, H, W).
        self.slope = np.stack([25 * east, -25 * north])
        #: Standing water, 0 drained to 1 waterlogged.
        self.wet = climate["wetness"] + 0.22 * fine["drainage"] - 0.10 * fine["hills"]
        #: Water that plants have, 0 desert to 1 rain forest.
        self.moist = climate["moisture"] + 0.10 * fine["drainage"] + 0.16 * (self.wet - 0.4)
        #: Mean temperature of the year, degrees Celsius.
        self.warm = climate["temperature"] - 4 * np.maximum(self.height - 1, 0)
        #: 0 none to 1 city.
        self.people = climate["people"] + 0.24 * fine["people"] - 0.5 * np.minimum(np.hypot(*self.slope), 1)
        #: Distance from the middle of a river in units of its half width.
        self.river = np.abs(fine["river"]) / (0.03 + 0.05 * np.clip(self.moist, 0, 1))
        angle = np.pi * (mix(frame.key, 3) % 1024) / 1024
        bend = 60 * fine["bend_x"], 60 * fine["bend_y"]
        #: Cadastre of the farmland, blocks of houses, and the land between roads.
        self.fields = frame.parcels("fields", (26, 17), angle, bend)
        self.blocks = frame.parcels("blocks", (7, 6), angle, bend)
        self.roads = frame.parcels("roads", (150, 110), angle, bend)


def _climate(planet: Planet, cell: GridCell, size: int) -> dict[str, np.ndarray]:
    """Computes the large-scale fields (H, W) of a picture, linear between its corners."""
    lon, lat = np.array(cell.lonlat(size, _CORNERS)).T
    corners = {name: field.diagonal().reshape(2, 2) for name, field in planet.at(lat, lon).items()}
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    weights = np.stack([1 - ramp, ramp], axis=1)
    return {name: weights @ corner.astype(np.float32) @ weights.T for name, corner in corners.items()}
