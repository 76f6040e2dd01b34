"""The tools of the ``terrafm`` command besides the trainer's: one function each, its signature is its options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError


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
    from terrafm_tg.simulation.dataset import simulate as write_world

    write_world(root, cells=cells, cell_size=cell_size, seed=seed, workers=workers)
    print(f"Simulated world of {cells} cells in {root}. Next: terrafm fit --config conf/pretrain.yaml "
          f"--config conf/data/simulated.yaml --data.root {root}")  # fmt: skip


def download(
    root: Path,
    bbox: list[float] | None = None,
    cells: list[str] | Path | None = None,
    land_cover: list[str | int] | str | int | None = None,
    land_cover_from: Path | None = None,
    share: float = 1.0,
    seed: int = 0,
    modalities: list[str] | str | None = None,
    require: str = "all",
    max_cloud: float = 100.0,
    extra: list[str] | str | None = None,
    max_gb: float | None = None,
    max_damaged: float = 0.05,
    worldcover: bool = False,
    source: str | None = None,
    worldcover_source: str | None = None,
    connections: int = 16,
    workers: int | None = None,
    scheduler: str | None = None,
    retries: int = 8,
    timeout: float = 60.0,
    dry_run: bool = False,
    bandwidth: float = 100.0,
    index: bool = True,
) -> None:
    """Download a subset of Major-TOM Core by range requests, then index it; the same command again goes on.

    A cell is taken where all conditions hold. What is in ROOT already is not fetched again, so that further
    commands add to it.

    Args:
        root: Folder of the local copy, in the published layout.
        bbox: West, south, east, north in degrees, such as [5.9,45.8,10.5,47.8].
        cells: Names of cells such as [897U_171L,897U_172L], or a text file with one per line.
        land_cover: Classes of ESA WorldCover such as [Cropland,Mangroves], of which one prevails in a tile.
        land_cover_from: A tile index or folder of ESA WorldCover to look them up in; fetched where not given.
        share: Random share of the cells that remain, by a hash of seed and cell.
        seed: Of the share.
        modalities: Any of s1rtc, s2l1c, s2l2a; all by default.
        require: Whether cells must have "all" of the modalities, or "any".
        max_cloud: Most cloud in percent of a Sentinel-2 product.
        extra: Columns left out otherwise: thumbnail, cloud_mask, B10.
        max_gb: The most that may be added to the disk, in GB.
        max_damaged: Share of the rows that may turn out damaged at the source.
        worldcover: Whether to fetch the files of ESA WorldCover under the cells, which the index reads.
        source: Address of the products, such as that of a mirror; {product} stands for Core-S2L2A and so on.
        worldcover_source: Address of WorldCover's files.
        connections: Requests at the same time.
        workers: Processes; one, or four for more than 20 GB, by default.
        scheduler: Address of a Dask cluster that sees the same ROOT.
        retries: Failures in a row without a new byte after which to give up.
        timeout: Seconds without a byte that count as a failure.
        dry_run: Whether only to say what would be fetched.
        bandwidth: MB/s for which a dry run says how long it takes.
        index: Whether to build the index afterwards, as `terrafm index ROOT` does.
    """
    from rich.console import Console

    from terrafm_tg.datasets.majortom.download import SOURCE, WORLDCOVER, Selection, download, read_cells

    if bbox is not None and len(bbox) != 4:
        raise TerraFMError(f"`bbox` has {len(bbox)} numbers: give west, south, east, north.")
    if bandwidth <= 0:
        raise TerraFMError(f"`bandwidth` is {bandwidth:g}: give MB/s above 0.")
    selection = Selection(
        bbox=None if bbox is None else (bbox[0], bbox[1], bbox[2], bbox[3]),
        cells=read_cells(cells),
        land_cover=_words(land_cover),
        share=share,
        seed=seed,
        modalities=_words(modalities) or None,
        require=require,
        max_cloud=max_cloud,
    )
    report = download(
        root,
        selection,
        source=source or SOURCE,
        extra=_words(extra),
        max_gb=max_gb,
        max_damaged=max_damaged,
        land_cover_from=land_cover_from,
        worldcover=worldcover,
        worldcover_source=worldcover_source or WORLDCOVER,
        connections=connections,
        workers=workers,
        scheduler=scheduler,
        retries=retries,
        timeout=timeout,
        dry_run=dry_run,
    )
    Console().print(report.table(bandwidth))
    if index and not dry_run:
        _index(root)
    elif not dry_run:
        print(f"Next: terrafm index {root}")


def _words(value: Sequence[str | int] | str | int | None) -> tuple[str, ...]:
    """One word or several; a number is read as one."""
    return (str(value),) if isinstance(value, str | int) else tuple(map(str, value or ()))


def grid(
    scenes: Path,
    root: Path,
    min_valid: float = 0.9,
    radar_unit: str | None = None,
    baseline: str | None = None,
    cell_size: int = 1068,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Cut own Sentinel scenes into Major-TOM's cells, to add to a Major-TOM root or to make one.

    The same command again goes on, and adds new scenes.

    Args:
        scenes: Folder with Sentinel-2 SAFE folders or files per band, and geocoded Sentinel-1 files (..._VV.tif).
        root: The Major-TOM root to write into; it is made where missing.
        min_valid: Least share of a cell's picture that a scene must cover.
        radar_unit: What radar files hold: linear (power), dB or amplitude; ASF's names tell it themselves.
        baseline: Processing baseline of Sentinel-2 scenes that no product folder names, such as N0509.
        cell_size: Pixels of 10 m across a cell's picture, a multiple of 12; Major-TOM's is 1068.
        workers: Processes; one per core where there is much to do, by default.
        scheduler: Address of a Dask cluster that sees the same folders.
    """
    from rich.console import Console

    from terrafm_tg.datasets.majortom.gridding import grid_scenes, gridding_summary

    written = grid_scenes(scenes, root, min_valid, radar_unit, baseline, cell_size, workers, scheduler)
    Console().print(gridding_summary(written))
    print(f"Next: terrafm index {root}")


