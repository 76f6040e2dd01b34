"""Strings in data files are names below a root: none opens a protocol, a host or a path outside."""

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import h5py
import numpy as np
import pandas as pd
import pytest
import rasterio

from datasets.tiny_files import optics, product, radar, write, write_major_tom
from refusals import refusal, refused
from terrafm_tg.datasets import MajorTOM, PackedTiles, SentinelFolder, build_index
from terrafm_tg.datasets.store.folder import write_store_index
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.datasets.tiles.index_file import NAME, read_index, write_index
from terrafm_tg.utils.trust import below, check_address, check_names, check_tiffs, is_safe, open_hdf5, open_image

HOSTILE = [
    "dask://10.1.2.3:9/x::file:///y", "simplecache::https://h/x", "blockcache::s3://b/x", "s3://bucket/x.tif",
    "ssh://host/x", "sftp://host/x", "reference://x", "github://o:r@/x", "https://h/x.tif", "http://10.1.2.3:9/x",
    "ftp://h/x", "file:///etc/passwd", "memory://x", "zip://x.tif::https://h/a.zip", "tar://x::file:///y",
    "/etc/passwd", "//host/share/x", "~/x.tif", "~root/x", "../victim/thesis.txt", "a/../../x.tif", "..", "a/..",
    "..\\x.tif", "\\\\host\\share\\x", "C:\\x.tif", "c:/x.tif", "%2e%2e/x.tif", "a/%2E%2E%2Fx", "%252e%252e%252fx",
    "%5c%5chost%5cx", "x%00.tif", "x\0.tif", "x\n.tif", "/vsicurl/https://h/x.tif", "/vsizip/x.zip/y.tif",
    "/vsis3/b/x", "/vsistdin/", "GTIFF_DIR:1:/etc/x\\", "",
]  # fmt: skip
ORDINARY = [
    "Core-S2L2A/images/part_00001.parquet", "s2l2a/0003.arrow", "s2/T33UUP_20210501T101031_{}.tif", "été 5 %/a..b.tif",
    "...x/y.tif", "a b/c#1.tif", ".hidden/x.tif", "S1:2021/x.tif", "100%/x.tif",
]  # fmt: skip
CELL = "536U_101R"
_watched: list[Path] | None = None
_seen: list[str] = []
_clean: dict = {}


def _watch(event: str, arguments: tuple) -> None:
    """Notes connections, processes, and files touched outside of the folders watched; hooks cannot be removed."""
    if _watched is None:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        _seen.append(f"{event} {arguments}")
    if event in ("open", "os.remove", "os.rename", "os.listdir", "os.rmdir") and isinstance(arguments[0], str):
        path = Path(arguments[0]).resolve()
        own = (
            *map(Path, filter(None, sys.path)),
            *_watched,
            *Path(gettempdir()).glob("terrafm-*"),
            Path(sys.prefix).resolve(),
            Path(sys.base_prefix).resolve(),
            Path(__file__).parents[2],
        )
        if not any(path.is_relative_to(folder) for folder in own) and path.parts[1] not in ("proc", "sys", "dev"):
            _seen.append(f"{event} {path}")


