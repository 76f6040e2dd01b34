"""The latent fields of one picture: they decide land cover and looks, and no sensor sees them directly."""

from dataclasses import dataclass

import numpy as np

from terrafm_tg.datasets.majortom.grid import GridCell

from .fields import Frame, Parcels, mix
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


@dataclass(frozen=True)
class Latents:
    """Fields (H, W) of one picture, float32."""

    climate: dict[str, np.ndarray]  # each of :data:`~.planet.LARGE_SCALE`
    # random fields of zero mean and unit variance, from the wavelength of hills to that of crowns
    fine: dict[str, np.ndarray]
    height: np.ndarray  # above the sea, in units of a hill; negative: sea
    slope: np.ndarray  # (2, H, W) of the terrain, east and north
    wet: np.ndarray  # standing water, 0 drained to 1 waterlogged
    moist: np.ndarray  # water that plants have, 0 desert to 1 rain forest
    warm: np.ndarray  # mean temperature of the year, degrees Celsius
    people: np.ndarray  # 0 none to 1 city
    river: np.ndarray  # distance from the middle of a river in units of its half width
    fields: Parcels  # cadastre of the farmland
    blocks: Parcels  # blocks of houses
    roads: Parcels  # the land between roads


def draw_latents(planet: Planet, cell: GridCell, size: int) -> Latents:
    """Draws the fields of a cell's picture of ``size`` x ``size`` pixels; pictures that overlap have the same."""
    transform = cell.transform(size)
    frame = Frame(
        x=transform.c / 10 + np.arange(size) + 0.5,
        y=transform.f / 10 - np.arange(size) - 0.5,
        key=mix(planet.seed, 2, cell.epsg),
    )
    climate = _climate(planet, cell, size)
    fine = frame.fractals(_FINE)
    height = climate["elevation"] + (0.15 + 1.3 * climate["relief"]) * fine["hills"]
    north, east = np.gradient(height)
    slope = np.stack([25 * east, -25 * north])
    wet = climate["wetness"] + 0.22 * fine["drainage"] - 0.10 * fine["hills"]
    moist = climate["moisture"] + 0.10 * fine["drainage"] + 0.16 * (wet - 0.4)
    angle = np.pi * (mix(frame.key, 3) % 1024) / 1024
    bend = 60 * fine["bend_x"], 60 * fine["bend_y"]
    return Latents(
        climate=climate,
        fine=fine,
        height=height,
        slope=slope,
        wet=wet,
        moist=moist,
        warm=climate["temperature"] - 4 * np.maximum(height - 1, 0),
        people=climate["people"] + 0.24 * fine["people"] - 0.5 * np.minimum(np.hypot(*slope), 1),
        river=np.abs(fine["river"]) / (0.03 + 0.05 * np.clip(moist, 0, 1)),
        fields=frame.parcels("fields", (26, 17), angle, bend),
        blocks=frame.parcels("blocks", (7, 6), angle, bend),
        roads=frame.parcels("roads", (150, 110), angle, bend),
    )


def _climate(planet: Planet, cell: GridCell, size: int) -> dict[str, np.ndarray]:
    """Computes the large-scale fields (H, W) of a picture, linear between its corners."""
    lon, lat = np.array(cell.lonlat(size, _CORNERS)).T
    corners = {name: field.diagonal().reshape(2, 2) for name, field in planet.at(lat, lon).items()}
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    weights = np.stack([1 - ramp, ramp], axis=1)
    return {name: weights @ corner.astype(np.float32) @ weights.T for name, corner in corners.items()}
