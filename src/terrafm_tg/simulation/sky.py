"""What lies between the ground and Sentinel-2: sun, clouds, atmosphere; and the edge of the swath."""

from dataclasses import dataclass, replace

import numpy as np

from .fields import Frame, key_of, mix
from .product import Product
from .spectra import NAMES, WAVELENGTHS


@dataclass(frozen=True)
class Sun:
    """Where the sun stands at half past ten.

    Args:
        height: Sine of its elevation.
        east: Eastward part of the direction to it, per unit of height.
        north: Northward part.
    """

    height: float
    east: float
    north: float

    @classmethod
    def at(cls, latitude: float, day_of_year: int) -> "Sun":
        """The sun over a place and day; never below 15°, as products of darker days are not archived."""
        lat = np.radians(latitude)
        declination = np.radians(23.4) * np.cos(2 * np.pi * (day_of_year - 172) / 365.25)
        noon = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination)
        height = float(np.clip(0.95 * noon, np.sin(np.radians(15)), 0.95))
        azimuth = np.radians(150 if lat >= declination else 30)
        run = float(np.sqrt(1 - height**2) / height)
        return cls(height, run * float(np.sin(azimuth)), run * float(np.cos(azimuth)))


@dataclass(frozen=True)
class Atmosphere:
    """What the atmosphere does to reflectance, per band (13,): seen = haze + transmittance * reflectance.

    Args:
        haze: Path radiance in units of reflectance.
        transmittance: Down and up again.
        residue: What the correction to L2A leaves, in units of reflectance.
    """

    haze: np.ndarray
    transmittance: np.ndarray
    residue: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, sun: Sun, temperature: float) -> "Atmosphere":
        """Rayleigh scattering, a random load of aerosol, and water vapour (more where it is warm)."""
        rayleigh = 0.0088 * WAVELENGTHS**-4.08
        aerosol = (0.05 + rng.gamma(2.0, 0.09)) * (WAVELENGTHS / 0.55) ** -1.3
        vapour = rng.uniform(0.3, 1.0) * float(np.clip((temperature + 20) / 45, 0.1, 1))
        absorbed = np.array([{"B09": 0.9 * vapour, "B10": 4.0 + vapour}.get(name, 0.03) for name in NAMES])
        mass = 0.5 / sun.height + 0.5
        return cls(
            haze=mass * (0.37 * rayleigh + 0.09 * aerosol) * np.exp(-absorbed * mass / 2),
            transmittance=np.exp(-mass * (0.5 * rayleigh + 0.16 * aerosol + absorbed)),
            residue=rng.normal(0, 0.008) * (WAVELENGTHS / 0.45) ** -1.5 + rng.normal(0, 0.003, len(NAMES)),
        )


def clouds(shape: tuple[int, int], product: Product, sun: Sun) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of clouds and of their shadows (H, W) in [0, 1]; most skies are clear but for a veil."""
    rng = product.rng("clouds")
    kind, few, many = rng.random(), rng.uniform(0.4, 2.2), rng.uniform(-0.8, 0.5)
    veil, base = max(0.0, rng.normal(0.0, 0.05)), rng.uniform(60, 200)
    opacity, shadow = np.full(shape, veil, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    if kind < 0.8:
        return opacity, shadow
    level = few if kind < 0.98 else many
    above = Frame(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5, mix(product.key, key_of("sky")))
    reach = min(base, 220 / max(float(np.hypot(sun.east, sun.north)), 1e-6))  # height of the clouds in pixels
    sunward = replace(above, x=above.x + reach * sun.east, y=above.y - reach * sun.north)
    field = {"cloud": (256, 8, 0.58)}
    opacity = np.clip(2.4 * (above.fractals(field)["cloud"] - level), veil, 0.97)
    shadow = np.clip(2.4 * (sunward.fractals(field)["cloud"] - level), 0, 0.97)
    return opacity, shadow


def cloud_mask(opacity: np.ndarray, shadow: np.ndarray) -> np.ndarray:
    """Major-TOM's mask (H, W) uint8: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow."""
    return np.select([opacity > 0.5, opacity > 0.15, shadow > 0.3], [1, 2, 3], 0).astype(np.uint8)


def swath_edge(shape: tuple[int, int], product: Product, share: float) -> np.ndarray | None:
    """Pixels beyond the swath (H, W) bool, in a ``share`` of the products; None where there are none.

    Every quarter of a picture keeps some pixels.
    """
    rng = product.rng("swath")
    if rng.random() >= share:
        return None
    h, w = shape
    lean = 0.2 if product.ascending else -0.2
    across = np.arange(w)[None, :] / w + lean * np.arange(h)[:, None] / h
    outside = across < rng.uniform(0.05, 0.28)
    return outside if rng.random() < 0.5 else outside[:, ::-1]