@contextmanager
def nothing_outside(*folders: Path) -> Iterator[None]:
    global _watched
    _seen.clear()
    _watched = [folder.resolve() for folder in folders]
    try:
        yield
    finally:
        _watched = None
    assert _seen == []


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A Major-TOM root, a folder of GeoTIFFs and a store, each with its index."""
    base = tmp_path_factory.mktemp("stranger")
    write_major_tom(base / "major_tom", {"s2l2a": [product("s2l2a", CELL)]})
    write(base / "folder/s2l2a/20210501.tif", optics(12), descriptions=None)
    write(base / "folder/s1rtc/20210501.tif", radar())
    build_index(base / "major_tom", tile_size=12, workers=0, progress=False)
    build_index(base / "folder", tile_size=24, offset=0, workers=0, progress=False)
    pack(
        MajorTOM(base / "major_tom", tile_size=12, native=True, harmonize=False),
        base / "store",
        workers=0,
        progress=False,
    )
    (base / "victim").mkdir()
    (base / "victim/thesis.txt").write_text("ten years")
    return base


def poison(root: Path, name: str) -> None:
    """Puts a name into the index of a dataset."""
    if root not in _clean:
        _clean[root] = read_index(root / NAME)
    table, made_for = _clean[root][0].copy(), _clean[root][1]
    for column in (c for c in table if c.startswith(("part_", "path_", "shard_"))):
        table[column] = pd.Categorical([name] * len(table))
    if (root / f"{NAME}.xxh128").is_file():
        write_store_index(table, root, made_for)
    else:
        write_index(table, root / NAME, made_for)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_one_sentence(name: str) -> None:
    assert not is_safe(name)
    for names in (["a.tif", name], pd.Series(["a.tif", name], dtype="category"), pd.Series([None, name])):
        with refused(match="index names .* was not opened") as told:
            check_names(names, "index")
    assert "\n" not in str(told.value)


def test_a_list_of_a_split_names_files_below_its_root(tmp_path: Path) -> None:
    """Libraries make paths of the names in such a list, which are checked afterwards."""
    assert below(tmp_path / "a/b.tif", tmp_path) == below(Path("data", "a/b.tif"), "data") == "a/b.tif"
    for name in ("/etc/passwd", "../x.tif", "a/../../x.tif"):
        with refused(match="was not opened"):
            check_names([below(tmp_path / name, tmp_path)], "list")


def test_ordinary_names_and_addresses_below_the_users_source_pass() -> None:
    assert all(map(is_safe, ORDINARY))
    check_names([*ORDINARY, None, np.nan], "index")
    check_names(["https://mine.org/data/a.tif"], "index", ["https://mine.org/data/"])
    for beyond in ("https://mine.org/data/../x", "https://mine.org/data/%2e%2e/x", "https://mine.org/x"):
        with refused(match="was not opened"):
            check_names([beyond], "index", ["https://mine.org/data/"])
    with refused(match="was not opened"):
        check_names([3], "index")


@pytest.mark.parametrize(
    "url", ["dask://h:1/x::file:///y", "reference://x", "https://h/x::s3://b", "x", "ssh://h/x", "https://a/b://c"]
)
def test_an_address_reads_bytes_and_nothing_more(url: str) -> None:
    with refused(match="is no address that is read"):
        check_address(url)


@pytest.mark.parametrize(
    ("kind", "opened"),
    [
        ("major_tom", lambda root: MajorTOM(root, tile_size=12)),
        ("folder", lambda root: SentinelFolder(root, tile_size=24, offset=0)),
        ("store", PackedTiles),
    ],
)
def test_no_dataset_opens_a_hostile_name(kind, opened, sources: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sources / kind, tmp_path / kind)
    for name in HOSTILE if kind == "major_tom" else HOSTILE[::5]:
        poison(root, name)
        with nothing_outside(tmp_path), refused(match="was not opened"):
            opened(root)


@pytest.mark.parametrize("name", HOSTILE[::13])
@pytest.mark.parametrize("command", ["pack", "fit", "validate", "index"])
def test_no_command_opens_a_hostile_name(command: str, name: str, sources: Path, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(sources / "major_tom", tmp_path / "root")
    poison(root, name)
    if command == "index":  # made anew: hostile there are the addresses in the metadata
        metadata = root / "Core-S2L2A/metadata.parquet"
        pd.read_parquet(metadata).assign(parquet_url=name).to_parquet(metadata)
        words, said = ["--tile_size=12", "--remote=true", "--figure=false"], "None of the Parquet files|names"
    elif command == "pack":
        words, said = [str(tmp_path / "out")], "was not opened"
    else:
        words = ["--config=pretrain", "--config=size/nano", "--config=hardware/cpu", "--trainer.logger=false"]
        words += [f"--data.root={root}", "--data.tile_size=12", f"--trainer.default_root_dir={tmp_path}"]
        said = "was not opened"
    paths = [] if command in ("fit", "validate") else [str(root)]
    with nothing_outside(tmp_path):
        message = refusal(capsys, command, *paths, *words)
    assert any(part in message for part in said.split("|")), message
    assert "\n" not in message


def test_remote_rows_come_from_the_source_named_and_no_other(tmp_path: Path) -> None:
    rows = {"s2l2a": [product("s2l2a", CELL)]}
    root = write_major_tom(tmp_path, rows, url="https://10.1.2.3:9/")
    shutil.rmtree(root / "Core-S2L2A/images")
    with nothing_outside(tmp_path), refused(match="is not below https://huggingface.co/datasets/Major-TOM/.*`remote`"):
        MajorTOM(root, tile_size=12, remote=True)
    with nothing_outside(tmp_path):
        assert len(MajorTOM(root, tile_size=12, remote="https://10.1.2.3:9").table) == 4


def test_packing_removes_only_shards_of_the_store(sources: Path, tmp_path: Path) -> None:
    """A list of removals of an earlier format, names outside, and a link to another folder lead to nothing."""
    for name in ("major_tom", "store", "victim"):
        shutil.copytree(sources / name, tmp_path / name)
    store, thesis, outside = tmp_path / "store", tmp_path / "victim/thesis.txt", tmp_path / "victim/0000.arrow"
    outside.write_bytes(b"x")
    (store / "s2l1c").symlink_to(tmp_path / "victim")
    (store / ".gone.json").write_text(json.dumps(["../victim/thesis.txt", str(thesis), "s2l1c/0000.arrow"]))
    table, made_for = read_index(store / NAME)
    (old,) = table["shard_s2l2a"].unique()
    (store / old).rename(store / "s2l2a/stale.arrow")
    table["shard_s2l2a"] = ["s2l2a/stale.arrow", "s2l1c/0000.arrow", "s2l2a/stale.arrow", "s2l2a/stale.arrow"]
    table["source_s2l2a"] += 1  # of another source: all is packed again
    write_store_index(table, store, made_for)
    pack(MajorTOM(tmp_path / "major_tom", tile_size=12, native=True, harmonize=False), store, workers=0, progress=False)
    assert thesis.read_text() == "ten years"
    assert outside.read_bytes() == b"x"
    assert not (store / "s2l2a/stale.arrow").exists()
    assert len(PackedTiles(store).table) == 4


VRT = """<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


