"""Sources that were replaced by files of equal size: noticed by packing, by the index and by gridding."""

import os

import numpy as np
import pytest

from data.geotiff import write_geotiff
from datasets.tiny_files import optics
from refusals import refused
from terrafm_tg.datasets import PackedTiles, SentinelFolder, build_index
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.utils.files import content, fingerprint, stamp

QUIET = {"workers": 0, "progress": False}


def tiles_of(root):
    return SentinelFolder(root, tile_size=24, native=True, harmonize=False, offset=0)


def image(store):
    tiles = PackedTiles(store, native=True, harmonize=False)
    return tiles[tiles.tile_slice(0)]["image_s2l2a_10m"].numpy()


@pytest.mark.parametrize("keep_time", [True, False])
def test_packing_again_takes_the_new_pixels(tmp_path, keep_time):
    path = tmp_path / "root/S2L2A/a.tif"
    write_geotiff(path, optics(12))
    pack(tiles_of(tmp_path / "root"), tmp_path / "store", **QUIET)
    before, status = image(tmp_path / "store"), path.stat()
    write_geotiff(path, optics(12)[:, ::-1])
    assert path.stat().st_size == status.st_size
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = pack(tiles_of(tmp_path / "root"), tmp_path / "store", **QUIET)
    assert report.counts.loc["s2l2a", ["tiles", "before"]].tolist() == [1, 0]
    np.testing.assert_array_equal(image(tmp_path / "store"), before[:, ::-1])
    assert len([*(tmp_path / "store").rglob("*.arrow")]) == 1
    os.utime(path)  # copied, or fetched again: the same pixels
    report = pack(tiles_of(tmp_path / "root"), tmp_path / "store", **QUIET)
    assert report.counts.loc["s2l2a", ["tiles", "before"]].tolist() == [0, 1]


def test_an_index_of_the_old_file_is_out_of_date(tmp_path):
    path = tmp_path / "S2L2A/a.tif"
    write_geotiff(path, optics(12))
    build_index(tmp_path, tile_size=24, offset=0, **QUIET)
    SentinelFolder(tmp_path, tile_size=24)
    write_geotiff(path, optics(12)[:, ::-1])
    with refused(match=r"made for other files than lie there now \(some were added, removed, replaced, or copied"):
        SentinelFolder(tmp_path, tile_size=24)
    build_index(tmp_path, tile_size=24, offset=0, **QUIET)
    assert len(SentinelFolder(tmp_path, tile_size=24)) == 1


def test_a_size_that_tiles_cannot_have_is_refused_before_any_work(tmp_path):
    write_geotiff(tmp_path / "S2L2A/a.tif", optics(12))
    with refused(
        match=r"`tile_size` must be a multiple of 6 pixels up to 4092, got 64.*: set 66, or 534 as in the paper"
    ):
        build_index(tmp_path, tile_size=64, **QUIET)
    with refused(match=r"`tile_size` must be a multiple of 6"):
        build_index(tmp_path / "nowhere", tile_size=4, **QUIET)


def test_content_and_stamp(tmp_path):
    """All bytes of small files, blocks of large ones; the time counts for the stamp only."""
    path = tmp_path / "x"
    path.write_bytes(bytes(100_000))
    first, name = content(path), fingerprint([path], tmp_path)
    path.write_bytes(bytes(54_321) + b"1" + bytes(45_678))
    assert content(path) != first
    assert fingerprint([path], tmp_path) != name
    assert content(path, 1 << 12) == content(path, 1 << 12)
    large = content(path, 1 << 16)
    path.write_bytes(bytes(99_999) + b"1")
    assert content(path, 1 << 16) != large
    before, digest = stamp(path), content(path)
    os.utime(path, ns=(1, 1))
    assert stamp(path) != before
    assert content(path) == digest
