"""The simulated world for the Trainer: no download."""

import os
from typing import Any

from terrafm_tg.simulation import SimulatedWorld

from .tiles import TileDataModule


class SimulatedDataModule(TileDataModule):
    """Batches from the simulated world, which is written first where ``root`` does not hold it.

    Args:
        root: The world's folder.
        cells: Number of cells; where None, as many as the world there has, or 700.
        cell_size: Pixels of a cell's picture at 10 m, of which a tile is half; where None, that of the world
            there, or 264.
        world_seed: Which planet; where None, the one there, or 0.
        world_workers: Processes that write it; one per core where None.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "data/simulated",
        cells: int | None = None,
        cell_size: int | None = None,
        world_seed: int | None = None,
        world_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def prepare_data(self) -> None:
        """Write the world, in one process."""
        self.make_dataset()

    def make_dataset(self) -> SimulatedWorld:
        """The world's tiles."""
        options = self.hparams
        return SimulatedWorld(
            options["root"],
            options["modalities"],
            native=True,
            cells=options["cells"],
            cell_size=options["cell_size"],
            seed=options["world_seed"],
            workers=options["world_workers"],
        )
