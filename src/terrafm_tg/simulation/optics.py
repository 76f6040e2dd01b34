"""Sentinel-2: the ground in season and sunlight, under clouds, through the atmosphere."""

from dataclasses import replace

import numpy as np

from .fields import Frame, block_mean, key_of, mix
from .product import Acquisition
from .surface import MATERIALS, Cover, Ground

#: Bands in the files' order with wavelength (micrometers) and resolution (meters); L2A has no B10.
BANDS = {
    "B01": (0.443, 60), "B02": (0.490, 10), "B03": (0.560, 10), "B04": (0.665, 10), "B05": (0.705, 20),
    "B06": (0.740, 20), "B07": (0.783, 20), "B08": (0.842, 10), "B8A": (0.865, 20), "B09": (0.945, 60),
    "B10": (1.375, 60), "B11": (1.610, 20), "B12": (2.190, 20),
}  # fmt: skip
NAMES = tuple(BANDS)
WAVELENGTHS = np.array([wavelength for wavelength, _ in BANDS.values()])
#: Reflectance of each of the materials, and of cloud as the last row.
_SPECTRA = np.array(
    [  # B01   B02   B03   B04   B05   B06   B07   B08   B8A   B09   B10   B11   B12
        (0.022, 0.027, 0.048, 0.028, 0.080, 0.220, 0.280, 0.300, 0.310, 0.310, 0.20, 0.150, 0.070),  # crown
        (0.030, 0.038, 0.080, 0.045, 0.125, 0.300, 0.375, 0.405, 0.420, 0.420, 0.30, 0.220, 0.110),  # herb
        (0.060, 0.080, 0.125, 0.170, 0.205, 0.235, 0.260, 0.285, 0.300, 0.310, 0.33, 0.370, 0.270),  # dry
        (0.085, 0.105, 0.145, 0.195, 0.220, 0.240, 0.260, 0.280, 0.295, 0.310, 0.34, 0.390, 0.340),  # soil
        (0.040, 0.042, 0.036, 0.020, 0.016, 0.012, 0.010, 0.008, 0.007, 0.006, 0.01, 0.004, 0.003),  # water
        (0.850, 0.860, 0.850, 0.830, 0.800, 0.770, 0.730, 0.680, 0.650, 0.550, 0.20, 0.080, 0.060),  # snow
        (0.130, 0.155, 0.185, 0.220, 0.240, 0.250, 0.265, 0.280, 0.290, 0.300, 0.30, 0.320, 0.290),  # roof
        (0.085, 0.095, 0.105, 0.115, 0.125, 0.130, 0.138, 0.145, 0.150, 0.155, 0.16, 0.175, 0.165),  # street
        (0.085, 0.110, 0.155, 0.185, 0.225, 0.270, 0.300, 0.320, 0.330, 0.340, 0.34, 0.360, 0.240),  # lichen
        (0.008, 0.009, 0.012, 0.009, 0.018, 0.040, 0.050, 0.055, 0.057, 0.057, 0.04, 0.030, 0.015),  # shade
        (0.720, 0.730, 0.740, 0.750, 0.755, 0.760, 0.760, 0.760, 0.755, 0.700, 0.30, 0.550, 0.420),  # cloud
    ]
)  # fmt: skip


