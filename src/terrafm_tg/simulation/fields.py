"""Random fields that are functions of the place: hashed lattices, so that cells that overlap agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

_MASK = (1 << 64) - 1
_UNIT_VARIANCE = 1 / np.sqrt((151 / 315) ** 2 / 3)  # of uniform [-1, 1) nodes under a bicubic B-spline


def mix(*values: int) -> int:
    """Mixes several integers to one 64-bit key (splitmix64's finaliser after each)."""
    key = 0
    for value in values:
        key = (key ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


def key_of(name: str) -> int:
    """Makes a key from a word, the same on every machine."""
    return mix(*name.encode())


def hashed(key: int | np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Draws uniform float32 in [0, 1) for lattice points, a function of key and place alone."""
    z = i.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + j.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    z = z + np.asarray(key, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _spline(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes a cubic B-spline basis: weights (n, nodes) float32 and the nodes' lattice numbers."""
    base = np.floor(position).astype(np.int64)
    t = position - base
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    first = base.min() - 1
    weights = np.zeros((len(position), base.max() - first + 3), dtype=np.float32)
    np.put_along_axis(weights, (base - first - 1)[:, None] + np.arange(4), taps.astype(np.float32), axis=1)
    return weights, first + np.arange(weights.shape[1])


@dataclass(frozen=True)
class Frame:
    """The pixel grid of one picture."""

    x: np.ndarray  # (W,) easting of the pixel centers in units of 10 m
    y: np.ndarray  # (H,) northing of the pixel centers in units of 10 m
    key: int  # planet and UTM zone

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return len(self.y), len(self.x)

    def noise(self, wavelength: float, keys: Sequence[int]) -> np.ndarray:
        """Draws smooth fields (F, H, W) of zero mean and unit variance on a lattice of ``wavelength`` pixels."""
        wx, nx = _spline(self.x / wavelength)
        wy, ny = _spline(self.y / wavelength)
        nodes = hashed(np.array(keys, dtype=np.uint64)[:, None, None], ny[None, :, None], nx[None, None, :])
        return np.matmul(np.matmul(wy, nodes * 2 - 1), wx.T) * np.float32(_UNIT_VARIANCE)

    def fractals(self, specs: Mapping[str, tuple[int, int, float]]) -> dict[str, np.ndarray]:
        """Sums octaves to fields of unit variance over the planet.

        Args:
            specs: Per field its longest and shortest wavelength in pixels (powers of two) and the factor by
                which the amplitude falls from one octave to the next shorter.

        Returns:
            Per field an array (H, W), float32.
        """
        out = {name: np.zeros(self.shape, dtype=np.float32) for name in specs}
        wavelength = max(top for top, _, _ in specs.values())
        while wavelength >= min(bottom for _, bottom, _ in specs.values()):
            names = [n for n, (top, bottom, _) in specs.items() if bottom <= wavelength <= top]
            keys = [mix(self.key, key_of(name), wavelength) for name in names]
            for name, octave in zip(names, self.noise(wavelength, keys) if names else (), strict=True):
                top, bottom, fall = specs[name]
                powers = fall ** (2 * np.arange(np.log2(top / bottom) + 1))
                out[name] += np.float32(fall ** np.log2(top / wavelength) / np.sqrt(powers.sum())) * octave
            wavelength //= 2
        return out

    def parcels(
        self, name: str, size: tuple[float, float], angle: float, bend: tuple[np.ndarray, np.ndarray]
    ) -> "Parcels":
        """Lays a patchwork of bent rectangles in rows, as fields and blocks of houses are.

        Args:
            name: Names the patchwork.
            size: Width and height of a parcel in pixels.
            angle: Direction of the rows in radians.
            bend: Two fields (H, W) that shift the pattern, in pixels.

        Returns:
            The patchwork.
        """
        key = mix(self.key, key_of(name))
        # Northing runs to 10^6: counted from a corner of the picture float32 stays exact to 0.01 pixels.
        x0, y0, cos, sin = self.x[0], self.y[0], float(np.cos(angle)), float(np.sin(angle))
        x = (self.x - x0).astype(np.float32)[None, :] + bend[0]
        y = (self.y - y0).astype(np.float32)[:, None] + bend[1]
        u0, v0 = (cos * x0 + sin * y0) / size[0], (cos * y0 - sin * x0) / size[1]
        u = (cos / size[0]) * x + (sin / size[0]) * y + float(u0 % 1)
        v = (cos / size[1]) * y - (sin / size[1]) * x + float(v0 % 1)
        row = np.floor(v)
        rows = row.astype(np.int64) + int(v0 // 1)
        u += hashed(mix(key, 1), rows, np.zeros(1, dtype=np.int64))  # rows are shifted against each other
        col = np.floor(u)
        cols = col.astype(np.int64) + int(u0 // 1)
        du, dv = u - col, v - row
        edge = np.minimum(np.minimum(du, 1 - du) * size[0], np.minimum(dv, 1 - dv) * size[1])
        along = (u + float(u0 // 1 % 4096)) * size[0]
        return Parcels(hashed(mix(key, 2), rows, cols), hashed(mix(key, 3), rows, cols), edge, along)


@dataclass(frozen=True)
class Parcels:
    """A patchwork; fields (H, W), float32."""

    first: np.ndarray  # a number per parcel in [0, 1)
    second: np.ndarray  # another
    edge: np.ndarray  # distance to the parcel's edge in pixels
    along: np.ndarray  # coordinate along the rows in pixels


def block_mean(images: np.ndarray, factor: int) -> np.ndarray:
    """Averages blocks of ``factor`` x ``factor`` pixels: (..., H, W) to (..., H/factor, W/factor)."""
    rows = reduce(np.add, [images[..., i::factor, :] for i in range(factor)])
    return reduce(np.add, [rows[..., i::factor] for i in range(factor)]) * np.float32(1 / factor**2)
