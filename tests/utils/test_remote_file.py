"""Rasters on a server: the right pixels, each byte once, and what goes wrong is said."""

import math
import pickle
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from datasets.range_server import Fault, RangeServer
from refusals import refused
from terrafm_tg.utils import remote
from terrafm_tg.utils.remote import RemoteError, RemoteReader
from terrafm_tg.utils.remote_file import RemoteFile, Spool, block_spans, fetch_together

WINDOW = Window(300, 520, 300, 200)
PIXELS = np.random.default_rng(0).integers(1, 60000, (2, 1024, 1024)).astype(np.uint16)
LAYOUTS = {
    "cog": {"driver": "COG", "count": 1, "blocksize": 256},
    "pixels_together": {"driver": "COG", "count": 2, "blocksize": 256},
    "bands_apart": {"driver": "GTiff", "count": 2, "tiled": True, "blockxsize": 256, "blockysize": 256},
    "strips": {"driver": "GTiff", "count": 1, "blockysize": 64},
    "not_compressed": {"driver": "GTiff", "count": 1, "tiled": True, "blockxsize": 256, "blockysize": 256},
}


def write(path: Path, count: int, **profile) -> None:
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0), "height": 1024, "width": 1024}
    profile |= {"compress": "deflate"} if "not" not in path.stem else {}
    if "apart" in path.stem:
        profile["interleave"] = "band"
    with rasterio.open(path, "w", count=count, dtype="uint16", nodata=0, **grid, **profile) as file:
        file.write(PIXELS[:count])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rasters")
    for name, layout in LAYOUTS.items():
        write(folder / f"{name}.tif", **layout)
    write(
        folder / "picture.jp2", 1, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", blockxsize=256, blockysize=256
    )
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_come_once_and_together(layout: str, folder: Path) -> None:
    """By the oracle of GDAL: the blocks' sizes as it tells them of the file on disk, and its pixels."""
    count, rows, columns = LAYOUTS[layout]["count"], *map(slice, (520, 300), (720, 600))
    with rasterio.open(folder / f"{layout}.tif") as src:
        down, across = src.block_shapes[0]
        needed = 0
        for band in range(1, 1 + (count if layout == "bands_apart" else 1)):
            for y in range(520 // down, math.ceil(720 / down)):
                for x in range(300 // across, math.ceil(600 / across)):
                    needed += src.block_size(band, y, x)
    with RangeServer(folder) as server:
        reader = RemoteReader()
        file = RemoteFile(reader, f"{server.url}/{layout}.tif")
        assert file.size == (folder / f"{layout}.tif").stat().st_size
        with file.opened() as src:
            spans = block_spans(src, WINDOW, range(1, count + 1))
            assert sum(stop - start for start, stop in spans) == needed
            shown = list[int]()
            fetch_together([(file, spans)], 4, shown.append)
            requests = len(server.log)
            np.testing.assert_array_equal(src.read(window=WINDOW), PIXELS[:count, rows, columns])
            fetch_together([(file, spans)])
        assert len(server.log) == requests <= 7
        assert reader.came == server.sent() == sum(shown) + len(file.head)
        assert needed < server.sent() <= 1.2 * needed
        starts = sorted((answer.start, answer.start + answer.sent) for answer in server.log)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(starts))
        file.forget()
        assert file.missing([(0, file.size)])[0][0] == len(file.head)


@pytest.mark.parametrize("name", ["cog.tif", "strips.tif", "picture.jp2"])
def test_what_was_not_foreseen_is_fetched_as_it_is_read(name: str, folder: Path) -> None:
    with RangeServer(folder) as server, RemoteFile(RemoteReader(), f"{server.url}/{name}").opened() as src:
        np.testing.assert_array_equal(src.read(1, window=WINDOW), PIXELS[0, 520:720, 300:600])
        assert server.sent() < (folder / name).stat().st_size / 2


def test_spans_are_kept_whatever_their_order() -> None:
    """Of several files that share a spool, in any order, some given back in between: the right bytes, none in vain."""

    class Reader:
        def __init__(self, body: bytes) -> None:
            self.body, self.asked = body, list[tuple[int, int]]()

        def read_head(self, url, most):
            return self.body[:100], (len(self.body), "")

        def read(self, url, start, stop, said):
            self.asked.append((start, stop))
            return self.body[start:stop]

    random, spool = np.random.default_rng(2), Spool()
    files = [RemoteFile(Reader(random.bytes(1 << 20)), f"http://h/{k}", spool=spool) for k in range(3)]
    had = [bytearray(b"x" * 100 + bytes((1 << 20) - 100)) for _ in files]
    for turn, (start, size) in enumerate(random.integers(0, (1 << 20, 20_000), (200, 2)).tolist()):
        k = turn % 3
        file, stop = files[k], min(start + size, 1 << 20)
        if turn % 50 == 49:
            file.forget()
            had[k][100:] = bytes((1 << 20) - 100)
        gaps = file.missing([(start, stop), (start + 10, stop)])
        wasted = sum(had[k][a:b].count(b"x"[0]) for a, b in gaps)
        assert sum(b - a for a, b in gaps) - wasted == had[k][start:stop].count(0)
        assert wasted <= 1024 * len(gaps)
        assert file.read(start, size) == file.reader.body[start:stop]
        for a, b in file.reader.asked:
            had[k][a:b] = b"x" * (b - a)
        file.reader.asked.clear()
        assert not file.missing([(start, stop)])
    assert spool._end < 4 << 20


def test_resets_and_busy_servers_are_waited_for(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(remote, "_FIRST", 0.01)
    faults = {1: Fault(cut=5000), 2: Fault(status=503), 3: Fault(cut=1)}
    with (
        caplog.at_level("INFO", "terrafm_tg"),
        RangeServer(folder, fault=lambda path, number: faults.get(number)) as server,
        RemoteFile(RemoteReader(), f"{server.url}/cog.tif").opened() as src,
    ):
        np.testing.assert_array_equal(src.read(1, window=WINDOW), PIXELS[0, 520:720, 300:600])
    assert caplog.text.count("waiting") == 3


def test_an_error_reaches_the_caller_as_it_was(folder: Path) -> None:
    with RangeServer(folder, fault=lambda path, number: Fault(status=410) if number else None) as server:
        file = RemoteFile(RemoteReader(), f"{server.url}/cog.tif")
        with refused(match=r"cog\.tif cannot be read \(410 Gone\)"), file.opened() as src:
            src.read(1)
        with refused(match="410"), file.opened() as src, pytest.raises(rasterio.errors.RasterioError):
            src.read(1)  # also where a caller passes over it
    (folder / "changing.tif").write_bytes((folder / "cog.tif").read_bytes())
    with RangeServer(folder) as server:
        file = RemoteFile(RemoteReader(), f"{server.url}/changing.tif")
        (folder / "changing.tif").write_bytes((folder / "cog.tif").read_bytes() + b"x")
        with refused(match="changed on the server"), file.opened() as src:
            src.read(1)


@pytest.mark.parametrize("body", [b"", b"<VRTDataset/>", b"II*\0" + bytes(20)])
def test_what_is_no_raster_opens_nothing(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(body)
    failures = (rasterio.errors.RasterioError, RemoteError)
    with RangeServer(tmp_path) as server, pytest.raises(failures), ExitStack() as stack:
        stack.enter_context(RemoteFile(RemoteReader(retries=1), f"{server.url}/x.tif").opened())


@pytest.mark.parametrize("kind", [RemoteError, *RemoteError.__subclasses__()])
def test_errors_of_servers_come_back_from_other_processes(kind):
    """As they are, with pickle and as tblib makes them, which Dask uses: by `__new__` alone, and then the arguments."""
    error = kind("x.tif cannot be read.")
    assert str(pickle.loads(pickle.dumps(error))) == "x.tif cannot be read."
    made = kind.__new__(kind)
    made.args = error.args
    assert isinstance(made, kind)
    assert str(made) == "x.tif cannot be read."
