"""A map in the making: parts of a large array that are written as they are finished, each whole or not at all."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write, write_json

_PLAN = "map.json"


@dataclass(frozen=True)
class MapParts:
    """The pixels of a map, in a folder with a file per part.

    Parts are squares of ``part`` pixels, the last of each row and column what is left. A part is there as a whole or
    not at all, so work that was killed goes on with those that are missing.

    Args:
        folder: Where the files lie.
        name: Of the map: that of its image.
        crs: Its CRS as text (``EPSG:32633``).
        transform: The six numbers of its affine transform, from pixels to the CRS, north up.
        height: In pixels of the map.
        width: Likewise.
        depth: Values of a pixel: dimensions of an embedding, or bands of a map of classes.
        part: Edge of a part in pixels of the map.
        dtype: Of the values; missing ones are NaN in float32, and otherwise as ``about`` says.
        about: What the map is made of, for the metadata of products: plain values that JSON can hold.
    """

    folder: Path
    name: str
    crs: str
    transform: tuple[float, ...]
    height: int
    width: int
    depth: int
    part: int
    dtype: str = "float32"
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def affine(self) -> Affine:
        """Its transform."""
        return Affine(*self.transform[:6])

    @property
    def epsg(self) -> int | None:
        """EPSG code of its CRS; None where it has none."""
        return CRS(self.crs).to_epsg()

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of parts."""
        return -(-self.height // self.part), -(-self.width // self.part)

    def slices(self, row: int, column: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the map that a part holds."""
        starts = row * self.part, column * self.part
        ends = min(starts[0] + self.part, self.height), min(starts[1] + self.part, self.width)
        return slice(starts[0], ends[0]), slice(starts[1], ends[1])

    def begin(self) -> None:
        """Makes the folder; what it holds of this very map stays.

        Raises:
            TerraFMError: If it holds parts of another one.
        """
        plan = asdict(self) | {"folder": ""}
        plan = json.loads(json.dumps(plan))
        if (self.folder / _PLAN).is_file():
            if json.loads((self.folder / _PLAN).read_text()) != plan:
                raise TerraFMError(
                    f"{self.folder} holds parts of {self.name} that were made with other settings: remove it, or give "
                    "another output."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _PLAN, plan)

    @classmethod
    def open(cls, folder: Path) -> "MapParts":
        """Opens what :meth:`begin` made."""
        plan = json.loads((folder / _PLAN).read_text())
        return cls(**plan | {"folder": folder, "transform": tuple(plan["transform"])})

    def path(self, row: int, column: int) -> Path:
        """Returns the file of a part."""
        return self.folder / f"r{row:04d}_c{column:04d}.npy"

    def has(self, row: int, column: int) -> bool:
        """Tells whether a part is there."""
        return self.path(row, column).is_file()

    def write(self, row: int, column: int, values: NDArray) -> None:
        """Writes a part, (h, w, depth)."""
        rows, columns = self.slices(row, column)
        assert values.shape == (rows.stop - rows.start, columns.stop - columns.start, self.depth), values.shape
        with atomic_write(self.path(row, column), sole_writer=True) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(values, self.dtype))

    def read(self, row: int, column: int) -> NDArray:
        """Reads a part, (h, w, depth)."""
        return np.load(self.path(row, column), allow_pickle=False)

    def rows(self) -> Iterator[tuple[slice, NDArray]]:
        """Reads row of parts after row of parts.

        Yields:
            The rows of the map, and their values (h, width, depth).
        """
        down, across = self.grid
        for row in range(down):
            parts = [self.read(row, column) for column in range(across)]
            yield self.slices(row, 0)[0], np.concatenate(parts, axis=1)

    def finished(self) -> bool:
        """Tells whether all parts are there."""
        down, across = self.grid
        return all(self.has(row, column) for row in range(down) for column in range(across))
