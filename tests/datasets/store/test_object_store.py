"""A store in an object store: packed into it, read from it ahead of need, cached on disk, through outages."""

import itertools
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from packing_checks import CELLS, digests, source, write_root
from range_server import Fault, ObjectServer
from tiny_files import band_pixels, product

from benchmarks import loader as loader_benchmark
from terrafm_tg.datamodules import DamageLog, FaultTolerant, TileDataLoader
from terrafm_tg.datamodules.loading import faults
from terrafm_tg.datasets import MixedTiles, PackedTiles
from terrafm_tg.datasets.store.ahead import Ahead
from terrafm_tg.datasets.store.bucket import RECORDS
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils import remote

QUIET = {"workers": 0, "progress": False}
STORE = "s3://bucket/a/store"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_root(tmp_path_factory.mktemp("source") / "root")


@pytest.fixture(scope="module")
def local(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("local") / "store"
    pack(source(root), out, **QUIET)
    return out


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ObjectServer]:
    """An empty bucket."""
    (tmp_path / "served/bucket").mkdir(parents=True)
    for name, value in {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-1"}.items():
        monkeypatch.setenv(name, value)
    for module in (remote, faults):
        monkeypatch.setattr(module, "_FIRST", 0.01)
    with ObjectServer(tmp_path / "served") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def filled(server, local) -> ObjectServer:
    """The bucket with the store in it, as a copy of the folder has it."""
    shutil.copytree(local, server.folder / "bucket/a/store")
    return server


def loader(
    url: str | Path, workers: int = 0, share: float = 1.0, start: str | None = None, **settings
) -> TileDataLoader:
    tiles = PackedTiles(url, native=True, **settings)
    sampler = LandCoverSampler(tiles, power=0, ocean_keep=1, seed=3)
    batches = {"batch_size": 5, "num_workers": workers, "multiprocessing_context": start}
    return TileDataLoader(FaultTolerant(tiles, sampler), DamageLog(share), sampler=sampler, **batches)


def same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) > 0
    for batch, expected in zip(one, other, strict=True):
        assert batch.keys() == expected.keys()
        for key, value in batch.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, equal_nan=True, msg=key)


