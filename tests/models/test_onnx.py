"""ONNX and safetensors: other programs get the encoder's numbers, whatever it reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchgeo.models import get_model

from refusals import refusal
from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT, build_encoder, export_onnx, reparameterize
from terrafm_tg.transforms import Normalize

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason=f"{_package} is not installed: pip install 'terrafm-tg[onnx]'")


def small(**kwargs: object) -> TerraFMViT:
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", embed_dim=48, depth=1, num_heads=3, **kwargs).eval()


def run(path: Path, images: dict[str, torch.Tensor]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: image.numpy() for name, image in images.items()})[0]


def test_fused_with_bands_at_another_size(tmp_path: Path) -> None:
    bands = {"s1rtc": ("VH",), "s2l2a": ("B04", "B10", "B02")}
    model = small(bands=bands)
    path = export_onnx(model, tmp_path / "new" / "encoder", ["s1rtc", "s2l2a"], (32, 48))
    assert path == tmp_path / "new" / "encoder.onnx"
    assert [file.name for file in path.parent.iterdir()] == ["encoder.onnx"]
    for batch in (1, 5):
        x = {"s1rtc": torch.rand(batch, 1, 32, 48), "s2l2a": torch.rand(batch, 3, 32, 48)}
        np.testing.assert_allclose(run(path, x), model(x).detach().numpy(), atol=1e-4)
    with pytest.raises(Exception, match=r"(?i)invalid dimensions"):  # onnxruntime's own classes of errors
        run(path, {"s1rtc": torch.rand(1, 1, 48, 48), "s2l2a": torch.rand(1, 3, 48, 48)})


def test_its_metadata_normalises(tmp_path: Path) -> None:
    import onnx

    model = reparameterize(small(modality="s1rtc", bands=("VH", "VV"), num_classes=2))
    path = export_onnx(model, tmp_path / "head.onnx", size=32)
    graph = onnx.load(path)
    assert [output.name for output in graph.graph.output] == ["logits"]
    stated = json.loads({prop.key: prop.value for prop in graph.metadata_props}["terrafm"])["s1rtc"]
    assert stated["bands"] == ["VH", "VV"]
    assert stated["unit"] == "dB"
    x = torch.rand(2, 2, 32, 32) * -20 - 1
    mean, std = (torch.tensor(stated[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((x - mean) / std, Normalize("s1rtc", ["VH", "VV"])(x))
    expected = model((x - mean) / std).detach().numpy()
    np.testing.assert_allclose(run(path, {"s1rtc": (x - mean) / std}), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": None}, r"`size` is None: it must be int \| tuple\[int, int\]"),
        ({"size": "dynamic"}, "`size` is 'dynamic'"),
        ({"size": -1}, "`size` is -1"),
        ({"size": (32, None)}, r"`size` is \(32, None\)"),
        ({"size": 100}, "100x100 px cannot be cut into 16-px patches"),
        ({"modality": None}, "Nothing says what the exported encoder reads: name a `modality`"),
        ({"modality": "sar"}, "Modality 'sar' is unknown"),
        ({"modality": ["s1rtc", "sar"]}, "Modality 'sar' is unknown"),
    ],
)
def test_refused_in_words(tmp_path: Path, kwargs: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message):
        export_onnx(small(), tmp_path / "out", **{"modality": "s1rtc", "size": 32} | kwargs)
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of pretraining to three files; bands and fusion hold for each of them."""
    torch.manual_seed(0)
    teacher = build_encoder("terrafm_tiny", depth=1).eval()
    state = {f"teacher.{name}": tensor for name, tensor in teacher.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    out = tmp_path / "encoder"
    options = ["--onnx=s2l2a", "--bands=[B04,B03,B02]", "--size=32x48", "--fold=true"]
    main(["export", str(tmp_path / "last.ckpt"), str(out), *options])
    printed = capsys.readouterr().out.split()
    assert printed[-3:] == [f"{out}.safetensors", f"{out}.ckpt", f"{out}.onnx"]
    x = torch.rand(2, 3, 32, 48)
    complete = torch.full((2, 12, 32, 48), 0.5)
    complete[:, [3, 2, 1]] = x
    expected = teacher(complete, modality="s2l2a").detach()
    for path in printed[-3:-1]:
        model = get_model("terrafm_tiny_rgb", weights=path).eval()
        torch.testing.assert_close(model(x), expected)
    np.testing.assert_allclose(run(Path(printed[-1]), {"s2l2a": x}), expected.numpy(), atol=1e-4)
    wrong = ["export", str(tmp_path / "last.ckpt"), str(out), "--onnx=[s1rtc,s2l2a]", "--size=dynamic"]
    assert "`size` is 'dynamic'" in refusal(capsys, *wrong)
