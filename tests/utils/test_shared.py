"""One index per machine: what processes map is what each would make by itself, and nobody else can put it there."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.index import IndexOnly, IndexOnlyDataModule
from benchmarks.synthetic_index import write_synthetic_index
from terrafm_tg.datamodules import FaultTolerant
from terrafm_tg.datasets.tiles import index_file
from terrafm_tg.datasets.tiles.index_file import read_index, read_shared, write_index
from terrafm_tg.datasets.tiles.table import resolve_offsets
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import land_cover
from terrafm_tg.utils import shared
from terrafm_tg.utils.shared import SharedArrays, SharedTable

BY = ("land_cover", "climate", "region")
TILES = 4000


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """An index with unknown offsets, tiles of some bands only, tiles without a modality, and a store's columns."""
    file = tmp_path_factory.mktemp("synthetic") / "index.parquet"
    write_synthetic_index(file, TILES)
    table, made_for = read_index(file)
    rows = np.arange(TILES)
    write_index(
        table.assign(
            offset_s2l2a=np.where(rows % 7 == 0, -1, 1000).astype(np.int16),
            has_s2l2a=rows % 5 > 0,
            bands_s2l2a=pd.Categorical(np.where(rows % 3, None, "B02 B03 B04 B08")),
            layout_s2l2a=pd.Categorical(np.where(rows % 2, "uint16 4x534x534", None)),
            xxh3_s2l2a=rows.astype(np.uint64) << np.uint64(50),
        ),
        file,
        made_for,
    )
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of shared tables, which all are here, however small."""
    monkeypatch.setenv("TERRAFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shared, "LARGE", 1)
    return tmp_path / "cache" / "index"


def open_tiles(path: Path) -> IndexOnly:
    table = resolve_offsets(read_shared(path)[0], None, "drop")
    return IndexOnly(table, ["s2l2a", "s1rtc"], native=True)


def facts(samples: FaultTolerant) -> dict[str, object]:
    """Asks what a worker asks of its dataset and sampler."""
    tiles, sampler, rng = samples.dataset, samples.sampler, np.random.default_rng(3)
    rows = [sampler.random_row(rng) for _ in range(50)]
    return {
        "rows": rows,
        "slices": [tuple(tiles.tile_slice(row)) for row in rows],
        "values": [[tiles._arrays[c][row] for c in ("cell", "epsg", "has_s1rtc", "part_s2l2a")] for row in rows],
        "names": [tiles.name(row) for row in rows],
        "bands": np.array([tiles._held["s2l2a"][row] for row in rows]).tolist(),
        "all": pd.util.hash_pandas_object(tiles.table.drop(columns="land_cover_share")).sum(),
        "draws": sampler.global_rows().tolist(),
    }


def work(sent: bytes, end) -> None:
    samples = pickle.loads(sent)
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".arrow" in line}
    end.send((pickle.dumps(facts(samples)), mapped))


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.soak)])
def test_processes_started_in_any_way_map_what_one_would_read(path, folder, method):
    alone = open_tiles(path)
    assert isinstance(alone.table, SharedTable)
    expected = FaultTolerant(alone, land_cover.LandCoverSampler(alone, by=BY, ocean_keep=0.5))
    told = facts(expected)  # which makes all that is made once asked for, and is not to be sent
    sent = pickle.dumps(expected)
    assert len(sent) < 5_000
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(sent, theirs))
    process.start()
    answer, mapped = ours.recv()
    process.join()
    assert pickle.loads(answer) == told
    assert {alone.table.path, expected.sampler._plan.path} <= mapped
    unshared = IndexOnly(resolve_offsets(read_index(path)[0], None, "drop"), ["s2l2a", "s1rtc"], native=True)
    assert not isinstance(unshared.table, SharedTable)
    assert facts(FaultTolerant(unshared, land_cover.LandCoverSampler(unshared, by=BY, ocean_keep=0.5))) == told


def test_a_table_is_that_of_the_file_and_cannot_be_written(path, folder):
    table, made_for = read_shared(path)
    plain, expected = read_index(path)
    pd.testing.assert_frame_equal(pd.DataFrame(table), plain, check_categorical=True)
    assert made_for == expected
    assert len(list(folder.glob("*.arrow"))) == 1
    assert type(table.assign(x=1)) is type(table[["cell"]]) is type(table.iloc[:2]) is pd.DataFrame
    for name in ("xmin", "quadrant", "has_s1rtc", "datetime_start"):
        assert not table[name].array.to_numpy().flags.owndata
    with pytest.raises(TerraFMError, match="cannot be written"):
        table["cell"] = 1


def test_a_run_has_the_same_tiles_and_makes_nothing_twice(path, folder, monkeypatch):
    def run() -> list[object]:
        data = IndexOnlyDataModule(str(path), by=BY, ocean_keep=0.5, val_queries=40, val_bank=50, num_workers=0)
        assert isinstance(data.sampler._plan, SharedArrays if shared.LARGE == 1 else dict)
        arrays = [*data.split, data.bank, data.queries, data.sampler.rows, data.sampler.global_rows()]
        counts = data.sampler.expected_counts, data.sampler.land_cover_share()
        return [data._fingerprint, *(array.tolist() for array in (*arrays, *counts))]

    first = run()
    written = {file: file.stat().st_ino for file in folder.glob("*.arrow")}
    with monkeypatch.context() as patch:
        for module, name in ((index_file, "read_index"), (land_cover, "_plan")):
            patch.setattr(module, name, lambda *_: pytest.fail("made again"))
        assert run() == first
    assert {file: file.stat().st_ino for file in folder.glob("*.arrow")} == written
    monkeypatch.setattr(shared, "LARGE", 1 << 30)
    assert run() == first


def test_an_index_that_is_refused_or_replaced(path, folder, tmp_path):
    """A fault of a stranger's file is said each time, and nothing of it is kept; a new file is read anew."""
    own, table = tmp_path / "index.parquet", read_index(path)[0]
    write_index(table.assign(land_cover=np.int8(-5)), own, {"tile_size": 534})
    for _ in range(2):
        with pytest.raises(TerraFMError, match="land_cover holds"):
            read_shared(own)
    assert not list(folder.glob("*.arrow"))
    for cover in (3, 5):
        write_index(table.assign(land_cover=np.int8(cover)), own, {"tile_size": 534})
        assert (read_shared(own)[0]["land_cover"] == cover).all()


def test_a_file_that_is_damaged_is_not_used(path, folder):
    read_shared(path)
    (file,) = folder.glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # no file of Arrow's
    assert len(read_shared(path)[0]) == TILES
    assert file.read_bytes() == whole
    middle = len(whole) // 2  # of its values
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(TerraFMError, match="was changed since it was written"):
        read_shared(path)
    assert len(read_shared(path)[0]) == TILES


def test_folders_that_others_can_write_are_not_used(path, folder, tmp_path, monkeypatch, caplog):
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert next(temporary.glob("terrafm-*/index"), None) is None
    assert read_shared(path)[0].path.is_relative_to(temporary)
    assert not list(folder.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(path))  # below a file, nothing can be made
    shared._say.cache_clear()
    for _ in range(2):
        assert type(read_shared(path)[0]) is pd.DataFrame
    assert [record.message.count("TERRAFM_CACHE") for record in caplog.records] == [1]


def test_one_rank_alone_looks_at_the_files(path, monkeypatch):
    def state(_: Path) -> str:
        raise TerraFMError("looked")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        if rank:
            assert index_file.open_index(None, path.parent, None, state, {})[1]
        else:
            with pytest.raises(TerraFMError, match="looked"):
                index_file.open_index(None, path.parent, None, state, {})
