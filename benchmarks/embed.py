"""A map of embeddings beside a plain loop over windows (read, forward, write), in one run; and what bounds it.

python -m benchmarks.embed [--size 1536] [--model terrafm_tiny]
python -m benchmarks.embed --memory 500 2000 11000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from rich.console import Console

from terrafm_tg.inference.engine import WindowSettings
from terrafm_tg.inference.predictor import Encoder
from terrafm_tg.inference.products import Reduction, write_cog
from terrafm_tg.inference.run import plan_maps, run_maps
from terrafm_tg.inference.sources import find_images
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import build_encoder
from terrafm_tg.transforms import Normalize

_PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 399960, 0, -10, 5400000)}
_NAMES = {"s2l2a": "S2B_MSIL2A_20230302T095029_N0400_R079_T33UXP_20230302T104753.tif", "s1rtc": "S1A_IW_20230302.tif"}


def write_scene(folder: Path, size: int) -> dict[str, Path]:
    """Writes both sensors of a place as tiled, compressed GeoTIFF."""
    rng, paths = np.random.default_rng(0), {}
    for name, file in _NAMES.items():
        bands = MODALITIES[name].bands
        small = rng.normal(size=(len(bands), size // 8, size // 8)).astype(np.float32)
        field = small.repeat(8, 1).repeat(8, 2) + 0.3 * rng.normal(size=(len(bands), size, size)).astype(np.float32)
        optical = name == "s2l2a"
        pixels = (900 + 200 * field).clip(60).astype(np.uint16) if optical else field - 12
        if optical:
            pixels[8] = pixels[7]
        else:
            pixels[1] -= 7
        with rasterio.open(
            folder / file, "w", driver="GTiff", count=len(bands), height=size, width=size, dtype=pixels.dtype,
            nodata=0 if optical else np.nan, tiled=True, blockxsize=512, blockysize=512, compress="deflate", **_PLACE,
        ) as out:  # fmt: skip
            out.write(pixels)
            out.descriptions = bands
        paths[name] = folder / file
    return paths


def plain_loop(paths: dict[str, Path], model: torch.nn.Module, out: Path, size: int, window: int, step: int) -> int:
    """Reads a window of each sensor, computes its tokens, and writes those inside, window by window."""
    normalize = {name: Normalize(name) for name in paths}
    files = {name: rasterio.open(path) for name, path in paths.items()}
    cells, edge, count = size // 16, (window - step) // 32, 0
    profile = {"height": cells, "width": cells, "count": model.embed_dim, "dtype": "float32", "tiled": True}
    starts = sorted({*range(0, size - window, step), size - window})
    with torch.inference_mode(), rasterio.open(
        out, "w", driver="GTiff", blockxsize=64, blockysize=64, interleave="pixel",
        crs=_PLACE["crs"], transform=_PLACE["transform"] * Affine.scale(16), **profile,
    ) as target:  # fmt: skip
        for top in starts:
            for left in starts:
                part = Window(left, top, window, window)
                images = {
                    name: normalize[name](torch.from_numpy(file.read(window=part)))[None]
                    for name, file in files.items()
                }
                n = window // 16
                tokens = model.forward_features(images)[0, 1:].view(n, n, -1)
                y0, x0 = (edge if start else 0 for start in (top, left))
                inner = tokens[y0:, x0:].permute(2, 0, 1).numpy()
                target.write(inner, window=Window(left // 16 + x0, top // 16 + y0, inner.shape[2], inner.shape[1]))
                count += 1
    for file in files.values():
        file.close()
    return count


def write_large(path: Path, size: int) -> None:
    """Writes four bands of a scene block by block, as a large one must be."""
    rng, bands = np.random.default_rng(0), ("B02", "B03", "B04", "B08")
    block = (900 + 200 * rng.normal(size=(4, 512, 512))).clip(60).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", count=4, height=size, width=size, dtype="uint16", nodata=0, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", BIGTIFF="IF_SAFER", **_PLACE,
    ) as out:  # fmt: skip
        for _, part in out.block_windows():
            out.write(block[:, : part.height, : part.width], window=part)
        out.descriptions = bands


def _one_size(folder: Path, size: int, model: str) -> None:
    """Embeds a scene of a size and prints the peak memory of this process, before and after."""
    import resource

    from terrafm_tg.inference.embed import embed

    weights = folder / "model.pth"
    torch.save(build_encoder(model).state_dict(), weights)
    write_large(folder / _NAMES["s2l2a"], size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start = time.perf_counter()
    found = embed(folder / _NAMES["s2l2a"], folder / "map.tif", weights, offset=0, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"{size:6d} px: peak {peak:7.0f} MB ({before:.0f} before), {time.perf_counter() - start:6.1f} s, "
        f"{found.area / found.seconds:.2f} km²/s, {found.spent.bound}", flush=True,
    )  # fmt: skip


def main() -> None:
    """Measures both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1536)
    parser.add_argument("--model", default="terrafm_tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=224)
    parser.add_argument("--memory", type=int, nargs="*")
    options = parser.parse_args()
    if options.memory is not None:
        for size in options.memory:
            with tempfile.TemporaryDirectory() as name:
                if len(options.memory) == 1:
                    _one_size(Path(name), size, options.model)
                else:  # each in a process of its own, whose peak is its own
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.embed",
                        "--model",
                        options.model,
                        "--memory",
                        str(size),
                    ]
                    subprocess.run(command, check=True)
        return
    console = Console(quiet=True)
    settings = WindowSettings(options.window)
    step = options.window // 16 - round(settings.overlap * (options.window // 16))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scene").mkdir()
        paths = write_scene(folder / "scene", options.size)
        encoder = Encoder(options.model, weights=False)
        print(f"vectors of {encoder.depth} numbers")  # which builds the encoder, before time is taken
        plain = build_encoder(options.model).eval()
        images = find_images(folder / "scene", offset=0, unit={"s2l2a": "DN", "s1rtc": "dB"})
        ratios, shares = [], []
        for number in range(options.rounds):
            start = time.perf_counter()
            count = plain_loop(paths, plain, folder / "plain.tif", options.size, options.window, step * 16)
            loop = time.perf_counter() - start
            start = time.perf_counter()
            works = plan_maps(images, encoder, settings, folder / str(number), lambda image: {})
            spent = run_maps(works, encoder, settings, console)
            write_cog(works[0].parts, folder / f"{number}.tif", Reduction.fit_maps([works[0].parts]))
            ours = time.perf_counter() - start
            ratios.append(loop / ours)
            shares.append(spent.computing / ours)
            print(
                f"round {number}: loop {loop:.1f} s ({count} windows), embed {ours:.1f} s ({spent.windows} windows; "
                f"model {spent.computing:.1f}, reading {spent.reading:.1f}, writing {spent.writing:.1f})", flush=True,
            )  # fmt: skip
        area = options.size**2 / 1e4
        print(
            f"{options.model}, {options.size} px, {torch.get_num_threads()} threads: {np.median(ratios):.2f} times the "
            f"plain loop; the model takes {np.median(shares):.0%} of the time; {area / ours:.2f} km²/s"
        )


if __name__ == "__main__":
    main()
