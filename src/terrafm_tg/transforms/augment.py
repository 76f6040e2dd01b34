"""Augmentations that reflectance and radar backscatter know in nature; all but the blur are affine per band.

* Optics: illumination scales all bands together (sun angle, slope), calibration and the seasons each band a
  little, and haze adds light that falls with wavelength.
* Radar: incidence and calibration shift all decibels together and each polarisation a little.
* Both: the resolution varies (Gaussian blur; in radar before the logarithm, which is multi-looking).

Color jitter for photographs (hue, saturation, solarization, gray) has no meaning in either. The paper does
not say which augmentations it used; with :data:`NO_CHANGE` there are none but the crops.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.utils.arguments import NOT_NEGATIVE, SHARE, checked

#: Central wavelength of Sentinel-2's bands in nanometers (ESA, Sentinel-2 user guide).
WAVELENGTHS = {
    "B01": 443, "B02": 490, "B03": 560, "B04": 665, "B05": 705, "B06": 740,
    "B07": 783, "B08": 842, "B8A": 865, "B09": 945, "B11": 1610, "B12": 2190,
}  # fmt: skip


@checked(probability=SHARE, blur_probability=SHARE, blur_sigma=NOT_NEGATIVE)
@dataclass(frozen=True)
class Augment:
    """The extent to which views change.

    Args:
        probability: Chance that the values of a view in one sensor change.
        illumination: Largest logarithm of the gain that all optical bands share.
        band_gain: Largest logarithm of each optical band's own gain.
        haze: Largest light added or taken away at 490 nm, in digital numbers; it falls as wavelength^-2,
            between molecules (-4) and large particles (0).
        calibration: Largest shift that both polarisations share, in dB.
        band_shift: Largest shift of each polarisation alone, in dB.
        blur_probability: Chance of a blur.
        blur_sigma: Range of its standard deviation in pixels of the view.

    Raises:
        TerraFMError: If a chance is not one, or an amount is negative.
    """

    probability: float = 0.8
    illumination: float = 0.2
    band_gain: float = 0.05
    haze: float = 100.0
    calibration: float = 1.0
    band_shift: float = 0.5
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 1.5)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "blur_sigma":
                fits, expected = 0 <= value[0] <= value[1], "a range from low to high, 0 or more"
            elif "probability" in name:
                fits, expected = 0 <= value <= 1, "a number from 0 to 1"
            else:
                fits, expected = value >= 0, "0 or more"
            if not fits:
                raise TerraFMError(f"Augment's `{name}` is {value}: set {expected}.")

    @property
    def blur_radius(self) -> int:
        """Pixels of the view that the widest blur reads on each side."""
        return math.ceil(2.5 * self.blur_sigma[1]) if self.blur_probability else 0

    @staticmethod
    def draws(modality: Modality) -> int:
        """Uniform numbers that :meth:`change` uses."""
        return 5 + len(modality.bands)

    def change(self, modality: Modality, uniform: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Turns uniform numbers into what happens to each view: x -> gain * x + offset per band, after a blur.

        Args:
            modality: What the views show.
            uniform: Numbers in [0, 1), shape (..., ``draws(modality)``).

        Returns:
            Gain and offset in the modality's unit, (..., C) each, and the standard deviation of the blur in pixels of
            the view, 0 for none, (...).
        """
        keep, signed = uniform[..., :1] < self.probability, 2 * uniform - 1
        common, haze, own = signed[..., 1:2], signed[..., 2:3], signed[..., 5:]
        gain, offset = np.ones_like(own), np.zeros_like(own)
        if modality.unit == "dB":
            offset = np.where(keep, common * self.calibration + own * self.band_shift, 0.0)
        else:
            spectrum = np.array([(WAVELENGTHS["B02"] / WAVELENGTHS[band]) ** 2 for band in modality.bands])
            gain = np.where(keep, np.exp(common * self.illumination + own * self.band_gain), 1.0)
            offset = np.where(keep, haze * self.haze * spectrum, 0.0)
        low, high = self.blur_sigma
        sigma = np.where(uniform[..., 3] < self.blur_probability, low + (high - low) * uniform[..., 4], 0.0)
        return gain, offset, sigma


#: No change at all.
NO_CHANGE = Augment(probability=0.0, blur_probability=0.0)
