"""The tools of the ``terrafm`` command besides the trainer's: one function each, its signature is its options."""

from pathlib import Path

from .errors import TerraFMError


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


def export(
    checkpoint: Path,
    out: Path,
    onnx: list[str] | str | None = None,
    bands: list[str] | dict[str, list[str]] | None = None,
    size: int | str = 224,
    fold: bool = False,
) -> None:
    """Write the teacher encoder of a pretraining checkpoint for other projects.

    Makes OUT.safetensors, and OUT.ckpt for the `weights=` of TorchGeo's tasks; both load with
    `get_model("terrafm_<size>", weights=path)`. With --onnx also OUT.onnx, checked against the encoder.

    Args:
        checkpoint: A checkpoint that `terrafm fit` wrote, or what else `get_model(..., weights=...)` takes.
        out: Path of the new files, without an ending.
        onnx: Modality that OUT.onnx reads, or several that it fuses, such as s2l2a or [s1rtc,s2l2a].
        bands: For ONNX: bands of the input in the order of its channels, such as [B04,B03,B02]; all by default.
        size: For ONNX: height and width in pixels, one number or such as 224x320. Only the batch is dynamic.
        fold: For ONNX: whether to fold the stem's linear maps, which is faster and exact up to rounding.
    """
    from .models import build_encoder, export_encoder, export_onnx, load_encoder_state, reparameterize

    paths = list(export_encoder(checkpoint, out))
    if onnx is not None:
        name = load_encoder_state(paths[0])[1]["model"]
        if name is None:
            raise TerraFMError(
                f"{checkpoint} is of no registered size: load it in Python and call export_onnx()."
            )
        modalities = [onnx] if isinstance(onnx, str) else onnx
        own = modalities[0] if len(modalities) == 1 else None
        encoder = build_encoder(name, paths[0], modality=own, bands=bands)
        sides = [int(side) if side.isdigit() else side for side in str(size).split("x")]
        pixels = (sides[0], sides[1]) if len(sides) == 2 else sides[0]
        encoder = reparameterize(encoder) if fold else encoder
        paths.append(export_onnx(encoder, paths[0].with_suffix(".onnx"), modalities, pixels))
    for path in paths:
        print(path)


def profile_encoder(
    model: list[str] | str = "terrafm_base",
    modality: str = "s2l2a",
    size: int = 224,
    batch: int = 8,
    rounds: int = 5,
    compile: bool = False,
    device: str | None = None,
) -> None:
    """Measure the encoder's forward (folded, fused attention) against a plain implementation of the same numbers.

    All variants run in turn, several rounds long, and ratios are taken within a round. With one thread on a CPU
    (OMP_NUM_THREADS=1) processor time counts, which other programs disturb less than wall time.

    Args:
        model: Names of encoders.
        modality: What they read.
        size: Height and width in pixels.
        batch: Images per forward.
        rounds: Rounds of which the median counts.
        compile: Whether to measure `torch.compile` too; it takes minutes to start on a CPU.
        device: Such as cuda or cpu; a GPU where there is one by default.
    """
    from .evaluation.encoder_speed import print_encoder_speed

    for name in [model] if isinstance(model, str) else model:
        print_encoder_speed(name, modality, size, batch, rounds, compiled=compile, device=device)