def test_an_image_is_opened_in_the_formats_named_and_without_side_cars(tmp_path: Path) -> None:
    real, vrt = tmp_path / "real.tif", tmp_path / "x.tif"
    write(real, optics(1, size=8))
    vrt.write_text(VRT.format(path=real))
    (tmp_path / "real.tif.aux.xml").write_text('<PAMDataset><Metadata><MDI key="a">b</MDI></Metadata></PAMDataset>')
    with rasterio.open(vrt) as src:
        assert src.driver == "VRT"  # what would happen without
    with pytest.raises(rasterio.errors.RasterioIOError), open_image(vrt):
        pass
    with open_image(real) as src:
        assert "a" not in src.tags()
        assert src.count == 1
    with refused(match="is no TIFF, whatever its name says"):
        check_tiffs([real, vrt])
    with refused(match=r"none\.tif is no TIFF.* or cannot be read"):
        check_tiffs([tmp_path / "none.tif"])


def test_a_tif_that_is_a_vrt_gives_no_pixels(tmp_path: Path) -> None:
    for modality, pixels in (("s2l2a", optics(12)), ("s1rtc", radar())):
        write(tmp_path / f"real/{modality}/20210501.tif", pixels)
    (tmp_path / "root/s2l2a").mkdir(parents=True)
    (tmp_path / "root/s2l2a/20210501.tif").write_text(VRT.format(path=tmp_path / "real/s2l2a/20210501.tif"))
    write(tmp_path / "root/s1rtc/20210501.tif", radar())
    with nothing_outside(tmp_path / "root"), pytest.warns(UserWarning, match="not recognized as being in a supported"):
        assert [m.name for m in SentinelFolder(tmp_path / "root", tile_size=24, offset=0).modalities] == ["s1rtc"]


