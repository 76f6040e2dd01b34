"""Linear maps between two kinds of features by canonical correlation, and a linear probe, in closed form."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Ridges, in variances of a standardized feature.
CANONICAL_RIDGE, PROBE_RIDGE = 0.01, 0.1


class Canonical(NamedTuple):
    """Two linear maps into one space, whose axes are sorted by how well the two sides agree along them.

    Attributes:
        mean: Of each side's features.
        maps: Matrix of each side, (D, k) and (E, k).
        correlation: Of the two sides along each axis, (k,), falling; smaller than the samples' own with a ridge.
    """

    mean: tuple[NDArray, NDArray]
    maps: tuple[NDArray, NDArray]
    correlation: NDArray

    def project(self, x: NDArray, side: int) -> NDArray:
        """Maps features (n, D) of a side; each axis weighs as much as the sides agree along it."""
        return (x - self.mean[side]) @ self.maps[side] * self.correlation


def fit_canonical(x: NDArray, y: NDArray, ridge: float = CANONICAL_RIDGE) -> Canonical:
    """Finds the axes along which two descriptions of the same samples agree most (Hotelling 1936), with a ridge.

    Args:
        x: Features (n, D).
        y: Features of the same samples, (n, E).
        ridge: Added to each variance, of features that are standardized.
    """
    sides = [np.asarray(side, np.float64) for side in (x, y)]
    mean, whitening, white = [], [], []
    for side in sides:
        mean.append(side.mean(axis=0))
        scale = 1 / np.maximum(side.std(axis=0), 1e-9)
        centered = (side - mean[-1]) * scale
        values, vectors = np.linalg.eigh(centered.T @ centered / len(side))
        kept = values + ridge > 1e-9 * values.max()  # a feature that others determine
        root = vectors[:, kept] / np.sqrt(values[kept] + ridge)
        whitening.append(scale[:, None] * root)
        white.append(centered @ root)
    left, correlation, right = np.linalg.svd(white[0].T @ white[1] / len(sides[0]), full_matrices=False)
    return Canonical((mean[0], mean[1]), (whitening[0] @ left, whitening[1] @ right.T), correlation)


def probe(x: NDArray, changed: NDArray, query: NDArray) -> NDArray[np.float64]:
    """Scores features (m, D) by a ridge regression of a yes or no (n,) on features (n, D)."""
    mean, scale = x.mean(axis=0, dtype=np.float64), np.maximum(x.std(axis=0, dtype=np.float64), 1e-9)
    z, target = (x - mean) / scale, changed - changed.mean()
    weight = np.linalg.solve(z.T @ z / len(z) + PROBE_RIDGE * np.eye(z.shape[1]), z.T @ target / len(z))
    return (query - mean) / scale @ weight