class TestPacking:
    def test_objects_are_the_files_of_a_folder(self, root, local, server, capsys) -> None:
        report = pack(source(root), STORE, **QUIET)
        held = digests(server.folder / "bucket/a/store")
        records = {name for name in held if name.endswith(RECORDS)}
        assert {name: digest for name, digest in held.items() if name not in records} == {
            name: digest for name, digest in digests(local).items() if name != ".lock"
        }
        assert {Path(name).stem for name in records} == {path.stem for path in local.glob("*/*.arrow")}
        assert report.in_words(STORE).endswith(f"20 tiles of 5 cells in {STORE}")
        server.written.clear()
        assert pack(source(root), STORE, **QUIET).counts["before"].tolist() == [16, 20, 20]
        assert not [name for name in server.written if name.endswith((".arrow", RECORDS))]

    def test_stopped_at_any_upload_and_started_again(self, root, local, server) -> None:
        """No shard is written twice, but the one whose list of records had not come."""
        expected = {name: digest for name, digest in digests(local).items() if name != ".lock"}
        for uploads in range(1, 20, 7):
            url, left = f"s3://bucket/{uploads}", iter(range(uploads))
            writes = lambda path, _: None if "uploads" not in path or next(left, None) is not None else Fault(403)  # noqa: B023, E731
            server.fault = writes
            with pytest.raises(TerraFMError, match=r"The store s3://bucket/\d+ cannot be written .*same command again"):
                pack(source(root), url, **QUIET)
            server.fault = lambda path, _: None
            done = {name for name in server.written if f"/{uploads}/" in name and name.endswith(RECORDS)}
            server.written.clear()
            pack(source(root), url, **QUIET)
            assert not done & {*server.written}
            held = digests(server.folder / f"bucket/{uploads}")
            assert {name: digest for name, digest in held.items() if not name.endswith(RECORDS)} == expected

    def test_parts_that_are_logged_are_merged_at_the_end(self, server, tmp_path) -> None:
        for cells, merge in ((CELLS[:2], False), (CELLS[2:], True)):
            root = write_root(tmp_path / f"root{merge}", cells)
            for out in (STORE, tmp_path / "local"):
                pack(source(root), out, merge=merge, **QUIET)
        held, expected = digests(server.folder / "bucket/a/store"), digests(tmp_path / "local")
        assert {n: d for n, d in held.items() if not n.endswith(RECORDS)} == {
            n: d for n, d in expected.items() if n != ".lock"
        }
        assert not [name for name in held if name.startswith("log/")]

    def test_a_replaced_part_replaces_its_objects(self, server, tmp_path) -> None:
        root = write_root(tmp_path / "root")
        pack(source(root), STORE, **QUIET)
        before = {*digests(server.folder / "bucket/a/store")}
        shutil.rmtree(root)
        write_root(
            root, s2l1c=[product("s2l1c", cell, pixels={"B03": band_pixels("s2l1c", "B03") // 2}) for cell in CELLS]
        )
        pack(source(root), STORE, **QUIET)
        after = {*digests(server.folder / "bucket/a/store")}
        assert len(before) == len(after)
        assert {name.partition("/")[0] for name in before ^ after} == {"s2l1c"}
        pack(source(root), tmp_path / "local", **QUIET)
        same(list(loader(STORE)), list(loader(tmp_path / "local")))

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("https://example.org/store", "https://example.org/store cannot be written: give a folder"),
            ("s3://bucket/other", "is no packed store and not empty: name another place"),
            ("s3://id:secret@bucket/store", "holds no credentials: set AWS_ACCESS_KEY_ID"),
            ("s3://nobucket::file://x", "is no address that is read"),
        ],
    )
    def test_what_cannot_be_a_store(self, root, server, url, words) -> None:
        (server.folder / "bucket/other").mkdir()
        (server.folder / "bucket/other/file.txt").write_text("kept")
        with pytest.raises(TerraFMError, match=words) as error:
            pack(source(root), url, **QUIET)
        assert "secret@" not in str(error.value)


class TestReading:
    def test_batches_are_those_of_the_folder_in_any_number_of_processes(self, local, filled, tmp_path) -> None:
        expected = list(loader(local))
        for workers in (0, 2):  # forked from this process, which has read from the store before
            filled.forget()
            same(list(loader(STORE, workers, disk_cache=tmp_path / "kept")), expected)
            # again from the disk: nothing but the index
            assert {answer.path.rpartition("/")[2][:5] for answer in filled.log if workers} <= {"index"}
        rows = np.concatenate([batch["row"] for batch in expected])
        assert sorted(rows) == list(range(20))

    @pytest.mark.soak
    @pytest.mark.parametrize("start", ["forkserver", "spawn"])
    def test_other_ways_to_start_a_worker(self, start, local, filled, tmp_path) -> None:
        same(list(loader(STORE, 2, start=start, disk_cache=tmp_path / "kept")), list(loader(local)))

    def test_a_record_is_fetched_once_and_those_side_by_side_together(self, filled) -> None:
        batches = loader(STORE)
        table = batches.dataset.dataset.table
        read = int(sum(table.loc[table[f"has_{m}"], f"bytes_{m}"].sum() for m in ("s1rtc", "s2l1c", "s2l2a")))
        filled.forget()
        list(batches)
        assert len([answer for answer in filled.log if "arrow" in answer.path]) <= 56
        assert read <= filled.sent("arrow") <= 1.1 * read

    def test_neighbors_are_one_request_with_little_between_them(self) -> None:
        asked, body = [], bytes(range(256)) * 40
        ahead = Ahead(lambda path, start, stop: asked.append((path, start, stop)) or body[start:stop])
        spans = [("b", 0, 400), ("a", 1000, 2000), ("a", 0, 990), ("a", 2100, 3000), ("a", 1000, 2000)]
        ahead.expect(spans)
        for span in spans:
            assert ahead.take(span) == body[span[1] : span[2]]
        assert sorted(asked) == [("a", 0, 2000), ("a", 2100, 3000), ("b", 0, 400)]
        assert ahead.take(spans[0]) is None  # taken as often as it was expected
        assert (ahead._count, ahead._size, ahead._requests) == (0, 0, {})

    def test_no_more_is_held_than_there_is_room_for(self) -> None:
        asked = []
        ahead = Ahead(lambda path, start, stop: asked.append(start) or bytes(stop - start))
        spans = [("a", 2 * k << 24, (2 * k + 1) << 24) for k in range(40)]
        ahead.expect(spans)
        time.sleep(0.1)
        assert len(asked) <= 8  # of 16 MiB each
        for span in spans:
            ahead.take(span)
        assert sorted(asked) == [span[1] for span in spans]
        ahead.expect(spans)
        ahead.expect(spans[-1:])
        assert ahead.take(spans[0]) is None
        assert len(ahead.take(spans[-1])) == 1 << 24

    def test_an_archive_of_several_tells_each(self, local, filled) -> None:
        ours, theirs = (MixedTiles([PackedTiles(url, native=True) for url in (local, STORE)]) for _ in range(2))
        filled.forget()
        theirs.expect(range(20, 24))
        time.sleep(0.1)
        assert filled.log
        for row in (0, 20):
            assert torch.equal(
                ours[ours.tile_slice(row)]["image_s2l2a_10m"], theirs[theirs.tile_slice(row)]["image_s2l2a_10m"]
            )

    def test_it_goes_on_where_a_checkpoint_was_bit_for_bit(self, filled, tmp_path) -> None:
        whole, stopped = loader(STORE), loader(STORE, disk_cache=tmp_path / "kept")
        expected, first = list(whole), list(itertools.islice(stopped, 2))
        resumed = loader(STORE, 2, disk_cache=tmp_path / "kept")
        resumed.load_state_dict(stopped.state_dict())
        same(first + list(resumed), expected)


def test_the_benchmark_compares_disk_and_server(local, filled, capsys) -> None:
    loader_benchmark.measure(local=local, url=STORE, batch_size=5, batches=4, rounds=1, workers=1)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("disk ", "server, cache empty", "server, cache full", "x the disk"))


