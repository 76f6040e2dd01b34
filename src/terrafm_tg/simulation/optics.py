"""Sentinel-2: the ground in season and sunlight, under clouds, through the atmosphere."""

from dataclasses import dataclass

import numpy as np

from .fields import block_mean
from .product import Product
from .sky import Atmosphere, Sun, cloud_mask, clouds, swath_edge
from .spectra import BANDS, NAMES, local_spectra
from .surface import Cover, Ground

#: Share of the products that end within the picture.
SWATH_EDGES = 0.03


@dataclass(frozen=True)
class OpticalScene:
    """An optical acquisition before the bands sample it.

    Args:
        light: Per resolution (11, h, w), share of each material times its illumination; cloud last.
        spectra: (13, 11) reflectance of the materials at this place and date.
        atmosphere: Between them and the satellite.
        cloud_mask: (H, W) uint8: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow.
        outside: (H, W) bool, beyond the swath; None where nothing is.
    """

    light: dict[int, np.ndarray]
    spectra: np.ndarray
    atmosphere: Atmosphere
    cloud_mask: np.ndarray
    outside: np.ndarray | None


def observe(ground: Ground, product: Product, latitude: float) -> OpticalScene:
    """What Sentinel-2 meets over ``ground`` at the date of ``product``."""
    rng = product.rng("optics")
    day = product.time.timetuple().tm_yday
    sun = Sun.at(latitude, day)
    summer = float(np.cos(2 * np.pi * (day - 196) / 365.25)) * (1 if latitude >= 0 else -1)
    cover = _in_season(ground, summer, rng)
    facing = 1 - 0.7 * (sun.east * ground.slope[0] + sun.north * ground.slope[1])
    shape = ground.land_cover.shape
    opacity, shadow = clouds(shape, product, sun)
    light = np.empty((len(cover) + 1, *shape), dtype=np.float32)
    np.multiply(
        cover, (0.2 + 0.8 * np.clip(facing, 0.1, 2.2)) * (1 - 0.65 * shadow) * (1 - opacity), out=light[:-1]
    )
    light[-1] = opacity
    coarse = block_mean(light, 2)
    return OpticalScene(
        light={10: light, 20: coarse, 60: block_mean(coarse, 3)},
        spectra=local_spectra(ground.climate, rng),
        atmosphere=Atmosphere.draw(rng, sun, ground.climate["temperature"]),
        cloud_mask=cloud_mask(opacity, shadow),
        outside=swath_edge(shape, product, share=SWATH_EDGES),
    )


def sample(scene: OpticalScene, level: str, offset: int) -> dict[str, np.ndarray]:
    """The bands of one product.

    Args:
        scene: The acquisition.
        level: ``"L1C"`` (through the atmosphere, with B10) or ``"L2A"`` (corrected, up to a residue).
        offset: Added to the digital numbers.

    Returns:
        Per band a uint16 array at its native resolution: reflectance * 10,000 + offset, 0 beyond the swath.
    """
    air = scene.atmosphere
    gain, bias = (air.transmittance, air.haze) if level == "L1C" else (np.ones(len(NAMES)), air.residue)
    bands = {}
    for metres, light in scene.light.items():
        index = [i for i, name in enumerate(NAMES) if BANDS[name][1] == metres]
        factors = (1e4 * gain[index, None] * scene.spectra[index]).astype(np.float32)
        numbers = factors @ light.reshape(len(light), -1)
        numbers += (1e4 * bias[index, None]).astype(np.float32)
        pictures = np.clip(np.rint(numbers).astype(np.int32) + offset, 1, 65535).astype(np.uint16)
        pictures = pictures.reshape(len(index), *light.shape[1:])
        if scene.outside is not None:
            every = metres // 10
            pictures[:, scene.outside[every // 2 :: every, every // 2 :: every]] = 0
        bands.update({NAMES[i]: picture for i, picture in zip(index, pictures, strict=True)})
    return {name: bands[name] for name in NAMES if level == "L1C" or name != "B10"}


def _in_season(ground: Ground, summer: float, rng: np.random.Generator) -> np.ndarray:
    """The cover by materials at a date: leaves fall, grass dries, snow lies.

    Args:
        ground: In midsummer.
        summer: From -1 in midwinter to 1 in midsummer.
        rng: How dry the year is, and whether it has snowed.

    Returns:
        (10, H, W) shares.
    """
    climate = ground.climate
    swing = min(max((24 - climate["temperature"]) / 20, 0.1), 1.0)
    green = 1 - 0.35 * swing * (1 - summer) + rng.normal(0, 0.10) - 0.25 * (0.5 - climate["moisture"])
    green = min(max(green, 0.1), 1.0)
    cover = Cover(ground.cover.copy())
    fallen = 0.75 * climate["leaf_loss"] * min(1.0, 1.4 * (1 - green))
    for target, share in (("dry", 0.6), ("soil", 0.4)):
        cover.move("crown", target, share * fallen * ground.cover[0])
    for target, share in (("dry", 0.75), ("soil", 0.25)):
        cover.move("herb", target, share * (1 - green) * ground.cover[1])
    depth, recent = rng.random(), rng.random() < 0.4
    frost = climate["temperature"] + 11 * swing * summer
    if frost < 1 and recent:
        lying = np.clip(0.25 + 0.5 * depth - 0.03 * frost + 0.4 * ground.texture, 0, 0.9)
        for name, share in {"herb": 1, "dry": 1, "soil": 1, "lichen": 1, "street": 0.5, "crown": 0.2}.items():
            cover.move(name, "snow", share * lying * cover[name])
    return cover.shares