def test_an_hdf5_file_leads_to_no_other(tmp_path: Path) -> None:
    """Links, storage and virtual data sets can name files anywhere, whose bytes would come as pixels."""
    whole, (victim, other) = tmp_path / "whole.h5", (tmp_path / "victim.bin", tmp_path / "other.h5")
    victim.write_bytes(bytes(64))
    for path in (whole, other):
        with h5py.File(path, "w") as file:
            file["a/b"] = np.arange(8)
    with open_hdf5(whole) as file:
        assert file["a/b"][3] == 3
    for number, make in enumerate(
        (
            lambda file: file.__setitem__("a/x", h5py.ExternalLink(str(other), "a/b")),
            lambda file: file.create_dataset("x", (8,), "i8", external=[(str(victim), 0, 64)]),
            lambda file: file.create_virtual_dataset("x", _virtual(other)),
        )
    ):
        path = Path(shutil.copy(whole, tmp_path / f"{number}.h5"))
        with h5py.File(path, "a") as file:
            make(file)
        with refused(match="keeps 'x' in another file, which was not opened"), open_hdf5(path):
            pass


def _virtual(path: Path) -> "h5py.VirtualLayout":
    layout = h5py.VirtualLayout((8,), "i8")
    layout[:] = h5py.VirtualSource(path, "a/b", (8,))
    return layout


# Files whose names this package makes itself, or the user gave: temporary, half-written or kept by the download.
REMOVES = {"utils/files.py", "utils/trust.py", "datasets/store/pack.py"}
REMOVES |= {"datasets/majortom/gridding.py", "datasets/majortom/download/product.py"}
REMOVES |= {"datasets/majortom/download/run.py", "evaluation/bench/work.py", "datasets/index/build.py"}
REMOVES |= {"simulation/dataset.py", "datasets/index/statistics.py"}
REMOVES |= {"utils/shared.py", "datasets/store/folder.py"}  # its own cache; a store's log once it is merged
# Unfinished work, and drafts of their own.
REMOVES |= {"inference/embed.py", "inference/map/run.py"}
REMOVES |= {"inference/products/layers.py", "inference/products/polygons.py"}
WRITES = {"simulation/writer.py", "datasets/majortom/images.py"}
# Products, which they read again as soon as they are written.
WRITES |= {f"inference/products/{name}.py" for name in ("cog", "layers", "picture", "polygons")}
# A footer alone, of a part whose pages are then compared with it; what was checked just before.
PARQUET = {"utils/parquet.py", "datasets/majortom/part_files.py", "datasets/majortom/gridding.py"}
PARQUET |= {"inference/products/stac.py"}


def test_nothing_else_opens_or_removes() -> None:
    """Rasterio opens files in one place only, but those that are written; fsspec is called in one; few remove."""
    package = Path(__file__).resolve().parents[2] / "src/terrafm_tg"
    for path in package.rglob("*.py"):
        own = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            if called == "rasterio.open":
                assert own == "utils/trust.py" or own in WRITES, f"{own}:{node.lineno}"
            if called.endswith(("h5py.File", "hdf5.File", "import('h5py').File")):
                assert own == "utils/trust.py", f"{own}:{node.lineno}"
            if node.func.attr == "read_parquet" or called.startswith(("pq.read_", "pq.ParquetFile")):
                assert own in PARQUET, f"{own}:{node.lineno}"
            if called.startswith(("xarray.open_", "zarr.open")):
                assert own == "utils/trust.py", f"{own}:{node.lineno}"
            if called.startswith("fsspec."):
                assert own == "utils/remote.py", f"{own}:{node.lineno}"
            if node.func.attr in ("unlink", "rmtree", "rmdir") or called == "os.remove":
                assert own in REMOVES, f"{own}:{node.lineno}"
