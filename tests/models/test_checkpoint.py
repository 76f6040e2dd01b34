"""Weights from every kind of file and place, into a model, and out again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torchgeo.models import get_model
from torchgeo.tasks.utils import extract_backbone

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT, build_encoder, export_encoder, load_encoder_state

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> TerraFMViT:
    """A tiny encoder of one block, none of whose parameters are as they start."""
    torch.manual_seed(0)
    model = build_encoder("terrafm_tiny", depth=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def state(model: TerraFMViT) -> State:
    return model.state_dict()


def assert_same(ours: State, theirs: State) -> None:
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def lightning(state: State) -> dict[str, Any]:
    """A pretraining checkpoint: a student that differs, heads, optimiser, settings."""
    student = {name: tensor + 1 for name, tensor in state.items()}
    heads = {"teacher_head.layers.0.weight": torch.zeros(2, 2), "center.center": torch.zeros(3)}
    return {
        "state_dict": prefixed("student.", student) | prefixed("teacher.", state) | heads,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"model": "terrafm_tiny", "depth": 1},
    }


WRAPPERS: dict[str, Callable[[State], dict]] = {
    "flat": dict,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": prefixed("module.", state)},
    "teacher": lambda state: {"teacher": prefixed("backbone.", state), "args": {"lr": 0.1}},
    "compiled": lambda state: {"state_dict": prefixed("teacher._orig_mod.", state)},
    "torchgeo": lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"model": "x"}},
    "lightning": lightning,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_kind_of_file(model: TerraFMViT, state: State, tmp_path: Path, wrapper: str) -> None:
    torch.save(WRAPPERS[wrapper](state), tmp_path / "file.ckpt")
    found, meta = load_encoder_state(tmp_path / "file.ckpt")
    assert_same(found, state)
    assert (meta["model"], meta["depth"], meta["embed_dim"]) == ("terrafm_tiny", 1, 192)
    loaded = get_model("terrafm_tiny", weights=str(tmp_path / "file.ckpt"))  # of its depth, unasked
    assert_same(loaded.state_dict(), state)


def test_export_reproduces_the_teacher(model: TerraFMViT, state: State, tmp_path: Path) -> None:
    torch.save(lightning(state), tmp_path / "last.ckpt")
    paths = export_encoder(tmp_path / "last.ckpt", tmp_path / "out" / "run.v1")
    assert [path.name for path in paths] == ["run.v1.safetensors", "run.v1.ckpt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.v1.ckpt", "run.v1.safetensors"]
    x = {"s1rtc": torch.randn(1, 2, 32, 32), "s2l2a": torch.randn(1, 12, 32, 32)}
    for path in paths:
        loaded = get_model("terrafm_tiny", weights=path).eval()
        assert_same(loaded.state_dict(), state)
        assert torch.equal(loaded(x), model(x))
    with safe_open(paths[0], "pt") as file:
        held = file.metadata()
    assert len(held.pop("sha256")) == 64
    assert held == {"format": "pt", "model": "terrafm_tiny", "depth": "1"}
    name, backbone = extract_backbone(str(paths[1]))
    assert name == "terrafm_tiny"
    assert_same(backbone, state)
    with pytest.raises(TerraFMError, match="would overwrite the checkpoint"):  # a name with its ending, onto itself
        export_encoder(paths[1], paths[1])
    again = export_encoder(paths[1], tmp_path / "again")
    assert_same(load_encoder_state(again[0])[0], load_encoder_state(again[1])[0])


def test_published_layout_gets_the_models_own_fusion(state: State, tmp_path: Path) -> None:
    published = {name: tensor for name, tensor in state.items() if ".fusion." not in name}
    torch.save(published, tmp_path / "TerraFM-T.pth")
    loaded = get_model("terrafm_tiny", weights=tmp_path / "TerraFM-T.pth", features_only=True, out_indices=[0])
    own = loaded.model.state_dict()
    assert all(torch.equal(own[name], p) for name, p in published.items() if not name.startswith("norm."))
    assert own["patch_embed.fusion.key"].abs().max() == 0


def test_heads(state: State, tmp_path: Path) -> None:
    tuned = build_encoder("terrafm_tiny", depth=1, num_classes=3).state_dict()
    torch.save({"state_dict": prefixed("model.", tuned)}, tmp_path / "tuned.ckpt")
    same = get_model("terrafm_tiny", weights=tmp_path / "tuned.ckpt", num_classes=3)
    assert_same(same.state_dict(), tuned)
    for classes in (0, 4):
        other = get_model("terrafm_tiny", weights=tmp_path / "tuned.ckpt", num_classes=classes, global_pool="avg")
        assert other(torch.randn(1, 2, 16, 16)).shape == (1, classes or 192)
        assert torch.equal(other.blocks[0].mlp.fc1.weight, tuned["blocks.0.mlp.fc1.weight"])


def test_wrong_files(state: State, tmp_path: Path) -> None:
    def refused(message: str, path: Path, name: str = "terrafm_tiny") -> None:
        with pytest.raises(TerraFMError, match=message) as error:
            get_model(name, weights=path)
        assert "\n" not in str(error.value)

    refused("There is no checkpoint file .*nowhere.ckpt", tmp_path / "nowhere.ckpt")
    refused("There is no checkpoint file", tmp_path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.ckpt")
    refused("holds no TerraFM encoder", tmp_path / "resnet.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    refused("holds no TerraFM encoder", tmp_path / "list.pth")
    torch.save({"a": state, "b": state}, tmp_path / "two.pth")
    refused("holds 2 TerraFM encoders", tmp_path / "two.pth")
    torch.save(Path("code"), tmp_path / "code.pth")
    refused("holds a `pathlib.*`, and only|holds a `pathlib.* and only tensors", tmp_path / "code.pth")
    torch.save(state, tmp_path / "tiny.pth")
    refused(r"holds terrafm_tiny \(192 wide\), not terrafm_small", tmp_path / "tiny.pth", "terrafm_small")
    with pytest.raises(TerraFMError, match="has 1 blocks and the model 2: build it with depth=1"):
        get_model("terrafm_tiny", weights=tmp_path / "tiny.pth", depth=2)
    torch.save({name: p for name, p in state.items() if "proj2" not in name}, tmp_path / "part.pth")
    refused("missing: patch_embed.projection.proj2.weight", tmp_path / "part.pth")
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "more.pth")
    refused("unknown: extra", tmp_path / "more.pth")
    torch.save(state | {"norm.bias": torch.zeros(5)}, tmp_path / "shape.pth")
    refused("size mismatch for norm.bias", tmp_path / "shape.pth")


def test_what_is_no_checkpoint_names_the_option(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(b"M")
    for load, option in ((load_encoder_state, "weights"), (lambda path: export_encoder(path, "x"), "checkpoint")):
        with pytest.raises(TerraFMError, match=f"^`{option}`: .*file.ckpt is no file that torch saved"):
            load(path)
    with pytest.raises(TerraFMError, match=r"no checkpoint file .*nothere.ckpt: correct `checkpoint`"):
        export_encoder(tmp_path / "nothere.ckpt", "x")
