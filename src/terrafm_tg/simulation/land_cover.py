"""Land cover as a function of the latent fields: the suitability of each place for each class."""

import numpy as np

from terrafm_tg.land_cover import WATER

from .latents import Latents

_SHARPNESS = 14.0  # of the transition from one class to the next


def land_cover(latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """How far each class of WorldCover holds a pixel.

    Args:
        latents: Fields (H, W) of a picture.

    Returns:
        Soft membership (11, H, W), float32, which sums to 1; and the class that holds most, (H, W) int8.
    """
    n, climate = latents.fine, latents.climate
    steep = np.hypot(*latents.slope)
    moist, warm, wet, people = latents.moist, latents.warm, latents.wet, latents.people
    vigour, rocks = n["vigour"], n["rocks"]
    lake = 4 * (0.4 * n["basin"] + climate["lakes"] - 0.86)
    farmed = 2.6 * np.minimum(people - 0.5, 0.22) + 0.28 * (latents.fields.first - 0.5)
    scores = np.stack(
        [
            # tree cover: rain, warmth, few people
            2.2 * (moist - 0.50)
            + 0.06 * np.minimum(warm, 9)
            + 0.50 * vigour
            - 0.55 * np.maximum(people - 0.45, 0),
            # shrubland: dry and stony
            0.65 - 3.2 * np.abs(moist - 0.32) + 0.32 * rocks - 0.20 * vigour,
            # grassland: some rain, poor growth
            0.72 - 2.2 * np.abs(moist - 0.48) - 0.34 * vigour + 0.10 * rocks,
            # cropland: people, flat, not cold; parcel by parcel
            0.75 + farmed - 1.4 * np.abs(moist - 0.52) - steep - 0.1 * np.maximum(5 - warm, 0),
            # built-up: block by block
            6.5 * (people - 0.86) + 0.3 * (latents.blocks.first - 0.5),
            # bare: no rain, or steep rock
            0.72 - 3.0 * (moist - 0.10) + 0.30 * rocks + 0.5 * (steep - 0.8),
            # snow and ice
            -0.35 * (warm + 6.5) + 0.20 * vigour - 0.3 * np.maximum(steep - 1, 0),
            # permanent water: sea, lakes, rivers
            np.maximum(np.maximum(-6 * latents.height, lake), 1.6 * (1.1 - latents.river)),
            # herbaceous wetland: waterlogged and flat
            0.40 + 4.0 * (np.minimum(wet, 0.80) - 0.66) - 2 * steep + 0.10 * vigour,
            # mangroves: warm shores
            1.10 + 0.15 * np.minimum(warm - 19, 6) - 4.2 * np.abs(latents.height - 0.14) + 0.25 * vigour,
            # moss and lichen: just below freezing
            0.95 - 0.16 * np.abs(warm + 4.0) + 0.25 * vigour - 0.30 * rocks,
        ]
    )
    share = np.exp(_SHARPNESS * (scores - scores.max(axis=0)))
    share /= share.sum(axis=0)
    return share, scores.argmax(axis=0).astype(np.int8)


def open_sea(latents: Latents, classes: np.ndarray) -> np.ndarray:
    """Water far from land (H, W) bool, where WorldCover has no data."""
    return (classes == WATER) & (latents.climate["elevation"] < -0.3)
