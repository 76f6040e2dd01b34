"""The encoder's numbers: positions, pooling, drop path, groups of parameters, and what a bare tensor is."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torchgeo.models import get_model, get_weight

from data.published_weights import FUSION
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT

PX = 64
DICT = {"s1rtc": torch.randn(2, 2, PX, PX), "s2l1c": torch.randn(2, 12, PX, PX)}


def tiny(**kwargs: object) -> TerraFMViT:
    return timm.create_model("terrafm_tiny", depth=3, **kwargs)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (96, 96), (48, 160), (224, 224), (112, 448), (256, 256)])
def test_any_multiple_of_16(height: int, width: int) -> None:
    model = tiny(modality="s1rtc").eval()
    tokens = model.forward_features(torch.randn(1, 2, height, width))
    assert tokens.shape == (1, 1 + height * width // 256, 192)


def test_positions_follow_dinos_scale_factor() -> None:
    """Cubic convolution (a = -0.75) at (i + 0.5) / scale - 0.5 with scale (h + 0.1) / 14, in float64."""

    def matrix(new: int) -> np.ndarray:
        weights = np.zeros((new, 14))
        for i in range(new):
            at = (i + 0.5) * 14 / (new + 0.1) - 0.5
            for k in range(math.floor(at) - 1, math.floor(at) + 3):
                t = abs(at - k)
                near = 1.25 * t**3 - 2.25 * t**2 + 1
                far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
                weights[i, min(max(k, 0), 13)] += near if t <= 1 else far
        return weights

    model = tiny()
    positions = model.pos_embed.detach().double().numpy()
    grid = positions[0, 1:].reshape(14, 14, -1)
    added = model._pos_embed(torch.zeros(1, 6, 9, 192)).detach().numpy()[0]
    expected = np.einsum("yi,xj,ijd->yxd", matrix(6), matrix(9), grid).reshape(54, -1)
    np.testing.assert_allclose(added[1:], expected, atol=1e-6)
    np.testing.assert_allclose(added[0], positions[0, 0] + model.cls_token.detach().numpy()[0, 0], atol=1e-7)
    assert torch.equal(model._pos_embed(torch.zeros(1, 14, 14, 192))[:, 1:], model.pos_embed[:, 1:])


def test_same_function_as_a_plain_timm_vit() -> None:
    """At 224 px timm's own model with the same blocks computes the same from the same tokens."""
    torch.manual_seed(0)
    ours = tiny(modality="s1rtc").eval()
    plain = VisionTransformer(embed_dim=192, depth=3, num_heads=3, num_classes=0, embed_layer=PatchEmbed).eval()
    own = {name: p for name, p in ours.state_dict().items() if not name.startswith("patch_embed.")}
    assert all(name.startswith("patch_embed.") for name in plain.load_state_dict(own, strict=False).missing_keys)
    x = torch.randn(1, 2, 224, 224)
    tokens = ours.patch_embed(ours.sensor_batch(x)).flatten(1, 2)
    plain.patch_embed = torch.nn.Identity()
    torch.testing.assert_close(ours.forward_features(x), plain.forward_features(tokens))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny(num_classes=2)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(DICT).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_embeddings_are_not_decayed() -> None:
    model = tiny(num_classes=2)
    undecayed, _ = param_groups_weight_decay(model, no_weight_decay_list=model.no_weight_decay())
    names = {name for name, p in model.named_parameters() if any(p is q for q in undecayed["params"])}
    assert {"patch_embed.s1_embed", "patch_embed.fusion.queries", "cls_token", "pos_embed"} <= names
    assert "patch_embed.conv2d_s1.weight" not in names


def test_a_modality_of_the_callers_own_replaces_the_names() -> None:
    model = timm.create_model("terrafm_tiny_rgb", depth=1, modality="s2l1c", bands=("B08",), in_chans=1)
    assert model(torch.randn(1, 1, 16, 16)).shape == (1, 192)
    with pytest.raises(TerraFMError, match="s2l2a has 3 channels here"):
        timm.create_model("terrafm_tiny_rgb", depth=1, in_chans=12)


