"""The reader of remote bytes; the faults of a line are tested with the download of Major-TOM."""

from pathlib import Path

import pytest

from datasets.range_server import Fault, RangeServer
from terrafm_tg.utils.remote import NotThereError, RemoteError, RemoteReader, shared_reader


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