def index(
    root: Path,
    worldcover: Path | None = None,
    climate: Path | None = None,
    regions: Path | None = None,
    tile_size: int | None = None,
    remote: bool = False,
    out: Path | None = None,
    figure: bool = True,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Build the tile index of a dataset: where each modality lies, its dates and baseline, land cover, climate, region.

    Started again after it was stopped, it goes on; after new files came, only their tiles are looked up.

    Args:
        root: A Major-TOM root, SSL4EO-S12, MMEarth or a folder of GeoTIFFs per modality.
        worldcover: Folder of ESA WorldCover tiles; `WorldCover` below the root is found by itself.
        climate: GeoTIFF of climate zone codes (such as Beck 2023) instead of the bundled Köppen-Geiger zones.
        regions: Vector file whose polygons are the world regions, instead of the bundled continents.
        tile_size: Edge of a tile in 10 m pixels, as the datamodule will have it; half a cell, or 534, by default.
        remote: Whether to take Major-TOM's cells that are not on disk too, to be read from their URLs.
        out: The file to write, instead of index.parquet below the root.
        figure: Whether to draw a map and the shares of classes, zones and regions beside it (index.png).
        workers: Processes that read the map; one per core where there is much to do, by default.
        scheduler: Address of a Dask cluster that sees the same files, to read the map there.
    """
    from rich.console import Console

    from terrafm_tg.datasets import build_index
    from terrafm_tg.datasets.index.build import index_summary, region_names

    settings = {name: value for name, value in {"tile_size": tile_size, "remote": remote}.items() if value}
    path = root / "index.parquet" if out is None else out
    how = {"workers": workers, "scheduler": scheduler}
    rows = build_index(root, worldcover, climate, regions, path, **how, **settings)
    console = Console()
    console.print(index_summary(rows))
    console.print(f"{len(rows):,} tiles in {path}")
    if figure:
        from terrafm_tg.evaluation.index_figure import write_index_figure
        from terrafm_tg.simulation.dataset import MARKER

        earth = not (root / MARKER).is_file()  # of a simulated world
        write_index_figure(rows, region_names(path), path.with_suffix(".png"), earth)
        console.print(f"Map and shares in {path.with_suffix('.png')}")


#: For commands with an option of that name.
_index = index


def pack(
    root: Path,
    out: Path,
    modalities: list[str] | str | None = None,
    quantize_radar: bool = False,
    shard_mb: float = 512,
    tile_size: int | None = None,
    max_damaged_share: float = 0.05,
    remote: bool = False,
    radar_unit: str | None = None,
    optical_scale: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> None:
    """Pack tiles into a store that feeds GPUs: native resolution, compressed for speed, a checksum per tile.

    The same command again goes on after it was stopped, adds what ROOT has got since, and brings the land cover of a
    newer `terrafm index` over. What the store holds from files that are gone stays: an archive that is larger than
    the disk is packed part by part, and several roots go into one store.

    Args:
        root: A Major-TOM root, SSL4EO-S12, MMEarth or a folder of GeoTIFFs per modality. Land cover comes from its
            index.parquet, which `terrafm index` makes.
        out: Folder of the store: absent, empty, or a store that was made with the same settings.
        modalities: Any of s1rtc, s2l1c, s2l2a; all by default.
        quantize_radar: Whether to store radar as hundredths of a decibel (int16, at most 0.005 dB from the truth), not
            as exact float32.
        shard_mb: Most megabytes of pixels in a shard (a file), before compression.
        tile_size: Edge of a tile in 10 m pixels; that of the index, half a cell, or 534, by default.
        max_damaged_share: Share of damaged tiles beyond which to stop.
        remote: Whether to read Major-TOM's cells that are not on disk from their URLs.
        radar_unit: Of a folder of GeoTIFFs: dB or linear, dB by default.
        optical_scale: Of a folder of GeoTIFFs: digital numbers per stored unit, 10000 for reflectance; 1 by default.
        workers: Processes; one per core where there is much to do, by default.
        scheduler: Address of a Dask cluster that sees the same files.
    """
    from rich.console import Console

    from terrafm_tg.datasets.source import open_source
    from terrafm_tg.datasets.store.pack import pack as write_store
    from terrafm_tg.datasets.tiles.index_file import NAME

    folder = {"radar_unit": radar_unit, "optical_scale": optical_scale, "remote": remote or None}
    tiles = open_source(
        root, [modalities] if isinstance(modalities, str) else modalities, tile_size, **folder
    )
    how = {"workers": workers, "scheduler": scheduler, "max_damaged_share": max_damaged_share}
    report = write_store(tiles, out, quantize_radar, shard_mb, **how)
    console = Console()
    console.print(report.table())
    console.print(report.in_words(out))
    if not (root / NAME).is_file():
        console.print(
            f"{root} has no {NAME}, so land cover is unknown: run `terrafm index {root}`, then this again."
        )
    console.print(
        f"Next: terrafm fit --config conf/pretrain.yaml --config conf/data/packed.yaml --data.root {out}",
        soft_wrap=True,
    )


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
    from terrafm_tg.models import (
        build_encoder,
        export_encoder,
        export_onnx,
        load_encoder_state,
        reparameterize,
    )

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


def bench(
    root: Path | None = None,
    out: Path | None = None,
    models: list[dict[str, Any] | str] | str = "terrafm_base",
    datasets: list[str] | str = "GEO-Bench",
    protocols: list[dict[str, Any] | str] | str = "knn",
    fractions: list[float] | float = 1.0,
    seeds: list[int] | int = 0,
    bands: list[str] | str = "corrected",
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 4,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: bool = True,
    dry_run: bool = False,
) -> None:
    """Evaluate encoders on GEO-Bench, Copernicus-Bench and Landslide4Sense, beside the published scores.

    Take one of the configurations in conf/bench and override what differs, such as
    `terrafm bench --config conf/bench/geobench_knn.yaml --root data/bench --models [terrafm_base,pixel-statistics]`.
    The same command again goes on where it was stopped. A dataset that is not there is skipped and named, with where
    to get it. OUT receives results.parquet, results.csv, report.md and report.html.

    Args:
        root: Folder of the benchmarks' files.
        out: Folder of the results; what it holds of other runs stays in the table.
        models: Names, with their published weights, or MODEL@FILE, or MODEL@random, such as
            [terrafm_base,torchgeo/dofa_base_patch16_224,timm/vit_small_patch16_224@random]; or mappings of model,
            weights, name, stem, sensors, pooling (token, mean), size, normalization (model, dataset), seed, channels,
            absent (neighbour, mean).
        datasets: Names, patterns or benchmarks, such as [m-eurosat,*-S1,Copernicus-Bench].
        protocols: Of knn, linear-probe, logistic, segmentation-probe, upernet, finetune, copernicus-frozen; or
            mappings of name, the protocol's settings, and datasets, fractions and seeds where these differ.
        fractions: Shares of the training split, such as [0.01,0.1,1].
        seeds: One run each; what does not depend on a seed runs once.
        bands: Band names "corrected", "labelled" as the files of two datasets have them, or both.
        device: Such as cpu, cuda or cuda:1; a GPU where there is one by default.
        batch_size: Images per forward of a frozen encoder; protocols that train have a setting of their own.
        num_workers: Processes per unit that decode images.
        workers: Units at a time on this machine, each in a process of its own; one per GPU by default.
        scheduler: Address of a Dask cluster that sees the same files: one worker per GPU.
        cache: Whether to keep embeddings in OUT for further runs.
        dry_run: Whether only to list the units of work, and what is missing.
    """
    from terrafm_tg.evaluation.bench.command import run_bench

    run_bench(
        root,
        out,
        models=models,
        datasets=datasets,
        protocols=protocols,
        fractions=fractions,
        seeds=seeds,
        bands=bands,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        workers=workers,
        scheduler=scheduler,
        cache=cache,
        dry_run=dry_run,
    )


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
    from benchmarks.encoder import print_encoder_speed

    for name in [model] if isinstance(model, str) else model:
        print_encoder_speed(name, modality, size, batch, rounds, compiled=compile, device=device)


def profile_index(path: Path | None = None, tiles: int = 6_000_000) -> None:
    """Measure what a tile index costs before the first batch, in a process that does nothing else.

    Loads it, splits it, builds the sampler, draws, resumes, and picks the tiles to validate on.

    Args:
        path: A tile index; without one, an index of synthetic tiles is written for the measurement.
        tiles: How many of those; the paper's set has six million.
    """
    from benchmarks.index import print_index_speed

    print_index_speed(path, tiles)
