"""Two dates of one place, as one image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.images import BEFORE, Image, SceneImage


@dataclass(frozen=True, kw_only=True)
class PairImage(Image):
    """An image, and an earlier one of the same place that is warped onto its grid.

    Args:
        after: The image, on whose grid both are read.
        earlier: The earlier one, on that grid too.
    """

    after: Image
    earlier: Image

    def _read(self, name: str, rows: slice, columns: slice) -> tuple[NDArray[np.float32] | None, list[str]]:
        own = self.earlier if name.endswith(BEFORE) else self.after
        return own._read(name.removesuffix(BEFORE), rows, columns)


def pair(before: Image, after: Image) -> PairImage:
    """Makes one image of two dates.

    Raises:
        TerraFMError: If the earlier one cannot be put on the grid of the other.
    """
    grids = [
        (image.crs, *(round(x, 6) for x in image.transform[:6]), image.height, image.width) for image in (before, after)
    ]
    if isinstance(before, SceneImage):
        before = replace(
            before, crs=after.crs, transform=Affine(*after.transform[:6]), height=after.height, width=after.width
        )
    elif grids[0] != grids[1]:
        raise TerraFMError(
            f"{before.name} and {after.name} are tiles of different grids: give two scenes, or tiles of one archive."
        )

    def both[T](first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, T]:
        return {name + BEFORE: value for name, value in first.items()} | dict(second)

    return PairImage(
        name=after.name, crs=after.crs, transform=after.transform, height=after.height, width=after.width,
        products=both(before.products, after.products), dates=both(before.dates, after.dates), cloud=after.cloud,
        after=after, earlier=before,
    )  # fmt: skip
