"""Sentinel-2's bands and how materials reflect in them, by region and date."""

import numpy as np

from .surface import MATERIALS

#: Bands in the files' order with wavelength (micrometres) and resolution (metres); L2A has no B10.
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
    """Spectra (13, 11) of the materials, cloud last, in a region (its climate) at a date (``rng``)."""
    spectra = dict(zip((*MATERIALS, "cloud"), _SPECTRA.copy(), strict=True))
    tilt = np.log(WAVELENGTHS / 0.8)
    red, bright = climate["soil_red"] - 0.5, climate["soil_bright"] - 0.5
    spectra["soil"] *= np.exp(0.6 * bright + 0.6 * red * np.clip(tilt, -0.6, 0.3)) * (
        1 - 0.35 * climate["moisture"]
    )
    spectra["dry"] *= np.exp(0.5 * bright)
    leaves = 0.4 * (climate["leaf_color"] - 0.5) * (1 - 0.6 * tilt)
    spectra["crown"] *= np.exp(leaves)
    spectra["herb"] *= np.exp(0.6 * leaves)
    silt = 0.045 * rng.gamma(1.2, 0.35) * np.exp(-(((WAVELENGTHS - 0.58) / 0.14) ** 2))
    spectra["water"] += silt + rng.gamma(1.0, 0.006)  # the latter: sun glint
    varied = rng.normal(0, 0.08, (len(spectra), 3)) @ np.stack([np.ones_like(tilt), tilt, np.sin(3 * tilt)])
    varied += rng.normal(0, 0.08) + rng.normal(0, 0.10) * tilt
    return (np.stack(list(spectra.values())) * np.exp(varied)).T
