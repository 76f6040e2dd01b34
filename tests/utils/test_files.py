import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets.range_server import Fault, RangeServer
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.devices import describe_device, find_device, has_bf16_units
from terrafm_tg.utils.files import atomic_write, files_below, fingerprint, remove_leftovers, work_folder
from terrafm_tg.utils.remote import NotThereError, RemoteError, RemoteReader, shared_reader


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file[1].txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(ValueError, match="embedded null"), atomic_write(path) as temporary:
        Path("\0").write_bytes(temporary.write_text("two").to_bytes())
    assert [p.read_text() for p in path.parent.iterdir()] == ["one"]


def test_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".a.txt.1.tmp", "below/.a.txt.2.tmp", ".b.txt.3.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.txt", sole_writer=True) as temporary:
        temporary.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.txt.3.tmp", "a.txt", "below"]
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.txt"]


def test_files_below_are_listed_in_order_and_named(tmp_path: Path) -> None:
    for name in ("b/z.tif", "b/a/y.TIF", "c.tif", "a.jp2", "b/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def listed(*endings: str, deep: bool = True) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path, *endings, deep=deep)]

    assert listed(".tif", ".jp2") == ["a.jp2", "c.tif", "b/z.tif", "b/a/y.TIF"]
    assert listed(deep=False) == ["a.jp2", "c.tif"]
    assert not list(files_below(tmp_path / "none"))
    files = list(files_below(tmp_path))
    before = fingerprint(files, tmp_path)
    assert fingerprint(reversed(files), tmp_path) == before
    (tmp_path / "c.tif").write_text("longer than it was")
    assert len({before, fingerprint(files, tmp_path), fingerprint(files[1:], tmp_path)}) == 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def test_the_same_from_a_server_and_from_other_protocols(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    with RangeServer(tmp_path) as server:
        for url in (f"{server.url}/file.bin", f"file://{file}"):
            reader = RemoteReader()
            assert reader.read(url, 100, 300, reader.describe(url)) == content[100:300]
            size, version = reader.describe(url)
            assert size == len(content)
            assert version
            copy = tmp_path / url.partition(":")[0]
            assert [reader.save(url, copy, 1 << 20) for _ in range(2)] == [True, False]
            assert copy.read_bytes() == content
            with pytest.raises(NotThereError, match="does not exist"):
                reader.read(url.replace("file.bin", "none"), 0, 1)
        with pytest.raises(RemoteError, match="changed on the server"):
            reader.read(f"{server.url}/file.bin", 0, 1, (99, ""))


def test_a_dataset_gives_up_soon(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrafm_tg.utils.remote._FIRST", 0.01)
    with RangeServer(tmp_path, fault=lambda path, number: Fault(status=503)) as server:
        with pytest.raises(OSError, match="cannot be read after 3 attempts"):
            shared_reader().read(f"{server.url}/file.bin", 0, 2)
        assert len(server.log) == 3
    assert shared_reader() is shared_reader()


@pytest.mark.parametrize(
    ("capability", "unit", "expected"),
    [("DEFAULT", True, False), ("AVX2", True, False), ("AVX512", True, True), ("AVX512", False, False)],
)
def test_bf16_units_of_a_processor(
    capability: str, unit: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: unit)
    assert has_bf16_units("cpu") is expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: unit)
    assert has_bf16_units("cpu") is expected


@pytest.mark.soak
def test_bf16_units_are_absent_where_torch_is_limited() -> None:
    code = "from terrafm_tg.utils.devices import has_bf16_units; print(has_bf16_units('cpu'))"

    def ask(**limits: str) -> str:
        known = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
        run = subprocess.run([sys.executable, "-c", code], env=known | limits, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    assert ask(ATEN_CPU_CAPABILITY="avx2") == "False"
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert ask() == str(units)  # this machine's own, without a limit


def test_devices() -> None:
    assert not has_bf16_units("meta")
    assert describe_device(torch.device("cpu")).startswith("CPU, ")
    assert find_device("cpu").type == "cpu"
    with pytest.raises(TerraFMError, match="no device 'tpu'"):
        find_device("tpu")


def test_a_work_folder_goes_with_its_block_and_after_a_kill(tmp_path: Path) -> None:
    left = tmp_path / ".map.tif.0.work"
    left.mkdir()
    (left / "half").write_text("half")
    with work_folder(tmp_path / "map.tif") as folder:
        (folder / "deep").mkdir()
        assert [*tmp_path.iterdir()] == [folder]
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), work_folder(tmp_path / "map.tif") as folder:
        (folder / "none").read_text()
    assert not list(tmp_path.iterdir())
