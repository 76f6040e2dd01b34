"""Random damage anywhere in a packed store ends no run and delivers no wrong pixel; each is counted and named."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.test_source_corruption import damage, one_epoch, outcomes
from datasets.tiny_files import product, write_major_tom
from terrafm_tg.datamodules import PackedDataModule
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError

CELLS = grid.names(np.full(6, 536), np.arange(98, 104))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Six cells of three sensors, two in each shard."""
    folder = tmp_path_factory.mktemp("store")
    rows = {name: [product(name, cell) for cell in CELLS] for name in ("s2l2a", "s2l1c", "s1rtc")}
    tiles = MajorTOM(write_major_tom(folder / "root", rows), native=True, tile_size=12, harmonize=False)
    pack(tiles, folder / "store", workers=0, progress=False)
    return folder / "store"


def datamodule(store: Path) -> PackedDataModule:
    return PackedDataModule(store, batch_size=4, num_workers=0, val_share=0, power=0, ocean_keep=1, max_damaged_share=1)


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def run_cases(store: Path, root: Path, seeds: range, pipe) -> None:
    """One epoch per case, each of a store in which one file is damaged; what happened goes into the pipe."""
    torch.set_num_threads(1)
    truth = {int(sample["row"]): sample for sample in one_epoch(datamodule(store))[0]}
    table = datamodule(store).tiles.table
    elsewhere = contents(root)
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name != ".lock")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        file = files[rng.integers(len(files))]  # the index as often as a shard
        whole = file.read_bytes()
        file.write_bytes(damage(whole, rng))
        try:
            outcome = one_case(store, file, whole, truth, table)
            if seed % 4 == 0:
                pack_again(store, root)
        finally:
            file.write_bytes(whole)
        assert contents(root) == elsewhere
        pipe.send(outcome)


def pack_again(store: Path, root: Path) -> None:
    """Packing into a damaged store adds to it or says what is wrong; no shard of it goes."""
    before = set(store.rglob("*.arrow"))
    with contextlib.suppress(TerraFMError):
        pack(MajorTOM(root, native=True, tile_size=12, harmonize=False), store, workers=0, progress=False)
    assert set(store.rglob("*.arrow")) >= before


def one_case(store: Path, file: Path, whole: bytes, truth, table) -> str:
    """What the damage to one file came to, after all that must hold for it was seen to hold."""
    damaged = file.read_bytes()
    refusal = ""
    try:
        data = datamodule(store)
        samples, names, replaced = one_epoch(data)
    except TerraFMError as error:
        refusal = str(error)
    if file.name.startswith("index.parquet") and damaged != whole:
        assert "index.parquet is damaged" in refusal
        assert "pack the sources again into a new folder" in refusal
        return "refused"
    assert not refusal
    shard, name = file.relative_to(store).as_posix(), file.parent.name
    lost = {
        row
        for row in range(len(table))
        if file.suffix == ".arrow" and table[f"shard_{name}"].iat[row] == shard
        for start, size in [(int(table[f"start_{name}"].iat[row]), int(table[f"bytes_{name}"].iat[row]))]
        if damaged[start : start + size] != whole[start : start + size]
    }
    assert {int(sample["damaged"]) for sample in samples if sample["damaged"] >= 0} == lost
    assert replaced == len(lost)
    assert set(names) == {f"{data.tiles.name(row)} {name}" for row in lost}
    assert sorted(int(sample["position"]) for sample in samples) == list(range(len(truth)))
    for sample in samples:
        for key in (key for key in sample if key.startswith("image")):
            assert torch.equal(sample[key], truth[int(sample["row"])][key])
    return "counted" if lost else "no pixels"


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(1000, 1200), marks=pytest.mark.soak)])
def test_damaged_stores(store, seeds, tmp_path) -> None:
    seen = outcomes(run_cases, (shutil.copytree(store, tmp_path / "store"), store.parent / "root"), seeds)
    assert seen["counted"] > len(seeds) / 4
    assert seen["refused"]
