"""Overlapping windows over an image: places, weights and order.

The windows of a large image lie on a lattice that is fixed to the ground, not to the image's corner: scenes of one UTM
zone that overlap, such as neighboring tiles of Sentinel-2, see the same windows where both go on, and their maps agree
there. At the image's borders a window is moved inwards.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError

#: Windows along an axis from which on they lie on the common lattice; it may take one more window than needed.
_MANY = 6


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a grid of cells.

    Args:
        length: Cells of the grid.
        size: Cells of a window; the whole grid where that is shorter.
        step: Cells from one window to the next.
        phase: Place of the grid's first cell on the lattice: windows begin where place + phase is a multiple of the
            step.
    """

    length: int
    size: int
    step: int
    phase: int = 0

    @cached_property
    def span(self) -> int:
        """Cells of a window here."""
        return min(self.size, self.length)

    @cached_property
    def starts(self) -> list[int]:
        """First cells of the windows, rising."""
        last = self.length - self.span
        inner = range(-self.phase % self.step if self.length >= _MANY * self.size else 0, last, self.step)
        return sorted({0, *inner, last})

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Weight of each cell of a window: 1 inside, falling as a squared sine over the overlap.

        Of two windows a step apart the weights of a shared cell add up to 1.
        """
        overlap = max(self.size - self.step, 1)
        edge = np.minimum(np.arange(self.span), np.arange(self.span)[::-1]) + 0.5
        return np.sin(np.pi / 2 * np.minimum(edge / overlap, 1)).astype(np.float32) ** 2


@dataclass(frozen=True)
class Window:
    """A window of one run over the map.

    Args:
        row: First row of the map that it adds to.
        column: First column.
        offset: Rows and columns by which its run is shifted, in cells of the map.
    """

    row: int
    column: int
    offset: tuple[int, int]


@dataclass(frozen=True)
class WindowLayout:
    """All windows of an image, over a map of ``height`` x ``width`` cells.

    A cell of the map is ``stride`` pixels. The predictor gives a value per ``cell`` pixels; where the stride is
    shorter, the image is run over several times, each time shifted by a stride, and values lie around their own middle.

    Args:
        shape: Height and width of the image in pixels.
        cell: Pixels along each side of a value of the predictor.
        stride: Pixels along each side of a cell of the map; divides ``cell``.
        window: Edge of a window in pixels, a multiple of ``cell``.
        overlap: Share of a window that the next one covers, 0 to less than 1.
        origin: Place of the image's corner on the lattice, in cells, down and across.
        part: Edge of a part of the map, in cells of the map: windows belong to the part that they begin in.

    Raises:
        TerraFMError: If they do not fit each other.
    """

    shape: tuple[int, int]
    cell: int
    stride: int
    window: int
    overlap: float
    origin: tuple[int, int]
    part: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.cell % self.stride or (self.stride < self.cell and (self.cell - self.stride) % 2):
            fit = [n for n in range(1, self.cell + 1) if self.cell % n == 0 and (self.cell - n) % 2 == 0]
            raise TerraFMError(f"`stride` is {self.stride}: give one of {', '.join(map(str, fit))} pixels.")
        if self.window < self.cell or self.window % self.cell:
            raise TerraFMError(f"`window` is {self.window}: give a multiple of {self.cell} pixels.")
        if not 0 <= self.overlap <= 0.9:
            raise TerraFMError(f"`overlap` is {self.overlap}: give a share of a window from 0 to 0.9.")

    @property
    def fold(self) -> int:
        """Cells of the map along each side of a value of the predictor: runs along each axis."""
        return self.cell // self.stride

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map, in cells."""
        return -(-self.shape[0] // self.stride), -(-self.shape[1] // self.stride)

    def axis(self, which: int, offset: int) -> Axis:
        """Returns the windows along rows (0) or columns (1) of the run with an offset, in values."""
        length = -(-(self.size[which] - offset) // self.fold)
        count = self.window // self.cell
        step = max(count - round(self.overlap * count), 1)
        return Axis(max(length, 1), count, step, self.origin[which])

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """Of the runs; a map smaller than a value has one."""
        return [(y, x) for y in range(min(self.fold, self.size[0])) for x in range(min(self.fold, self.size[1]))]

    @cached_property
    def _by_part(self) -> dict[tuple[int, int], list[Window]]:
        found: dict[tuple[int, int], list[Window]] = {}
        for y, x in self.offsets:
            for row in (y + self.fold * start for start in self.axis(0, y).starts):
                for column in (x + self.fold * start for start in self.axis(1, x).starts):
                    place = row // self.part, column // self.part
                    found.setdefault(place, []).append(Window(row, column, (y, x)))
        return found

    def windows(self, row: int, column: int) -> list[Window]:
        """Lists the windows that begin in a part, in their order."""
        return self._by_part.get((row, column), [])

    @cached_property
    def reach(self) -> int:
        """Cells of the map that a window covers beyond its first, at most."""
        return self.fold * (self.window // self.cell)

    def cells(self, window: Window) -> tuple[slice, slice]:
        """Returns the rows and columns of the map that a window adds to."""
        spans = [self.axis(i, window.offset[i]).span for i in (0, 1)]
        rows, columns = (
            slice(start, start + self.fold * (span - 1) + 1, self.fold)
            for start, span in zip((window.row, window.column), spans, strict=True)
        )
        return rows, columns

    def pixels(self, window: Window) -> tuple[slice, slice]:
        """Returns the pixels of the image that a window shows; they may lie beyond its borders."""
        shift = (self.cell - self.stride) // 2
        ranges = []
        for which, start in enumerate((window.row, window.column)):
            first = start * self.stride - shift
            ranges.append(slice(first, first + self.axis(which, window.offset[which]).span * self.cell))
        return ranges[0], ranges[1]

    def weights(self, window: Window) -> NDArray[np.float32]:
        """Returns what its values count, (h, w)."""
        rows, columns = (self.axis(i, window.offset[i]).weights for i in (0, 1))
        return rows[:, None] * columns
