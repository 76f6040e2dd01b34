"""Sentinel-1: backscatter of the same ground, with its viewing geometry, thermal noise and speckle."""

import numpy as np

from .optics import swath_edge
from .product import Acquisition
from .surface import Ground

NODATA = -32768.0
#: Equivalent number of looks of the ground-range product: the shape of the speckle's gamma distribution.
LOOKS = 4.4
#: Share of the products that end within the picture.
SWATH_EDGES = 0.10
_THERMAL = np.array([10**-2.6, 10**-2.75], dtype=np.float32)  # noise of VV and VH, linear power


def observe_radar(ground: Ground, product: Acquisition) -> np.ndarray:
    """Renders backscatter (2, H, W), VV and VH, float32 linear power, -32768 beyond the swath.

    Plants scatter in their volume, soil by its moisture and roughness, water as a mirror that the wind
    roughens; stems in water and walls send the wave straight back. The trend with the incidence angle
    remains, as do the bright slopes that face the radar.
    """
    rng = product.rng("radar")
    shape = ground.land_cover.shape
    crown, herb, dry, soil, water, snow, roof, street, lichen, shade = ground.cover
    look = 1.0 if product.ascending else -1.0  # to the east, or to the west
    range_ = look * np.linspace(-0.5, 0.5, shape[1], dtype=np.float32) * shape[1] / 1068
    # Across a cell the angle really changes by 0.7°; eightfold, the trend shows in one picture.
    steepness = rng.uniform(30, 45) - 38 + 5.6 * range_ - 6 * np.clip(look * ground.slope[0], -1.5, 1.5)

    # Of the date: wetness of the soil, water in the plants (dB), wind over water.
    rain, sap, wind = rng.normal(0, 0.25), rng.normal(0, 1.3), rng.uniform(0, 1)
    rough = ground.roughness + ground.climate["roughness"] - 0.5
    surface = _power(-19.5 + 8.0 * np.clip(ground.moisture + rain, 0, 1) + 7.0 * rough - 0.28 * steepness)
    volume = _power(-10.2 + sap + 4.0 * ground.climate["biomass"] - 0.07 * steepness)
    mirror = _power(-25 + 11 * wind - 0.45 * steepness + 2 * ground.texture)
    ice = _power(rng.uniform(-19, -8) - 0.15 * steepness + 8 * ground.texture)
    canopy = np.clip(crown + shade, 0, 1) * np.clip(1 + 1.3 * ground.texture, 0.1, 2.5)
    plants = (herb + 0.5 * dry) * (0.25 + 0.8 * ground.growth)
    open_ground = soil + street + 0.5 * dry + lichen + 0.4 * herb
    # What turns the polarisation: lichen and dry stalks more than bare soil and streets.
    depolarised = 0.01 * (soil + street) + 0.20 * lichen + 0.04 * (0.5 * dry + 0.4 * herb)
    flooded = np.clip(4 * water * (herb + crown), 0, 1) * (1 - water)
    facing = abs(np.cos(2 * rng.uniform(0, np.pi)))  # streets along the orbit or across
    walls = ground.walls * _power(-1.0 + 7.0 * facing - 0.1 * steepness)

    vv = volume * (canopy + 0.32 * plants) + surface * open_ground + mirror * water + ice * snow
    vv += 0.16 * flooded + walls + roof * _power(-8.0)
    vh = volume * (0.30 * canopy + 0.022 * plants) + surface * depolarised + 0.03 * mirror * water
    vh += 0.35 * ice * snow + 0.014 * flooded + 0.06 * walls + roof * _power(-18.0)
    # A common gain by date: frost, thaw, dew.
    power = np.stack([vv, vh]) * _power(rng.normal(0, 1.2)) + _THERMAL[:, None, None]
    power *= rng.standard_gamma(LOOKS, size=power.shape, dtype=np.float32) * np.float32(1 / LOOKS)
    outside = swath_edge(shape, product, share=SWATH_EDGES)
    if outside is not None:
        power[:, outside] = NODATA
    return power


def _power(decibel: np.ndarray | float) -> np.ndarray:
    """Converts decibels to linear power, float32."""
    return np.exp(np.asarray(decibel, dtype=np.float32) * np.float32(np.log(10) / 10))