def test_twelve_bare_channels_warn_once() -> None:
    model, x = tiny().eval(), torch.randn(1, 12, 32, 32)
    with pytest.warns(UserWarning, match="12 channels is read as s2l2a.*L1C stem") as caught:
        guessed = [model(x) for _ in range(2)]
    assert len(caught) == 1
    assert torch.equal(guessed[0], model(x, modality="s2l2a"))
    assert not torch.equal(guessed[0], model(x, modality="s2l1c"))


@pytest.mark.filterwarnings("error::UserWarning")
def test_saying_the_modality_does_not_warn() -> None:
    tiny(modality="s2l2a")(torch.randn(1, 12, 32, 32))
    tiny()(DICT)
    tiny()(DICT["s1rtc"])


def test_nominal_size_leaves_the_parameters_alone() -> None:
    model = tiny(img_size=256, dynamic_img_size=True)
    assert model.pos_embed.shape == (1, 197, 192)
    model.set_input_size((96, 112))
    assert model.pos_embed.shape == (1, 197, 192)
    assert model.patch_embed.img_size == (96, 112)
    assert model(torch.randn(1, 2, 48, 64)).shape == (1, 192)
    with pytest.raises(TerraFMError, match="16 px wide"):
        model.set_input_size(patch_size=14)


def test_fills_an_absent_fusion_also_inside_another_module() -> None:
    state = {name: p for name, p in tiny().state_dict().items() if ".fusion." not in name}
    model = tiny()
    kept = model.patch_embed.fusion.queries.detach().clone()
    model.load_state_dict(state)
    torch.nn.ModuleDict({"encoder": model}).load_state_dict({f"encoder.{name}": p for name, p in state.items()})
    assert torch.equal(model.patch_embed.fusion.queries, kept)
    assert all(torch.equal(model.state_dict()[name], p) for name, p in state.items())


def test_pickles() -> None:
    model = tiny(modality="s2l1c", bands=("B04", "B08")).eval()
    x = torch.randn(1, 2, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.fixture(scope="module")
def shapes(parity: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((parity / "state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def published(published_file: Path) -> TerraFMViT:
    """`terrafm_base` from a file of the published layout."""
    return get_model("terrafm_base", weights=published_file).eval()


@pytest.mark.parametrize("name", ["terrafm_base", "terrafm_large"])
def test_names_shapes_and_order(shapes: dict, name: str) -> None:
    with torch.device("meta"):
        state = get_model(name).state_dict()
    ours = {key: list(tensor.shape) for key, tensor in state.items() if not key.startswith(FUSION)}
    assert list(ours.items()) == list(shapes[name].items())
    assert [key for key in state if key.startswith(FUSION)] == [
        FUSION + part for part in ("queries", "key", "reduction")
    ]


@pytest.mark.parametrize(
    ("output", "seed", "shape", "modality"),
    [
        ("base_s2l1c_224_cls", 1, (2, 12, 224, 224), "s2l1c"),
        ("base_s1_96_cls", 2, (2, 2, 96, 96), "s1rtc"),
        ("base_s2l2a_224_cls", 3, (2, 12, 224, 224), "s2l2a"),
    ],
)
def test_outputs(
    published: TerraFMViT, parity: Path, output: str, seed: int, shape: tuple[int, ...], modality: str
) -> None:
    x = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
    with torch.inference_mode():
        ours = published(x, modality=modality)
    expected = np.load(parity / "expected.npz")[output]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4, rtol=0)


def test_parameter_count(published: TerraFMViT) -> None:
    own = sum(p.numel() for name, p in published.named_parameters() if not name.startswith(FUSION))
    assert own == get_weight("terrafm_base").meta["num_params"]
