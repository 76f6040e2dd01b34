"""The published file from a server: loaded once, then offline; a bad download costs nothing but a clear sentence."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchgeo.models import get_model, get_weight

from data import published_weights
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import load_encoder_state


class FileServer(ThreadingHTTPServer):
    """Serves one file under any name, whole, its first `cut` bytes, or not at all."""

    def __init__(self, file: Path) -> None:
        super().__init__(("127.0.0.1", 0), FileHandler)
        self.file = file
        self.cut: int | None = None
        self.status = 200
        self.requests = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class FileHandler(BaseHTTPRequestHandler):
    """Answers a GET with the server's file."""

    server: FileServer

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        if self.server.status == 200:
            self.send_header("Content-Length", str(self.server.file.stat().st_size))
        self.end_headers()
        if self.server.status == 200:
            with self.server.file.open("rb") as file:
                self.wfile.write(file.read(self.server.cut))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """`terrafm_tiny` in the published layout."""
    torch.save(published_weights.tiny(), tmp_path / "TerraFM-T.pth")
    return tmp_path / "TerraFM-T.pth"


@pytest.fixture
def server(tiny_file: Path) -> Iterator[FileServer]:
    """A running server."""
    with FileServer(tiny_file) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_the_published_file_from_a_server(
    server: FileServer, published_file: Path, parity: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First two bad downloads, then a good one, then no server."""
    weights = get_weight("terrafm_base")
    monkeypatch.setattr(weights.value, "url", f"{server.url}/TerraFM-B.pth")
    server.file, server.cut = published_file, 1_000_000
    with pytest.raises(
        TerraFMError, match=r"/TerraFM-B\.pth could not be downloaded \(1,000,000 of .* came\): try again later, put"
    ):
        get_model("terrafm_base", weights=weights)
    server.status = 503
    with pytest.raises(TerraFMError, match=r"could not be downloaded .*503.*, put the file at .*TerraFM-B.pth"):
        get_model("terrafm_base", weights=weights)
    assert list(hub.iterdir()) == []
    server.status, server.cut = 200, None
    model = get_model("terrafm_base", weights=weights).eval()
    assert [path.name for path in hub.iterdir()] == ["TerraFM-B.pth"]
    requests = server.requests
    x = np.random.RandomState(2).standard_normal((2, 2, 96, 96)).astype(np.float32)
    with torch.inference_mode():
        ours = model(torch.from_numpy(x), modality="s1rtc").numpy()
    np.testing.assert_allclose(ours, np.load(parity / "expected.npz")["base_s1_96_cls"], atol=1e-4, rtol=0)
    server.status = 503
    state = weights.get_state_dict(progress=False)
    assert torch.equal(state["norm.weight"], model.norm.weight)
    assert server.requests == requests


def test_a_url_is_fetched_once_and_kept_only_whole(server: FileServer, hub: Path) -> None:
    url, state = f"{server.url}/TerraFM-T.pth", published_weights.tiny()
    whole = server.file.read_bytes()
    server.file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TerraFMError, match=rf"{url} is damaged .*: use the file of another server, or try again later"):
        load_encoder_state(url, progress=False)
    assert list(hub.iterdir()) == []
    server.file.write_bytes(whole)
    found = load_encoder_state(url, progress=False)[0]
    assert sorted(found) == sorted(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert [path.name for path in hub.iterdir()] == ["TerraFM-T.pth"]
    server.status = 404
    own = get_model("terrafm_tiny", weights=url).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    with pytest.raises(TerraFMError, match=f"404.*put the file at {re.escape(str(hub))}/nothing.pth"):
        load_encoder_state(f"{server.url}/nothing.pth", progress=False)


def test_hash_in_the_name_is_checked(server: FileServer, tiny_file: Path, hub: Path) -> None:
    digest = hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    wrong = f"{server.url}/TerraFM-T-{'0' * 8}.pth"
    with pytest.raises(TerraFMError, match=f"could not be downloaded .its hash is {digest}, expected 00000000"):
        load_encoder_state(wrong, progress=False)
    assert list(hub.iterdir()) == []
    state, meta = load_encoder_state(f"{server.url}/TerraFM-T-{digest[:8]}.pth", progress=False)
    assert meta["model"] == "terrafm_tiny"
    assert torch.equal(state["cls_token"], published_weights.tiny()["cls_token"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight": torch.zeros(1)}, "holds no TerraFM encoder"),
        ("words", "holds no TerraFM encoder"),
        ({"code": Path("x")}, "only tensors and plain values are taken"),
    ],
)
def test_a_download_of_something_else_is_not_kept(
    server: FileServer, hub: Path, tmp_path: Path, content: object, said: str
) -> None:
    server.file = tmp_path / "other.pth"
    torch.save(content, server.file)
    with pytest.raises(TerraFMError, match=said):
        load_encoder_state(f"{server.url}/other.pth", progress=False)
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "said"), [("_MOST", "it has more than 0.0 GB"), ("_SLOWEST", "it comes at less than 1e.15 bytes")]
)
def test_no_more_than_a_checkpoint_can_have(
    server: FileServer, hub: Path, monkeypatch: pytest.MonkeyPatch, limit: str, said: str
) -> None:
    monkeypatch.setattr("terrafm_tg.models.weights._GRACE", 0.0)
    monkeypatch.setattr(f"terrafm_tg.models.weights.{limit}", 1e15 if limit == "_SLOWEST" else 1000)
    with pytest.raises(TerraFMError, match=f"could not be downloaded .{said}"):
        load_encoder_state(f"{server.url}/TerraFM-T.pth", progress=False)
    assert list(hub.iterdir()) == []
