"""Packed tiles: the same samples as from their source, and what a damaged or wrong store says."""

import pickle
import re
import shutil
from pathlib import Path
from zlib import crc32

import fsspec
import numpy as np
import pytest
import torch
from fsspec import AbstractFileSystem
from packing_checks import CELLS, source, write_root
from range_server import Fault, RangeServer
from tiny_files import X, band_pixels, optics, product, radar, write

from data.mmearth import data as mmearth
from data.ssl4eo import data as ssl4eo
from terrafm_tg.cli.main import main
from terrafm_tg.datamodules import DamageLog, FaultTolerant, PackedDataModule, TileDataLoader
from terrafm_tg.datamodules.loading import faults
from terrafm_tg.datasets import MajorTOM, MMEarthTiles, PackedTiles, SentinelFolder, SSL4EOS12Tiles, build_index
from terrafm_tg.datasets.store.folder import FORMAT, read_store_index, write_store_index
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.store.shards import read_bytes
from terrafm_tg.errors import DamagedTileError, TerraFMError, UnfitTileError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.radiometry import remove_offset
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils import remote

QUIET = {"workers": 0, "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five cells; the first has L2A with the offset, in which some pixels are missing, dark, or just above it."""
    dark = band_pixels("s2l2a", "B03")
    dark[:3] = np.array([0, 1, 999, 1000, 1001, 65535] * 4)
    products = [product("s2l2a", CELLS[0], "N0400", pixels={"B03": dark})]
    products += [product("s2l2a", cell) for cell in CELLS[1:]]
    return write_root(tmp_path_factory.mktemp("source") / "root", s2l2a=products)


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "store"
    pack(source(root), out, **QUIET)
    return out


@pytest.fixture
def store(packed, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(packed, tmp_path / "store")


def same_samples(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        torch.testing.assert_close(other[key], tensor, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("harmonize", [True, False])
def test_samples_are_those_of_major_tom(root, packed, native, harmonize):
    tiles = MajorTOM(root, native=native, tile_size=12, harmonize=harmonize)
    copy = PackedTiles(packed, native=native, harmonize=harmonize)
    assert len(copy) == len(tiles) == 20
    assert copy.bounds == tiles.bounds
    assert copy.modalities == tiles.modalities
    for row in range(len(tiles)):
        same_samples(tiles[tiles.tile_slice(row, 3, 1)], copy[copy.tile_slice(row, 3, 1)])
    assert copy.index.geometry.geom_equals_exact(tiles.index.geometry, 1e-9).all()


def test_a_part_of_a_tile_is_that_of_major_tom(root, packed):
    tiles, copy = MajorTOM(root, native=True, tile_size=12), PackedTiles(packed, native=True)
    x, y, t = tiles.tile_slice(2)
    part = slice(x.start, x.start + 0.3 * (x.stop - x.start)), y, t
    sample = copy[part]
    assert sample["image_s2l2a_10m"].shape == (4, 12, 6)
    same_samples(tiles[part], sample)


def test_it_decodes_into_given_arrays(packed):
    tiles = PackedTiles(packed)
    for modality in MODALITIES.values():
        expected = tiles._read(1, modality)
        out = {resolution: np.full_like(pixels, 7) for resolution, pixels in expected.items()}
        assert tiles._read_into(1, modality, out)
        for resolution, pixels in expected.items():
            np.testing.assert_array_equal(out[resolution], pixels)
    row = int(np.flatnonzero(tiles.table["cell"] == CELLS[2])[0])
    assert not tiles._read_into(row, S1RTC, out)
    with pytest.raises(UnfitTileError):
        tiles._read_into(1, S1RTC, {10: np.empty((2, 6, 6), np.float32)})


def test_some_modalities_some_rows_and_other_processes(packed):
    whole = PackedTiles(packed)
    tiles = PackedTiles(str(packed) + "/", ["s1rtc"], index=whole.table.iloc[4:8])
    assert [m.name for m in tiles.modalities] == ["s1rtc"]
    assert len(tiles) == 4
    expected = whole[whole.tile_slice(5)]["image_s1rtc"]
    copy = pickle.loads(pickle.dumps(tiles))
    assert torch.equal(copy[copy.tile_slice(1)]["image_s1rtc"], expected)


def sentinel_folder(root):
    for place in range(3):
        x = X + 1000 * place
        write(root / f"S2L2A/place{place}.tif", optics(12, 36, seed=place), x=x)
        write(root / f"S1RTC/place{place}.tif", radar(36, place), x=x)
    return SentinelFolder(root, tile_size=18, native=True, harmonize=False)


def ssl4eo_sites(root):
    ssl4eo.create(root, (200, 100000))
    return SSL4EOS12Tiles(root, native=True)


def mmearth_places(root):
    mmearth.create(root)
    build_index(root, workers=0, progress=False)  # which takes the land cover of its file
    return MMEarthTiles(root, native=True)


@pytest.mark.parametrize(
    ("make", "count", "shards"), [(sentinel_folder, 12, 2), (ssl4eo_sites, 4, 1), (mmearth_places, 5, 1)]
)
def test_other_sources_keep_their_samples(tmp_path, make, count, shards):
    tiles = make(tmp_path / "root")
    pack(tiles, tmp_path / "store", shard_mb=0.08 if shards > 1 else 512, **QUIET)
    assert len(list((tmp_path / "store/s2l2a").iterdir())) >= shards
    copy = PackedTiles(tmp_path / "store", native=True, harmonize=False)
    has = tiles.table["has_s2l2a"]
    assert copy.table.loc[has, "offset_s2l2a"].tolist() == tiles.table.loc[has, "offset_s2l2a"].tolist()
    assert len(copy) == len(tiles) == count
    for row in range(count):
        same_samples(tiles[tiles.tile_slice(row)], copy[copy.tile_slice(row)])


def test_over_http_a_tile_takes_one_request_per_modality(packed):
    here = PackedTiles(packed, native=True)
    with RangeServer(packed) as server:
        tiles = PackedTiles(server.url, native=True)
        server.forget()
        same_samples(here[here.tile_slice(6)], tiles[tiles.tile_slice(6)])
        assert len(server.log) == 3
        assert server.sent() == sum(here.table[f"bytes_{m}"].iat[6] for m in MODALITIES)
        with pytest.raises(OSError, match=r"404|none"):
            read_bytes(f"{server.url}/none.arrow", 0, 10)


def test_the_documented_way_to_read_a_tile_without_us(packed):
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"store": str(packed)}
    exec(compile(code, "docs/store.md", "exec"), names)
    assert "terrafm" not in code
    expected = PackedTiles(packed, harmonize=False)._read(0, S2L2A)
    for group, pixels in zip(names["groups"], expected.values(), strict=True):
        np.testing.assert_array_equal(group, pixels)


class TestDamage:
    def test_a_flipped_bit_names_tile_and_shard(self, store):
        tiles = PackedTiles(store)
        shard, start = (tiles.table[f"{column}_s2l2a"].iat[3] for column in ("shard", "start"))
        content = bytearray((store / shard).read_bytes())
        content[start + 50] ^= 1
        (store / shard).write_bytes(content)
        with pytest.raises(DamagedTileError, match=rf"Tile {CELLS[0]}/3 s2l2a cannot .*{re.escape(shard)}.* checksum"):
            tiles[tiles.tile_slice(3)]
        tiles[tiles.tile_slice(2)]

    def test_swapped_records_are_not_delivered(self, store):
        tiles = PackedTiles(store)
        columns = ["start_s2l2a", "bytes_s2l2a", "layout_s2l2a", "xxh3_s2l2a"]
        table = tiles.table.copy()
        for column in columns:
            table[column] = table[column].array[[1, 0, *range(2, len(table))]]
        tiles = PackedTiles(store, index=table)
        with pytest.raises(DamagedTileError, match="checksum"):
            tiles[tiles.tile_slice(0)]

    def test_a_missing_and_a_cut_shard_cost_their_tiles(self, store):
        tiles = PackedTiles(store, ["s2l2a"])
        gone, cut = (store / tiles.table["shard_s2l2a"].iat[row] for row in (0, 19))
        gone.unlink()
        cut.write_bytes(cut.read_bytes()[: tiles.table["start_s2l2a"].iat[19] + 10])
        with pytest.raises(DamagedTileError, match=r"cannot be read .*No such file"):
            tiles[tiles.tile_slice(0)]
        with pytest.raises(DamagedTileError, match="10 bytes came from"):
            tiles[tiles.tile_slice(19)]


class EndpointConnectionError(Exception):
    """As botocore's, which is no OSError."""


class Bucket(AbstractFileSystem):
    """An object store that is down when the test says so."""

    protocol, cachable = "oss", False
    folder: Path
    down = staticmethod(lambda path, start: False)

    def cat_file(self, path, start=None, end=None, **kwargs):
        if Bucket.down(path, start):
            raise EndpointConnectionError('Could not connect to the endpoint URL: "https://s3"')
        return (self.folder / path.split("/", 1)[1]).read_bytes()[start:end]

    def size(self, path):
        return len(self.cat_file(path))

    def ukey(self, path):
        return "1"


class TestOutage:
    """An object store or server that is gone for a while costs the samples that were asked for meanwhile."""

    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch):
        monkeypatch.setattr(remote, "_FIRST", 0.0)
        monkeypatch.setattr(faults, "_FIRST", 0.0)

    def epoch(self, url, share=1.0):
        tiles = PackedTiles(url, native=True)
        sampler, log = LandCoverSampler(tiles, power=0, ocean_keep=1), DamageLog(share)
        batches = TileDataLoader(FaultTolerant(tiles, sampler), log, sampler=sampler, batch_size=4, num_workers=0)
        return batches, log

    def test_samples_of_an_object_store(self, packed, monkeypatch):
        monkeypatch.setattr(Bucket, "folder", packed, raising=False)
        fsspec.register_implementation("oss", Bucket, clobber=True)
        batches, log = self.epoch("oss://bucket")
        monkeypatch.setattr(Bucket, "down", lambda path, start: crc32(f"{path} {start}".encode()) % 9 == 0)
        rows = [row for batch in batches for row in batch["row"].tolist()]
        assert len(rows) == log.seen == 20
        assert 2 <= log.damaged < 10
        with pytest.raises(TerraFMError, match=r"samples were damaged, and `max_damaged_share` is 0\.1:"):
            list(self.epochs(batches, 0.1))
        monkeypatch.setattr(Bucket, "down", lambda path, start: True)
        with pytest.raises(TerraFMError, match=r"EndpointConnectionError: Could not .* Nor can 10 tiles"):
            list(batches)
        with pytest.raises(TerraFMError, match=r"is no packed store .*EndpointConnectionError"):
            PackedTiles("oss://bucket")

    def epochs(self, batches, share):
        batches.damage.max_share = share
        for number in range(10):
            batches.sampler.set_epoch(number)
            yield from batches

    def test_a_server_that_dies(self, packed):
        answers = iter([None] * 9 + [Fault(503)] * 24 + [None] * 6 + [Fault(cut=10)] * 3 + [None] * 200)
        with RangeServer(packed) as server:
            batches, log = self.epoch(server.url)
            server.fault = lambda path, number: next(answers)
            assert sum(len(batch["row"]) for batch in batches) == 20
            assert 1 <= log.damaged <= 2  # where an answer is cut, the next goes on from there
            server.fault = lambda path, number: Fault(cut=0)
            with pytest.raises(TerraFMError, match="Nor can 10 tiles drawn in its place"):
                list(batches)


class TestIndex:
    def test_another_format_is_refused(self, store):
        table, made_for = read_store_index(str(store))
        write_store_index(table, store, made_for | {"format": FORMAT + 1})
        with pytest.raises(TerraFMError, match="has format 2, this version reads 1"):
            PackedTiles(store)

    def test_either_index_is_right_while_it_is_replaced(self, store, monkeypatch):
        """Stopped at each of the steps of writing a second index."""
        table, made_for = read_store_index(str(store))
        for steps in range(4):
            folder = shutil.copytree(store, store.parent / str(steps))
            _stop_after(steps, monkeypatch, lambda folder=folder: write_store_index(table[:8], folder, made_for))
            assert len(PackedTiles(folder)) in (8, 20)
            write_store_index(table[:8], folder, made_for)
            assert len(PackedTiles(folder)) == 8
            assert not list(folder.glob("*.new"))

    def test_an_ambiguous_offset_is_asked_for(self, tmp_path):
        write_root(tmp_path / "root", s2l2a=[product("s2l2a", CELLS[0], "N9999")])
        pack(source(tmp_path / "root"), tmp_path / "store", **QUIET)
        with pytest.raises(TerraFMError, match="set `ambiguous_offset`"):
            PackedTiles(tmp_path / "store")
        tiles = PackedTiles(tmp_path / "store", ambiguous_offset="present")
        stored = PackedTiles(tmp_path / "store", harmonize=False)._read(0, S2L2A)
        np.testing.assert_array_equal(tiles._read(0, S2L2A)[10], remove_offset(stored[10], 1000))


def _stop_after(steps, monkeypatch, action):
    """Run an action that is interrupted at the next rename after so many."""
    replace, done = Path.replace, 0

    def counted(self, target):
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        with pytest.raises(KeyboardInterrupt):
            action()


def test_datamodule_batches_are_those_of_the_tiles(packed):
    data = PackedDataModule(packed, batch_size=4, num_workers=0, val_share=0, power=0, ocean_keep=1)
    data.setup("fit")
    tiles, seen = PackedTiles(packed, native=True), 0
    for batch in data.train_dataloader():
        for place, row in enumerate(batch["row"].tolist()):
            expected = tiles[tiles.tile_slice(row)]["image_s2l1c_20m"]
            assert torch.equal(batch["image_s2l1c_20m"][place], expected)
            seen += 1
    assert seen == 20


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    words = ["fit", "--config", "conf/pretrain.yaml", "--config", "conf/size/tiny.yaml", "--config",
             "conf/data/packed.yaml", "--config", "conf/hardware/cpu.yaml", "--data.root", str(tmp_path)]  # fmt: skip
    with pytest.raises(SystemExit):
        main(words)
    assert re.search(r"^terrafm: error: \S+ is no packed store .*`terrafm pack`\.$", capsys.readouterr().err, re.M)