class TestDiskCache:
    def test_it_keeps_to_its_budget_and_to_what_came_first(self, local, filled, tmp_path) -> None:
        settings = {"disk_cache": tmp_path / "kept", "disk_cache_gb": 3e-5}
        list(loader(STORE, **settings))
        used = int((tmp_path / "kept/used").read_text())
        assert 2.5e4 < used <= 3e4
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.arrow")}
        filled.forget()
        same(list(loader(STORE, **settings)), list(loader(local)))
        assert 0 < filled.sent("arrow") < 1.1 * (sum(p.stat().st_size for p in local.glob("*/*.arrow")) - used)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.arrow")} == kept

    def test_what_is_damaged_or_half_written_is_fetched_again(self, local, filled, tmp_path) -> None:
        settings = {"disk_cache": tmp_path / "kept"}
        list(loader(STORE, **settings))
        for number, path in enumerate(sorted((tmp_path / "kept").rglob("*.arrow"))):
            if number % 2:
                os.truncate(path, path.stat().st_size // 2)
            else:
                path.write_bytes(b"\1" * path.stat().st_size)
        same(list(loader(STORE, **settings)), list(loader(local)))

    def test_a_disk_that_takes_nothing_ends_nothing(self, local, filled, tmp_path, monkeypatch, caplog) -> None:
        def fails(*_: object) -> int:
            raise OSError(5, "Input/output error")

        batches = loader(STORE, disk_cache=tmp_path / "kept")
        monkeypatch.setattr(os, "pwrite", fails)
        same(list(batches), list(loader(local)))
        assert len([line for line in caplog.messages if "keeps no more" in line]) == 1
        with pytest.raises(TerraFMError, match=r"`disk_cache` .* cannot be written"):
            PackedTiles(local, disk_cache="/proc/none")

    def test_it_goes_to_other_processes(self, filled, tmp_path) -> None:
        tiles = PackedTiles(STORE, disk_cache=tmp_path / "kept")
        tiles.expect([3])
        copy = pickle.loads(pickle.dumps(tiles))
        assert torch.equal(copy[copy.tile_slice(3)]["image_s2l2a"], tiles[tiles.tile_slice(3)]["image_s2l2a"])


class TestOutage:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_it_costs_the_samples_that_were_asked_for_meanwhile(self, workers, local, filled) -> None:
        expected, batches = list(loader(local)), loader(STORE, workers)
        requests, length = itertools.count(), 60 * max(workers, 1)
        filled.fault = lambda path, _: Fault(503) if 4 <= next(requests) < length else None
        seen = list(batches)
        assert [len(batch["row"]) for batch in seen] == [5] * 4
        damaged = torch.cat([batch["damaged"] for batch in seen])
        assert 1 <= (damaged >= 0).sum() <= 2 * max(workers, 1)
        for batch, other in zip(seen, expected, strict=True):
            whole = batch["damaged"] < 0
            assert torch.equal(batch["row"][whole], other["row"][whole])
            assert torch.equal(batch["image_s2l1c_10m"][whole], other["image_s2l1c_10m"][whole])
            assert torch.equal(batch["damaged"][~whole], other["row"][~whole])

    def test_what_is_missing_or_denied_is_not_waited_for(self, filled, monkeypatch) -> None:
        monkeypatch.setattr(faults, "_FIRST", 1000.0)
        batches = loader(STORE)
        lost = sorted((filled.folder / "bucket/a/store/s2l2a").glob("*.arrow"))[0]
        lost.unlink()
        denied = sorted((filled.folder / "bucket/a/store/s2l1c").glob("*.arrow"))[2].name
        filled.fault = lambda path, _: Fault(403) if denied in path else None
        seen = list(batches)
        assert 1 <= sum(int((batch["damaged"] >= 0).sum()) for batch in seen) < 20
        with pytest.raises(TerraFMError, match=r"s3://bucket/none is no packed store .*does not exist"):
            PackedTiles("s3://bucket/none")