def local_spectra(climate: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Draws spectra (13, 11) of the materials, cloud last, in a region (its climate) at a date (``rng``)."""
    spectra = dict(zip((*MATERIALS, "cloud"), _SPECTRA.copy(), strict=True))
    tilt = np.log(WAVELENGTHS / 0.8)
    red, bright = climate["soil_red"] - 0.5, climate["soil_bright"] - 0.5
    spectra["soil"] *= np.exp(0.6 * bright + 0.6 * red * np.clip(tilt, -0.6, 0.3)) * (1 - 0.35 * climate["moisture"])
    spectra["dry"] *= np.exp(0.5 * bright)
    leaves = 0.4 * (climate["leaf_color"] - 0.5) * (1 - 0.6 * tilt)
    spectra["crown"] *= np.exp(leaves)
    spectra["herb"] *= np.exp(0.6 * leaves)
    silt = 0.045 * rng.gamma(1.2, 0.35) * np.exp(-(((WAVELENGTHS - 0.58) / 0.14) ** 2))
    spectra["water"] += silt + rng.gamma(1.0, 0.006)  # the latter: sun glint
    varied = rng.normal(0, 0.08, (len(spectra), 3)) @ np.stack([np.ones_like(tilt), tilt, np.sin(3 * tilt)])
    varied += rng.normal(0, 0.08) + rng.normal(0, 0.10) * tilt
    return (np.stack(list(spectra.values())) * np.exp(varied)).T


class Sun:
    """The sun at half past ten over a latitude and day of the year.

    It never stands below 15°, as products of darker days are not archived.
    """

    def __init__(self, latitude: float, day_of_year: int) -> None:
        lat = np.radians(latitude)
        declination = np.radians(23.4) * np.cos(2 * np.pi * (day_of_year - 172) / 365.25)
        noon = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination)
        #: Sine of its elevation.
        self.height = float(np.clip(0.95 * noon, np.sin(np.radians(15)), 0.95))
        azimuth = np.radians(150 if lat >= declination else 30)
        run = float(np.sqrt(1 - self.height**2) / self.height)
        #: Eastward and northward part of the direction to it, per unit of height.
        self.east, self.north = run * float(np.sin(azimuth)), run * float(np.cos(azimuth))


class Atmosphere:
    """The atmosphere's effect on reflectance, per band (13,): seen = haze + transmittance * reflectance.

    A load of aerosol and water vapor (more where it is warm) is drawn, beside Rayleigh scattering.
    """

    def __init__(self, rng: np.random.Generator, sun: Sun, temperature: float) -> None:
        rayleigh = 0.0088 * WAVELENGTHS**-4.08
        aerosol = (0.05 + rng.gamma(2.0, 0.09)) * (WAVELENGTHS / 0.55) ** -1.3
        vapour = rng.uniform(0.3, 1.0) * float(np.clip((temperature + 20) / 45, 0.1, 1))
        absorbed = np.array([{"B09": 0.9 * vapour, "B10": 4.0 + vapour}.get(name, 0.03) for name in NAMES])
        mass = 0.5 / sun.height + 0.5
        #: Path radiance in units of reflectance.
        self.haze = mass * (0.37 * rayleigh + 0.09 * aerosol) * np.exp(-absorbed * mass / 2)
        #: Down and up again.
        self.transmittance = np.exp(-mass * (0.5 * rayleigh + 0.16 * aerosol + absorbed))
        #: Error of the correction to L2A, in units of reflectance.
        self.residue = rng.normal(0, 0.008) * (WAVELENGTHS / 0.45) ** -1.5 + rng.normal(0, 0.003, len(NAMES))


def clouds(shape: tuple[int, int], product: Acquisition, sun: Sun) -> tuple[np.ndarray, np.ndarray]:
    """Draws the opacity of clouds and of their shadows (H, W) in [0, 1]; most skies are clear but for a veil."""
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


def swath_edge(shape: tuple[int, int], product: Acquisition, share: float) -> np.ndarray | None:
    """Finds the pixels beyond the swath (H, W) bool, in a ``share`` of the products; None where there are none.

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


#: Share of the products that end within the picture.
SWATH_EDGES = 0.03


class OpticalScene:
    """The ground under the light and air that Sentinel-2 meets at the date of a product.

    Args:
        ground: In midsummer.
        product: The acquisition.
        latitude: Of the place.
    """

    def __init__(self, ground: Ground, product: Acquisition, latitude: float) -> None:
        rng = product.rng("optics")
        day = product.time.timetuple().tm_yday
        sun = Sun(latitude, day)
        summer = float(np.cos(2 * np.pi * (day - 196) / 365.25)) * (1 if latitude >= 0 else -1)
        cover = _in_season(ground, summer, rng)
        facing = 1 - 0.7 * (sun.east * ground.slope[0] + sun.north * ground.slope[1])
        shape = ground.land_cover.shape
        opacity, shadow = clouds(shape, product, sun)
        light = np.empty((len(cover) + 1, *shape), dtype=np.float32)
        sunlit = (0.2 + 0.8 * np.clip(facing, 0.1, 2.2)) * (1 - 0.65 * shadow) * (1 - opacity)
        np.multiply(cover, sunlit, out=light[:-1])
        light[-1] = opacity
        coarse = block_mean(light, 2)
        #: Per resolution (11, h, w), share of each material times its illumination; cloud last.
        self.light = {10: light, 20: coarse, 60: block_mean(coarse, 3)}
        #: Reflectance of the materials at this place and date, (13, 11).
        self.spectra = local_spectra(ground.climate, rng)
        self.atmosphere = Atmosphere(rng, sun, ground.climate["temperature"])
        #: Major-TOM's, (H, W) uint8: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow.
        self.cloud_mask = np.select([opacity > 0.5, opacity > 0.15, shadow > 0.3], [1, 2, 3], 0).astype(np.uint8)
        #: Beyond the swath, (H, W) bool; None where nothing is.
        self.outside = swath_edge(shape, product, share=SWATH_EDGES)

    def bands(self, level: str, offset: int) -> dict[str, np.ndarray]:
        """Samples the bands of one product.

        Args:
            level: ``"L1C"`` (through the atmosphere, with B10) or ``"L2A"`` (corrected, up to a residue).
            offset: Added to the digital numbers.

        Returns:
            Per band a uint16 array at its native resolution: reflectance * 10,000 + offset, 0 beyond the swath.
        """
        air = self.atmosphere
        gain, bias = (air.transmittance, air.haze) if level == "L1C" else (np.ones(len(NAMES)), air.residue)
        bands = {}
        for meters, light in self.light.items():
            index = [i for i, name in enumerate(NAMES) if BANDS[name][1] == meters]
            factors = (1e4 * gain[index, None] * self.spectra[index]).astype(np.float32)
            numbers = factors @ light.reshape(len(light), -1)
            numbers += (1e4 * bias[index, None]).astype(np.float32)
            pictures = np.clip(np.rint(numbers).astype(np.int32) + offset, 1, 65535).astype(np.uint16)
            pictures = pictures.reshape(len(index), *light.shape[1:])
            if self.outside is not None:
                every = meters // 10
                pictures[:, self.outside[every // 2 :: every, every // 2 :: every]] = 0
            bands.update({NAMES[i]: picture for i, picture in zip(index, pictures, strict=True)})
        return {name: bands[name] for name in NAMES if level == "L1C" or name != "B10"}


def _in_season(ground: Ground, summer: float, rng: np.random.Generator) -> np.ndarray:
    """Changes the cover by materials to that at a date: leaves fall, grass dries, snow lies.

    Args:
        ground: In midsummer.
        summer: From -1 in midwinter to 1 in midsummer.
        rng: Draws the dryness of the year, and if it has snowed.

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
