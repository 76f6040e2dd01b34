"""The form in which vectors are stored: all dimensions or principal components, as float32, float16 or int8.

A stored number becomes a value again by ``value = number * scale`` (int8: a scale per dimension, -128 where a vector is
missing; float16 and float32: 1, and NaN). Principal components become a vector of all dimensions again by
``values @ components + mean``.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_text

if TYPE_CHECKING:
    from terrafm_tg.inference.parts import MapParts

DTYPES = ("float32", "float16", "int8")
#: What int8 holds where a vector is missing.
MISSING = -128
_SAMPLE = 1 << 14  # vectors that scales are taken from
# The range of int8 is this quantile of a dimension's magnitudes and a quarter more, 4.1 standard deviations of a normal
# distribution: a few outliers do not coarsen the rest, and hardly any other value is clipped.
_QUANTILE, _MORE = 0.999, 1.25
_HALF = float(np.finfo(np.float16).max)
_FORMAT = "terrafm-reduction-1"


@dataclass(frozen=True, eq=False)
class Reduction:
    """Steps from the encoder's vectors to what is stored, and back.

    Args:
        depth: Dimensions of a vector as the encoder gives it.
        dtype: One of :data:`DTYPES`.
        mean: Mean vector, (depth,) float32; None where there is no PCA.
        components: Principal components of length one, those of most variance first, (kept, depth) float32. The sign
            is such that the entry of largest magnitude is positive.
        explained: Share of the variance that each has, (kept,) float32.
        scale: Of int8: what a step of each stored dimension is worth, (stored,) float32.
        clipped: Share of values outside of int8's range, of the sample that the scales were taken from.
    """

    depth: int
    dtype: str = "float32"
    mean: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None
    explained: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    clipped: float = 0.0

    @property
    def stored(self) -> int:
        """Dimensions that are stored."""
        return self.depth if self.components is None else len(self.components)

    @property
    def missing(self) -> float:
        """The number that marks a missing vector, in each of its dimensions."""
        return MISSING if self.dtype == "int8" else float("nan")

    @classmethod
    def fit(
        cls,
        vectors: Iterable[NDArray[np.float32]],
        depth: int,
        dtype: str = "float32",
        pca: "int | Reduction | None" = None,
    ) -> "Reduction":
        """Makes one from vectors that are read once, in any number.

        Args:
            vectors: Arrays (n, depth) of them; those with a value that is not finite are missing and left out.
            depth: Their dimensions.
            dtype: One of :data:`DTYPES`.
            pca: How many principal components are kept, or an earlier reduction whose components are taken over (and
                its scales, if the type is the same); None for all dimensions.

        Returns:
            The reduction, the same for the same arrays.

        Raises:
            TerraFMError: If the type, the number of components or the earlier reduction does not fit, or all vectors
                are missing where some are needed.
        """
        if dtype not in DTYPES:
            raise TerraFMError(f"Embeddings of type {dtype!r} cannot be written: choose one of {', '.join(DTYPES)}.")
        start = cls(depth, dtype)
        if isinstance(pca, Reduction):
            if pca.components is None or pca.depth != depth:
                raise TerraFMError(
                    f"The PCA that was given reduces {pca.depth} dimensions to {pca.stored}, which the model's {depth} "
                    "dimensions cannot be: fit one with a number of components, or give another."
                )
            if pca.dtype == dtype:
                return pca
            start = replace(pca, dtype=dtype, scale=None, clipped=0.0)
        elif pca is not None and not 1 <= pca <= depth:
            raise TerraFMError(f"{pca} principal components of {depth} dimensions: give a number from 1 to {depth}.")
        if dtype != "int8" and not isinstance(pca, int):
            return start
        moments, sample = _Moments(depth), _Sample()
        for array in vectors:
            array = array[np.isfinite(array).all(1)]
            sample.add(array)
            if isinstance(pca, int):
                moments.add(array)
        if not sample.count:
            raise TerraFMError(
                f"No vector is there to fit {'a PCA' if pca else 'the scales of int8'} to: all are missing, so give "
                "other images, or dtype float32 without a PCA."
            )
        if isinstance(pca, int):
            start = moments.principal(start, pca)
        return start._scaled(sample.vectors) if dtype == "int8" else start

    @classmethod
    def fit_maps(
        cls, maps: Iterable["MapParts"], dtype: str = "float32", pca: "int | Reduction | None" = None
    ) -> "Reduction":
        """Makes one that suits all of some maps. Arguments and errors as of :meth:`fit`."""
        maps = list(maps)
        return cls.fit((part.reshape(-1, part.shape[-1]) for part in _parts(maps)), maps[0].depth, dtype, pca)

    def _scaled(self, sample: NDArray[np.float32]) -> "Reduction":
        """Returns it with the scales of int8 that suit a sample of vectors."""
        magnitude = np.abs(self._project(sample))
        top = np.quantile(magnitude, _QUANTILE, axis=0) * _MORE
        top = np.where(top > 0, top, magnitude.max(axis=0))  # a dimension that is nearly always 0
        scale = np.where(top > 0, top / 127, 1.0).astype(np.float32)
        return replace(self, scale=scale, clipped=float(np.mean(magnitude > 127.5 * scale)))

    def _project(self, vectors: NDArray) -> NDArray[np.float32]:
        if self.components is None:
            return vectors
        assert self.mean is not None
        centered = vectors.astype(np.float64) - self.mean  # rounding to float32 hides how a BLAS orders its sums
        return (centered @ self.components.T.astype(np.float64)).astype(np.float32)

    def encode(self, vectors: NDArray[np.float32]) -> NDArray:
        """Turns vectors of the encoder (..., depth) into what is stored (..., stored), a missing one as a whole."""
        missing = ~np.isfinite(vectors).all(-1, keepdims=True)
        values = self._project(np.where(missing, np.float32(0), vectors))
        if self.scale is not None:
            return np.where(missing, MISSING, np.rint(values / self.scale).clip(-127, 127)).astype(np.int8)
        values = values if self.dtype == "float32" else values.clip(-_HALF, _HALF)
        return np.where(missing, np.float32("nan"), values).astype(self.dtype)

    def decode(self, numbers: NDArray) -> NDArray[np.float32]:
        """Turns what is stored (..., stored) into values (..., stored), NaN where a vector is missing."""
        if self.scale is None:
            return numbers.astype(np.float32)
        return np.where(numbers == MISSING, np.float32("nan"), numbers.astype(np.float32) * self.scale)

    def restore(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turns values (..., stored), as :meth:`decode` gives them, into vectors (..., depth) as of the encoder."""
        if self.components is None:
            return values
        assert self.mean is not None
        return (values @ self.components + self.mean).astype(np.float32)

    def to_json(self) -> str:
        """Writes it as one line of JSON, arrays as base64 of little-endian float32."""
        plain: dict[str, Any] = {"format": _FORMAT, "depth": self.depth, "dtype": self.dtype, "clipped": self.clipped}
        for name in ("mean", "components", "explained", "scale"):
            if (array := getattr(self, name)) is not None:
                plain[name] = b64encode(array.astype("<f4").tobytes()).decode()
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> "Reduction":
        """Reads what :meth:`to_json` wrote.

        Raises:
            TerraFMError: If the text is something else.
        """
        try:
            plain = json.loads(text)
            if plain.pop("format") != _FORMAT or plain["dtype"] not in DTYPES:
                raise ValueError
            depth = int(plain["depth"])
            arrays: dict[str, NDArray[np.float32]] = {
                name: np.frombuffer(b64decode(plain[name]), "<f4").astype(np.float32)
                for name in ("mean", "components", "explained", "scale")
                if name in plain
            }
            if "components" in arrays:
                arrays["components"] = arrays["components"].reshape(-1, depth)
            reduction = cls(**plain | arrays)
            shapes = {"mean": depth, "explained": reduction.stored, "scale": reduction.stored}
            if any(len(arrays[name]) != size for name, size in shapes.items() if name in arrays) or (
                ("scale" in arrays) != (plain["dtype"] == "int8") or ("mean" in arrays) != ("components" in arrays)
            ):
                raise ValueError
            return reduction
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise TerraFMError(
                f"A reduction cannot be read from {text[:40]!r}: give the .pca.json that was written beside a product."
            ) from error

    def save(self, path: Path) -> None:
        """Writes it to a file, to be given again as ``--pca``."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> "Reduction":
        """Reads what :meth:`save` wrote.

        Raises:
            TerraFMError: If the file is missing, or is something else.
        """
        if not path.is_file():
            raise TerraFMError(f"{path} is no file: give the .pca.json that was written beside a product.")
        return cls.from_json(path.read_text(errors="replace"))


class _Moments:
    """Mean and covariance of vectors, summed in float64 around the first one's neighborhood."""

    def __init__(self, depth: int) -> None:
        self.count, self.origin = 0, np.zeros(depth)
        self.sums, self.products = np.zeros(depth), np.zeros((depth, depth))

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Counts vectors (n, depth)."""
        if len(vectors) and not self.count:
            self.origin = vectors.mean(0, dtype=np.float64)  # sums of squares far from zero would lose digits
        centered = vectors - self.origin
        self.count += len(vectors)
        self.sums += centered.sum(0)
        self.products += centered.T @ centered

    def principal(self, start: Reduction, keep: int) -> Reduction:
        """Returns a reduction to the principal components."""
        mean = self.sums / self.count
        values, directions = np.linalg.eigh(self.products / self.count - np.outer(mean, mean))
        values, components = values[::-1].clip(0), directions.T[::-1][:keep]
        largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
        explained = values[:keep] / (values.sum() or 1.0)
        return replace(
            start,
            mean=(self.origin + mean).astype(np.float32),
            components=(components * np.sign(largest)).astype(np.float32),
            explained=explained.astype(np.float32),
        )


class _Sample:
    """Every so-many-th of vectors that come in one after the other, at most so many, however they are cut."""

    def __init__(self) -> None:
        self.count, self.step = 0, 1
        self.kept: list[NDArray[np.float32]] = []

    @property
    def vectors(self) -> NDArray[np.float32]:
        return np.concatenate(self.kept)

    def add(self, vectors: NDArray[np.float32]) -> None:
        self.kept.append(vectors[-self.count % self.step :: self.step].copy())
        self.count += len(vectors)
        while sum(map(len, self.kept)) > _SAMPLE:
            self.step *= 3  # which no width of a part is a multiple of: not the same columns of each
            self.kept = [self.vectors[::3].copy()]


def _parts(maps: Iterable["MapParts"]) -> Iterator[NDArray]:
    """Reads the parts of maps, row by row."""
    for one in maps:
        down, across = one.grid
        yield from (one.read(row, column) for row in range(down) for column in range(across))
