"""From a catalog on disk, behind a server and by a search: cells and tiles, and the bytes that came for them."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from rasterio.io import MemoryFile

from datasets.range_server import Fault
from datasets.scenes.stac_world import SearchServer, change_item, optics, write_world
from datasets.tiny_files import sample_of
from refusals import refused
from terrafm_tg.datasets import MajorTOM, SentinelFolder, build_index
from terrafm_tg.datasets.majortom.gridding import grid_scenes
from terrafm_tg.datasets.scenes.stac.catalog import ITEMS, open_stac
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import ContradictionError
from terrafm_tg.utils import remote

INSIDE = [11.72, 48.08, 11.78, 48.13]
CLEAR = StacSearch(["sentinel-2-l2a", "sentinel-1-rtc"], INSIDE, "2023-05", 20)
SIDE, LEFT, TOP = 264, 274, 272  # of the cell's picture, in pixels of the scene: its corner moved to 20 m
SETTINGS = {"cell_size": SIDE, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stac") / "world"
    write_world(folder)
    return folder


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    """Attempts are made again at once."""
    monkeypatch.setattr(remote, "_FIRST", 0.01)


def band(root: Path, modality: str, name: str) -> np.ndarray:
    """The picture of the one cell."""
    (part,) = (root / modality / "images").glob("own_*.parquet")
    with MemoryFile(pd.read_parquet(part)[name].iloc[0]) as memory, memory.open() as src:
        return src.read(1)


def needed_bytes(world: Path, masks: bool = False) -> int:
    """Bytes of the blocks under the cell's picture, as GDAL tells them of the files on disk."""
    total = 0
    paths = [*(world / "s2").rglob("*20230501*/*.tif"), *(world / "s1").rglob("*.tif")]
    for path in (path for path in paths if masks or path.stem != "SCL"):
        with rasterio.open(path) as src:
            step = src.transform.a / 10
            columns, rows = (
                range(math.floor(start / step) // 256, math.ceil(math.ceil((start + SIDE) / step) / 256))
                for start in (LEFT, TOP)
            )
            total += sum(src.block_size(1, row, column) for row in rows for column in columns)
    return total


def test_a_search_is_cut_into_cells_and_only_the_blocks_come(world: Path, tmp_path: Path) -> None:
    """Pixels by the files on disk; bytes by their blocks, with resets, busy moments and slow answers on the way."""
    faults = {0: Fault(status=503), 2: Fault(cut=3000), 3: Fault(stall=0.05)}
    server = SearchServer(world, fault=lambda path, number: faults.get(number) if path.endswith(".tif") else None)
    with server:
        written = grid_scenes(f"{server.url}/api", tmp_path / "searched", search=CLEAR, **SETTINGS)
        assert written[["modality", "cells", "damage"]].values.tolist() == [["s1rtc", 1, None], ["s2l2a", 1, None]]
        came, needed = server.sent(".tif"), needed_bytes(world)
        assert needed < came <= 1.2 * needed
        assert len([a for a in server.log if a.path.endswith(".tif")]) < 6 * 14
        asked = [(a.path, a.start + i) for a in server.log for i in range(0, a.sent, 4096)]
        assert len(asked) < came / 4096 * 1.5
    grid_scenes(world / "catalog.json", tmp_path / "on_disk", search=CLEAR, workers=0, **SETTINGS)
    for root in (tmp_path / "searched", tmp_path / "on_disk"):
        for name in ("B02", "B08"):
            expected = optics(name, 768)[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
            np.testing.assert_array_equal(band(root, "Core-S2L2A", name), expected)
        metadata = pd.read_parquet(root / "Core-S1RTC/metadata.parquet")
        assert metadata["orbit_state"].tolist() == ["descending"]
        assert pd.read_parquet(root / "Core-S2L2A/metadata.parquet")["cloud_cover"].tolist() == [5.0]
    one, two = (MajorTOM(tmp_path / name, tile_size=SIDE // 2) for name in ("searched", "on_disk"))
    for key, image in sample_of(one, 3).items():
        torch.testing.assert_close(image, sample_of(two, 3)[key], equal_nan=True, rtol=0, atol=0)
    assert one.table["offset_s2l2a"].tolist() == [1000] * 4


def test_what_was_cut_is_not_fetched_again(world: Path, tmp_path: Path, capsys) -> None:
    with SearchServer(world) as server:
        for kept in (False, True):
            server.forget()
            written = grid_scenes(f"{server.url}/catalog.json", tmp_path, search=CLEAR, cell_size=SIDE)
            assert written["kept"].tolist() == [kept] * 2
        assert server.sent(".tif") < 0.3 * needed_bytes(world)  # headers, and what tells the unit
    said = capsys.readouterr().err
    assert re.search(r"2 scenes, 0\.00\d GB to fetch from 127\.0\.0\.1:\d+\n", said)


def test_clouds_are_left_out_where_asked(world: Path, tmp_path: Path) -> None:
    optical = StacSearch(["sentinel-2-l2a"], INSIDE, max_cloud=20)
    with SearchServer(world) as server:
        grid_scenes(f"{server.url}/catalog.json", tmp_path, search=optical, mask_clouds=True, min_valid=0.5, **SETTINGS)
        assert "SCL.tif" in " ".join(answer.path for answer in server.log)
    cloudy = np.kron(optics("SCL", 768), np.ones((2, 2)))[TOP : TOP + SIDE, LEFT : LEFT + SIDE] == 9
    pixels = band(tmp_path, "Core-S2L2A", "B03")
    assert 0.01 < cloudy.mean() < 0.03
    np.testing.assert_array_equal(pixels == 0, cloudy)


def test_a_budget_holds_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    with SearchServer(world) as server:
        with refused(match=r"The scenes need 0\.00\d GB more, and `max_gb` is 0\.004, of which 0\.00\d came already"):
            grid_scenes(f"{server.url}/api", tmp_path, search=CLEAR, max_gb=0.004, **SETTINGS)
        assert server.sent() < 0.004e9
        with refused(match="which `max_gb` 0.0001 does not allow"):
            grid_scenes(f"{server.url}/api", tmp_path, search=CLEAR, max_gb=0.0001, **SETTINGS)
    assert not [*tmp_path.rglob("*.parquet")]


def test_a_file_that_is_gone_costs_its_scene(world: Path, tmp_path: Path) -> None:
    gone = SearchServer(world, fault=lambda path, number: Fault(status=404) if path.endswith("vh.tif") else None)
    with gone as server, pytest.warns(UserWarning, match=r"1 items are left out, first S1A.*vh\.tif does not exist"):
        written = grid_scenes(f"{server.url}/api", tmp_path, search=CLEAR, **SETTINGS)
    assert written["modality"].tolist() == ["s2l2a"]
    later = SearchServer(world, fault=lambda path, number: Fault(status=404) if "vh" in path and number else None)
    with later as server, pytest.warns(UserWarning, match=r"are left out, first: Tile S1A.*does not exist"):
        written = grid_scenes(f"{server.url}/api", tmp_path / "later", search=CLEAR, **SETTINGS)
    assert written["cells"].tolist() == [0, 1]


def changed(world: Path, folder: Path, offset: int, **told) -> Path:
    """A copy of the world whose optical items hold other pixels and properties."""
    shutil.copytree(world, folder)
    for path in (folder / "s2").rglob("B*.tif"):
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            pixels = file.read(1).astype(np.int64) + offset
            file.write(pixels.clip(1).astype(np.uint16), 1)
    change_item(folder, "20230501", lambda item: item["properties"].update(told))
    return folder


@pytest.mark.parametrize("scaled", [False, True])
def test_the_offset_is_what_the_catalog_and_the_pixels_say(world: Path, tmp_path: Path, scaled: bool) -> None:
    """As Earth Search: +1000 taken off of baseline 05.09, and the item says so; or it says so and lies."""
    optical, applied = StacSearch(["sentinel-2-l2a"], INSIDE, max_cloud=20), {"earthsearch:boa_offset_applied": True}
    honest = changed(world, tmp_path / "honest", -1000, **applied)
    written = grid_scenes(honest / "catalog.json", tmp_path / "root", search=optical, workers=0, **SETTINGS)
    assert "_N0000_" in written["product"].iloc[0]
    dataset = MajorTOM(tmp_path / "root", tile_size=SIDE // 2)
    assert dataset.table["offset_s2l2a"].tolist() == [0] * 4
    expected = optics("B04", 768)[TOP : TOP + SIDE // 2, LEFT : LEFT + SIDE // 2].astype(np.float32) - 1000
    red = MODALITIES["s2l2a"].bands.index("B04")
    np.testing.assert_array_equal(sample_of(dataset)["image_s2l2a"][red].numpy(), expected)
    lying = changed(world, tmp_path / "lying", 0, **applied)
    with pytest.raises(ContradictionError, match="`offset`"):
        grid_scenes(lying / "catalog.json", tmp_path / "no", search=optical, workers=0, **SETTINGS)


def test_an_item_that_places_its_files_elsewhere_is_refused(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(world, folder)
    grid = {"proj:code": "EPSG:32633", "proj:shape": [768, 768], "proj:transform": [10, 0, 701460, 0, -10, 5334840]}
    change_item(folder, "20230501", lambda item: item["properties"].update(grid))
    with refused(match=r"Its item places it at 701460, 5334840 of EPSG:32633 .* which contradict each other"):
        grid_scenes(folder / "catalog.json", tmp_path / "root", search=StacSearch(["sentinel-2-l2a"], max_cloud=9))


def test_tiles_are_read_where_they_lie(world: Path, tmp_path: Path) -> None:
    """Items of a search beside an index, by worker processes too, only below the addresses that the user named."""
    (tmp_path / "mine").mkdir()
    with SearchServer(world) as server:
        open_stac(f"{server.url}/api", CLEAR).save_in(tmp_path / "mine")
        server.forget()
        index = build_index(tmp_path / "mine", tile_size=132, remote=server.url, workers=0, progress=False)
        assert index["has_s1rtc"].all()
        assert index["has_s2l2a"].all()
        west, south, east, north = INSIDE
        assert (index.xmin.lt(east) & index.xmax.gt(west) & index.ymin.lt(north) & index.ymax.gt(south)).all()
        dataset = SentinelFolder(tmp_path / "mine", tile_size=132, remote=[server.url])
        server.forget()
        row = int(((dataset.table["x"] == 701_460 + 1320) & (dataset.table["y"] == 5_334_840 - 1320)).argmax())
        one = sample_of(dataset, row)
        blue = MODALITIES["s2l2a"].bands.index("B02")
        expected = optics("B02", 768)[132:264, 132:264].astype(np.float32) - 1000
        np.testing.assert_array_equal(one["image_s2l2a"][blue].numpy(), expected)
        assert 0 < server.sent(".tif") < 0.7 * sum(path.stat().st_size for path in world.rglob("*.tif"))
        loaded = torch.utils.data.DataLoader(dataset, sampler=[dataset.tile_slice(row)], num_workers=1, batch_size=None)
        torch.testing.assert_close(next(iter(loaded))["image_s2l2a"], one["image_s2l2a"], equal_nan=True)
        for other in (False, "http://127.0.0.1:1", f"{server.url}/s1", "earth-search"):
            with refused(match="was not opened.*`remote`"):
                SentinelFolder(tmp_path / "mine", tile_size=132, remote=other)
        (tmp_path / "mine/index.parquet").unlink()
        with refused(match=r"does not lie below an address that you named: give its address as `remote`, such as http"):
            SentinelFolder(tmp_path / "mine", tile_size=132)


@pytest.mark.parametrize("href", ["https://10.1.2.3:9/x.tif", "/etc/passwd", "file:///etc/passwd", "dask://h/x"])
def test_kept_items_of_a_stranger_lead_nowhere_else(href: str, world: Path, tmp_path: Path) -> None:
    with SearchServer(world) as server:
        open_stac(f"{server.url}/api", CLEAR).save_in(tmp_path)
        held = json.loads((tmp_path / ITEMS).read_text())
        for item in held["features"]:
            for asset in item["assets"].values():
                asset["href"] = href
        (tmp_path / ITEMS).write_text(json.dumps(held))
        server.forget()
        with refused(match="an address that you named|holds no usable Sentinel scene"):
            SentinelFolder(tmp_path, tile_size=132, remote=server.url)
        assert server.log == []
