"""Datamodules of tiles, one per source: each opens its dataset, with arguments of its own."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from terrafm_tg.datasets import MajorTOM, MixedTiles, MMEarthTiles, PackedTiles, SentinelFolder, SSL4EOS12Tiles
from terrafm_tg.datasets.source import open_tiles
from terrafm_tg.simulation import SimulatedWorld
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, POSITIVE, checked

from .tiles import TileDataModule


@checked()
class MajorTOMDataModule(TileDataModule):
    """Batches from Major-TOM Core on disk.

    Run ``terrafm index`` on the root first, so that land cover is known.

    Args:
        root: Folder with ``Core-S2L2A``, ``Core-S2L1C``, ``Core-S1RTC``, any of them.
        tile_size: Edge of a tile in pixels of 10 m: half a cell's.
        index: Path of a tile index instead of ``root/index.parquet``.
        ambiguous_offset: Decides where a product's name does not tell it: ``error``, ``present``,
            ``absent``, ``drop``; see :class:`~terrafm_tg.datasets.MajorTOM`.
        remote: Read rows whose file is not on disk from their URL: true for the published source, or the address of
            another.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    kind = MajorTOM

    def __init__(
        self,
        root: str | os.PathLike[str],
        tile_size: int = 534,
        index: str | os.PathLike[str] | None = None,
        ambiguous_offset: str = "error",
        remote: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


@checked(max_days=NOT_NEGATIVE)
class SentinelFolderDataModule(TileDataModule):
    """Batches from a folder of Sentinel scenes: see :class:`~terrafm_tg.datasets.SentinelFolder`.

    Args:
        root: The folder.
        tile_size: Larger images are cut into tiles of this many pixels; smaller ones are used whole.
        index: Path of a tile index instead of ``root/index.parquet``.
        folders: Folder below the root by modality; usual names are looked for where None.
        bands: Bands of files in their order, for all modalities or by modality.
        unit: ``dB``, ``linear``, ``amplitude`` (radar), ``DN`` or ``reflectance`` (optics), for all or by modality;
            where None, as files and pixels tell.
        scale: Digital numbers, or radar's unit, per stored number, for all or by modality; likewise.
        offset: The offset of processing baseline 04.00 that optical files hold: 0, 1000 or ``detect``,
            for all or by modality.
        nodata: Stored value that is missing, for all or by modality, besides what files declare.
        ambiguous_offset: Decides where it could not be found out: ``error``, ``present``, ``absent``,
            ``drop``.
        max_days: Do not join images that are further apart in time.
        join: S1 images within that time that a tile is joined with: ``nearest`` (the default), or ``all``, a sample
            each.
        small_images: Images smaller than a tile where others are not: ``drop`` them (the default), or ``pad`` them.
        mask_clouds: Count pixels as missing that the product's own mask calls cloud or its shadow.
        remote: Addresses below which images may lie that a STAC search found (``terrafm index --stac`` says them).
        **kwargs: Settings of :class:`TileDataModule`.
    """

    kind = SentinelFolder

    def __init__(
        self,
        root: str | os.PathLike[str],
        tile_size: int = 534,
        index: str | os.PathLike[str] | None = None,
        folders: Mapping[str, str] | None = None,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        unit: str | Mapping[str, str] | None = None,
        scale: float | Mapping[str, float] | None = None,
        offset: int | str | Mapping[str, int | str] | None = None,
        nodata: float | Mapping[str, float] | None = None,
        ambiguous_offset: str = "error",
        max_days: float | None = None,
        join: str | None = None,
        small_images: str | None = None,
        mask_clouds: bool = False,
        remote: bool | str | Sequence[str] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


@checked()
class SSL4EOS12DataModule(TileDataModule):
    """Batches from SSL4EO-S12 on disk: see :class:`~terrafm_tg.datasets.SSL4EOS12Tiles`.

    Args:
        root: Folder with ``s1``, ``s2c``, ``s2a``, any of them.
        index: Path of a tile index instead of ``root/index.parquet``.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    kind = SSL4EOS12Tiles

    def __init__(
        self, root: str | os.PathLike[str], index: str | os.PathLike[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)


@checked()
class MMEarthDataModule(TileDataModule):
    """Batches from MMEarth on disk: see :class:`~terrafm_tg.datasets.MMEarthTiles`.

    Args:
        root: Folder that holds ``data_1M_v001``, ``data_1M_v001_64`` or ``data_100k_v001``.
        subset: ``MMEarth``, ``MMEarth64`` or ``MMEarth100k``; the one that lies there where None.
        index: Path of a tile index instead of ``root/index.parquet``.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    kind = MMEarthTiles

    def __init__(
        self,
        root: str | os.PathLike[str],
        subset: str | None = None,
        index: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


@checked(disk_cache_gb=POSITIVE)
class PackedDataModule(TileDataModule):
    """Batches from a store that ``terrafm pack`` made.

    Args:
        root: Folder of the store, or its URL.
        index: Path of a tile index with a part of the store's rows, instead of all.
        ambiguous_offset: Decides where a product's name does not tell it: ``error``, ``present``,
            ``absent``, ``drop``; see :class:`~terrafm_tg.datasets.MajorTOM`.
        disk_cache: Folder on a local disk that keeps what was read of a store elsewhere, shared by all processes of the
            machine.
        disk_cache_gb: Most that it keeps.
        **kwargs: Settings of :class:`TileDataModule`.
    """

    kind = PackedTiles

    def __init__(
        self,
        root: str | os.PathLike[str],
        index: str | os.PathLike[str] | None = None,
        ambiguous_offset: str = "error",
        disk_cache: str | os.PathLike[str] | None = None,
        disk_cache_gb: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


@checked()
class MixedDataModule(TileDataModule):
    """Batches from several archives in one run: see :class:`~terrafm_tg.datasets.MixedTiles`.

    Args:
        roots: Folders of archives and packed stores of any kind; or a mapping of them to settings of their dataset,
            such as ``{"data/rgbn": {"bands": {"s2l2a": ["B02", "B03", "B04", "B08"]}}, "data/major_tom": {}}``.
        tile_size: Edge of all tiles in pixels of 10 m, to which larger ones are cut; that of the smallest where None.
        **kwargs: Settings of :class:`TileDataModule`. ``by: [archive, land_cover]`` draws the tiles of a small archive
            more often.
    """

    def __init__(
        self, roots: dict[str, dict[str, Any] | None] | list[str], tile_size: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        pairs = roots.items() if isinstance(roots, Mapping) else dict.fromkeys(roots).items()
        self.hparams["roots"] = {os.fspath(root): dict(settings or {}) for root, settings in pairs}

    def make_dataset(self) -> MixedTiles:
        """Opens the archives."""
        sources = [open_tiles(root, **settings) for root, settings in self.hparams["roots"].items()]
        return MixedTiles(sources, self.hparams["modalities"], self.hparams["tile_size"])


@checked(cells=COUNT, cell_size=COUNT, world_seed=NOT_NEGATIVE, world_workers=NOT_NEGATIVE)
class SimulatedDataModule(TileDataModule):
    """Batches from the simulated world, which is written first where ``root`` does not hold it.

    Args:
        root: The world's folder.
        cells: Number of cells; where None, as many as the world there has, or 700.
        cell_size: Pixels of a cell's picture at 10 m, of which a tile is half; where None, that of the world
            there, or 264.
        world_seed: Number of the planet; where None, the one there, or 0.
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
        """Writes the world, in one process."""
        self.make_dataset()

    def make_dataset(self) -> SimulatedWorld:
        """Opens the world, after writing it where it is missing."""
        options = {name: self.hparams[name] for name in ("root", "modalities", "cells", "cell_size")}
        seed, workers = self.hparams["world_seed"], self.hparams["world_workers"]
        return SimulatedWorld(native=True, seed=seed, workers=workers, **options)
