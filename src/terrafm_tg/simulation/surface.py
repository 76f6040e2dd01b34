"""The ground under all sensors: which materials cover each pixel, in which pattern, how wet and how rough.

No sensor is rendered from class labels. Latent fields decide how far each land cover holds a pixel, that
gives its materials (leaves, soil, water, ...), further latent fields their pattern, and the sensors see the
materials.
"""

from dataclasses import dataclass

import numpy as np

from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.land_cover import WATER

from .latents import Latents
from .planet import Planet

#: What may cover a pixel; each sensor knows how these look.
MATERIALS = ("crown", "herb", "dry", "soil", "water", "snow", "roof", "street", "lichen", "shade")
#: Share of the materials in each land cover (rows as WorldCover's classes) before pattern, season and region.
_COVER = np.array(
    [  # crown herb dry soil water snow roof street lichen shade
        (0.72, 0.08, 0.04, 0.02, 0.00, 0.00, 0.00, 0.00, 0.00, 0.14),  # tree cover
        (0.26, 0.14, 0.24, 0.30, 0.00, 0.00, 0.00, 0.00, 0.00, 0.06),  # shrubland
        (0.02, 0.46, 0.36, 0.15, 0.00, 0.00, 0.00, 0.00, 0.00, 0.01),  # grassland
        (0.02, 0.48, 0.16, 0.33, 0.00, 0.00, 0.00, 0.00, 0.00, 0.01),  # cropland
        (0.14, 0.14, 0.06, 0.12, 0.00, 0.00, 0.27, 0.19, 0.00, 0.08),  # built-up
        (0.00, 0.02, 0.09, 0.86, 0.00, 0.00, 0.00, 0.00, 0.00, 0.03),  # bare
        (0.00, 0.00, 0.00, 0.08, 0.00, 0.90, 0.00, 0.00, 0.00, 0.02),  # snow and ice
        (0.00, 0.00, 0.00, 0.00, 1.00, 0.00, 0.00, 0.00, 0.00, 0.00),  # water
        (0.05, 0.40, 0.24, 0.05, 0.25, 0.00, 0.00, 0.00, 0.00, 0.01),  # wetland
        (0.66, 0.06, 0.00, 0.06, 0.12, 0.00, 0.00, 0.00, 0.00, 0.10),  # mangroves
        (0.01, 0.17, 0.20, 0.14, 0.04, 0.00, 0.00, 0.00, 0.43, 0.01),  # moss and lichen
    ],
    dtype=np.float32,
)
#: How strongly each pattern shows in each land cover.
_PATTERN = np.array(
    [  # grain bushes network pools patches dunes furrows
        (0.34, 0.00, 0.00, 0.00, 0.06, 0.00, 0.00),  # tree cover: crowns
        (0.10, 0.60, 0.00, 0.00, 0.05, 0.00, 0.00),  # shrubland: single bushes
        (0.03, 0.00, 0.00, 0.00, 0.22, 0.00, 0.00),  # grassland: soft
        (0.02, 0.00, 0.00, 0.00, 0.04, 0.00, 0.14),  # cropland: furrows, besides the parcels
        (0.12, 0.00, 0.00, 0.00, 0.02, 0.00, 0.00),  # built-up: besides blocks and streets
        (0.04, 0.00, 0.00, 0.00, 0.08, 0.50, 0.00),  # bare: dunes and ridges
        (0.00, 0.00, -0.30, 0.00, 0.16, 0.00, 0.00),  # snow and ice: crevasses
        (0.00, 0.00, 0.00, 0.00, 0.06, 0.00, 0.00),  # water
        (0.04, 0.00, 0.00, 0.55, 0.05, 0.00, 0.00),  # wetland: pools
        (0.12, 0.00, -0.85, 0.00, 0.08, 0.00, 0.00),  # mangroves: tidal channels
        (0.04, 0.00, 0.75, 0.00, 0.05, 0.00, 0.00),  # moss and lichen: patterned ground
    ],
    dtype=np.float32,
)
_SHRUB, _CROP, _TOWN, _MARSH, _MANGROVE, _MOSS = 1, 3, 4, 8, 9, 10


@dataclass(frozen=True)
class Ground:
    """The ground of one picture, the same for all sensors."""

    land_cover: np.ndarray  # (H, W) int8, class 0 to 10
    open_sea: np.ndarray  # (H, W) bool, water far from land, where WorldCover has no data
    cover: np.ndarray  # (10, H, W) share of each of :data:`MATERIALS` in midsummer; sums to 1
    texture: np.ndarray  # (H, W) local pattern, about -1 to 1
    slope: np.ndarray  # (2, H, W) of the terrain, east and north
    moisture: np.ndarray  # (H, W) of the soil, 0 to 1
    roughness: np.ndarray  # (H, W) of the soil, 0 to 2
    growth: np.ndarray  # (H, W) of the crops, 0 none to 1 full
    walls: np.ndarray  # (H, W) amount of walls that may face the radar
    climate: dict[str, float]  # mean of each of :data:`~.planet.LARGE_SCALE`


