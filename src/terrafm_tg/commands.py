"""The tools of the ``terrafm`` command besides the trainer's: one function each, its signature is its options."""

from pathlib import Path


def simulate(
    root: Path, cells: int = 700, cell_size: int = 1068, seed: int = 0, workers: int | None = None
) -> None:
    """Write a simulated world in Major-TOM's and ESA WorldCover's own file formats.

    Args:
        root: Folder to write into; it is made where missing.
        cells: Number of grid cells; each gives four tiles.
        cell_size: Pixels of 10 m along a cell's side, a multiple of 12; Major-TOM's is 1068.
        seed: The same seed gives the same world, byte for byte.
        workers: Processes that render at the same time; one per core by default.
    """
    from .datasets.simulated import simulate as write_world

    write_world(root, cells=cells, cell_size=cell_size, seed=seed, workers=workers)
    print(f"Simulated world of {cells} cells in {root}. Next: terrafm fit --config conf/pretrain.yaml "
          f"--config conf/data/simulated.yaml --data.root {root}")  # fmt: skip


def index(
    root: Path,
    worldcover: Path | None = None,
    climate: Path | None = None,
    regions: Path | None = None,
    tile_size: int | None = None,
    workers: int | None = None,
) -> None:
    """Build the tile index of a dataset: where each modality lies, its dates and baseline, land cover, climate, region.

    Args:
        root: A Major-TOM root (Core-S1RTC, Core-S2L1C, Core-S2L2A) or a folder of GeoTIFFs per modality.
        worldcover: Folder of ESA WorldCover tiles; `WorldCover` below the root is found by itself.
        climate: GeoTIFF of climate zone codes (Köppen-Geiger, such as Beck 2023).
        regions: Vector file whose polygons are the world regions.
        tile_size: Edge of a tile in 10 m pixels, as the datamodule will have it; half a cell, or 534, by default.
        workers: Processes that read at the same time; one per core where there is much to do, by default.
    """
    from rich.console import Console

    from .datasets import build_index
    from .datasets.index import summary_table

    size = {} if tile_size is None else {"tile_size": tile_size}
    rows = build_index(root, worldcover=worldcover, climate=climate, regions=regions, workers=workers, **size)
    console = Console()
    console.print(summary_table(rows))
    console.print(f"{len(rows):,} tiles in {root / 'index.parquet'}")


def export(checkpoint: Path, out: Path) -> None:
    """Write the teacher encoder of a pretraining checkpoint for other projects.

    Makes OUT.safetensors, and OUT.ckpt for the `weights=` of TorchGeo's tasks; both load with
    `get_model("terrafm_<size>", weights=path)`.

    Args:
        checkpoint: A checkpoint that `terrafm fit` wrote.
        out: Path of the new files, without an ending.
    """
    from .models import export_encoder

    for path in export_encoder(checkpoint, out):
        print(path)
