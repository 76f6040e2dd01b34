"""Random damage anywhere in the source files: no run ends by it, and what cannot be read is counted and named.

Neither Parquet as Major-TOM has it nor GeoTIFF carries a checksum, so that some damage changes pixels and nobody can
tell: those samples are counted here. `terrafm download` and `terrafm pack` record checksums.
"""

import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datasets.tiny_files import product, tiff, write_major_tom
from terrafm_tg.datamodules import MajorTOMDataModule, SentinelFolderDataModule
from terrafm_tg.datasets import build_index
from terrafm_tg.datasets.majortom import grid

CELLS = grid.names(np.full(4, 536), np.arange(98, 102))
SECONDS = 120  # after which a case counts as hanging


@pytest.fixture(scope="module")
def major_tom(tmp_path_factory):
    """Four cells of three sensors, two in each Parquet file."""
    folder = tmp_path_factory.mktemp("major_tom")
    rows = {name: [product(name, cell) for cell in CELLS] for name in ("s2l2a", "s2l1c", "s1rtc")}
    write_major_tom(folder / "root", rows)
    build_index(folder / "root", out=folder / "index.parquet", workers=0, progress=False)
    return MajorTOMDataModule, folder


@pytest.fixture(scope="module")
def downloaded(major_tom, tmp_path_factory):
    """The same, with a checksum per page of the Parquet files, as `terrafm download` writes them."""
    folder = tmp_path_factory.mktemp("downloaded")
    shutil.copytree(major_tom[1], folder, dirs_exist_ok=True)
    for part in (folder / "root").rglob("part_*.parquet"):
        pq.write_table(pq.read_table(part), part, row_group_size=1, write_page_checksum=True)
    return MajorTOMDataModule, folder


@pytest.fixture(scope="module")
def geotiffs(tmp_path_factory):
    """Eight places of two sensors, a file with all bands each."""
    folder, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for place in range(8):
        optics = rng.integers(100, 3000, (12, 24, 24)).astype(np.uint16)
        radar = (rng.normal(-11, 3, (2, 24, 24)) - [[[0]], [[7]]]).astype(np.float32)
        for name, pixels in (("S2L2A", optics), ("S1RTC", radar)):
            path = folder / "root" / name / f"place{place}_20210501.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiff(pixels, 32633, 400_000 + 500 * place, 5_000_000, 10))
    build_index(folder / "root", tile_size=12, out=folder / "index.parquet", workers=0, progress=False)
    return SentinelFolderDataModule, folder


def datamodule(kind, folder):
    return kind(
        folder / "root", tile_size=12, index=folder / "index.parquet", batch_size=4, num_workers=0, val_share=0,
        power=0, ocean_keep=1, max_damaged_share=1,
    )  # fmt: skip


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, or the end or a piece cut off."""
    kind, start = rng.integers(3), int(rng.integers(len(content)))
    if kind == 0:
        changed = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(len(content), size=rng.integers(1, 17))
        changed[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
        return changed.tobytes()
    return content[:start] + (content[start + int(rng.integers(1, 5000)) :] if kind == 1 else b"")


def one_epoch(data) -> tuple[list[dict], list[str], int]:
    """The samples of an epoch, the names that were logged, and how many samples were replaced."""
    data.setup("fit")
    samples = []
    for batch in data.train_dataloader():
        for place in range(len(batch["row"])):
            samples.append({key: value[place] for key, value in batch.items()})
    return samples, sorted(data.damage.names), data.damage.damaged


def run_cases(kind, folder: Path, seeds: list[int], pipe) -> None:
    """One epoch per case, each of a root in which one file is damaged; what happened goes into the pipe."""
    torch.set_num_threads(1)
    truth = {int(sample["row"]): sample for sample in one_epoch(datamodule(kind, folder))[0]}
    images = [key for key in truth[0] if key.startswith("image")]
    files = sorted(path for pattern in ("*.tif", "part_*.parquet") for path in (folder / "root").rglob(pattern))
    size = np.array([file.stat().st_size for file in files])
    for seed in seeds:
        rng = np.random.default_rng(seed)
        file = files[rng.choice(len(files), p=size / size.sum())]
        whole = file.read_bytes()
        file.write_bytes(damage(whole, rng))
        data = datamodule(kind, folder)
        samples, names, replaced = one_epoch(data)
        file.write_bytes(whole)
        lost = [int(sample["damaged"]) for sample in samples if sample["damaged"] >= 0]
        assert sorted(int(sample["position"]) for sample in samples) == list(range(len(truth)))
        assert replaced == len(lost)
        assert {data.tiles.name(row) for row in lost} == {name.rpartition(" ")[0] for name in names}
        changed = sum(
            not all(torch.equal(sample[key], truth[int(sample["row"])][key]) for key in images) for sample in samples
        )
        pipe.send("unnoticed" if changed else "noticed" if lost else "no difference")


def outcomes(run, source: tuple, seeds: range) -> Counter[str]:
    """All cases in a process of their own, which neither dies nor hangs; how many had which outcome."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(*source, seeds, theirs))
    process.start()
    theirs.close()
    seen = Counter()
    try:
        for seed in seeds:
            assert ours.poll(SECONDS), f"case {seed} hangs"
            seen[ours.recv()] += 1
        process.join(SECONDS)
    except EOFError:
        pytest.fail(f"case {seed} ended the run")
    finally:
        process.kill()
    print(dict(seen))
    return seen


@pytest.mark.parametrize(
    ("source", "seeds"),
    [
        ("major_tom", range(15)),
        ("geotiffs", range(10)),
        ("downloaded", range(25, 35)),
        *(pytest.param(name, range(1000, 1200), marks=pytest.mark.soak) for name in ("major_tom", "downloaded")),
        pytest.param("geotiffs", range(1000, 1050), marks=pytest.mark.soak),
    ],
)
def test_damaged_sources(source, seeds, request) -> None:
    seen = outcomes(run_cases, request.getfixturevalue(source), seeds)
    assert seen["noticed"] > len(seeds) / 5
    if source == "downloaded":  # the checksums let no wrong pixel through
        assert seen["unnoticed"] == 0