def render_ground(planet: Planet, cell: GridCell, size: int) -> Ground:
    """Renders the ground of a cell's picture of ``size`` x ``size`` pixels."""
    latents = Latents(planet, cell, size)
    share, classes = class_membership(latents)
    shape = classes.shape
    n, fields, blocks = latents.fine, latents.fields, latents.blocks
    texture = ((_PATTERN.T @ share.reshape(11, -1)) * _patterns(latents).reshape(7, -1)).sum(axis=0).reshape(shape)
    texture *= np.exp(1.4 * (latents.climate["clumping"] - 0.5))
    cover = Cover((_COVER.T @ share.reshape(11, -1)).reshape(-1, *shape))

    # The pattern swaps what stands high with what lies between: crowns with shade, herbs with soil or pools.
    high, low = np.maximum(texture, 0), np.maximum(-texture, 0)
    cover.move("crown", "shade", 0.8 * low)
    cover.move("crown", "soil", np.maximum(low - 0.15, 0) * share[_SHRUB])
    cover.move("shade", "crown", 0.5 * high)
    cover.move("soil", "shade", 0.35 * low)
    cover.move("lichen", "herb", high)
    cover.move("snow", "shade", 0.3 * low)
    cover.move("herb", "dry", np.clip(-0.5 * texture + 0.12 * n["rocks"], 0, 0.4))
    pools = np.clip(2.2 * (low - 0.10), 0, 0.9) * (share[_MARSH] + 0.6 * share[_MANGROVE] + 0.5 * share[_MOSS])
    for plant in ("herb", "dry", "crown", "lichen"):
        cover.move(plant, "water", 0.5 * pools)

    # Each parcel has its own crop, at its own stage, between hedges where it rains.
    crop = share[_CROP]
    growth = np.clip(0.5 + 1.1 * (fields.first - 0.5) + 0.15 * n["vigour"], 0, 1)
    cover.move("herb", "soil", 0.75 * crop * (1 - growth))
    cover.move("soil", "dry", 0.5 * crop * fields.second * (1 - growth))
    hedge = 0.25 * crop * ((fields.edge < 1.0) & (latents.moist > 0.45))
    cover.move("herb", "crown", hedge)
    cover.move("soil", "crown", hedge)

    # Blocks of houses, gardens and streets; roads through the country.
    town = share[_TOWN]
    houses = (blocks.second < 0.62) & (blocks.edge > 1.0)
    cover.move("street", "roof", 0.17 * town * houses)
    cover.move("herb", "roof", 0.12 * town * houses)
    cover.move("roof", "street", 0.25 * town * (blocks.edge <= 1.0))
    cover.move("roof", "crown", 0.25 * town * (blocks.second > 0.8))
    lane = 0.3 * ((latents.roads.edge < 1.2) & (latents.people > 0.35) & (share[WATER] < 0.5))
    for name in ("herb", "soil", "crown", "dry"):
        cover.move(name, "street", lane)

    moisture = latents.moist + 0.10 * n["drainage"] + 0.5 * crop * (fields.second - 0.5)
    roughness = 0.45 + 0.18 * n["rocks"] + 1.2 * texture + 1.3 * crop * (fields.first - 0.5)
    return Ground(
        land_cover=classes,
        open_sea=(classes == WATER) & (latents.climate["elevation"] < -0.3),
        cover=cover.shares,
        texture=texture,
        slope=latents.slope,
        moisture=np.clip(moisture, 0, 1),
        roughness=np.clip(roughness, 0, 1.8),
        growth=crop * growth,
        walls=cover["roof"] * (0.3 + 1.4 * blocks.first) * houses,
        climate={name: float(field.mean()) for name, field in latents.climate.items()},
    )


def _patterns(latents: Latents) -> np.ndarray:
    """Computes the patterns of :data:`_PATTERN`: (7, H, W), about -1 to 1."""
    n = latents.fine
    bushes = np.clip(1.6 * n["bushes"] - 0.9, -0.35, 1.2)
    network = np.maximum(1 - 2.8 * np.abs(n["network"]), -0.3)
    dunes = np.sin(0.55 * (latents.fields.along + 14 * n["patches"]))
    furrows = np.sin(0.9 * latents.fields.along) * (latents.fields.second > 0.5)
    return np.stack([n["grain"], bushes, network, np.tanh(3 * n["pools"]), n["patches"], dunes, furrows])


class Cover:
    """Shares of :data:`MATERIALS`, (10, H, W), that go on summing to 1 while material is moved."""

    def __init__(self, shares: np.ndarray) -> None:
        self.shares = shares

    def __getitem__(self, material: str) -> np.ndarray:
        return self.shares[MATERIALS.index(material)]

    def move(self, source: str, target: str, amount: np.ndarray) -> None:
        """Replaces ``amount`` (H, W) of one material by another, at most all of it."""
        moved = np.minimum(amount, self[source])
        self.shares[MATERIALS.index(source)] -= moved
        self.shares[MATERIALS.index(target)] += moved


_SHARPNESS = 14.0  # of the transition from one class to the next


def class_membership(latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Computes the share of a pixel that each class of WorldCover holds.

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
            2.2 * (moist - 0.50) + 0.06 * np.minimum(warm, 9) + 0.50 * vigour - 0.55 * np.maximum(people - 0.45, 0),
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
