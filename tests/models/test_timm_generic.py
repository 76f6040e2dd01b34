"""What timm's generic model tests ask of every model it lists, asked of every registered name.

The names are built 48 wide and 3 blocks deep; the true sizes are built without memory.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_notrace_functions, get_notrace_modules, group_parameters
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.sizes import SIZES, VARIANTS, split_name

pytestmark = pytest.mark.filterwarnings("ignore:A bare tensor of 12 channels")

DIM, DEPTH, PX = 48, 3, 32
GRID = PX // 16
#: Every ending and every size.
NAMES = [*SIZES, *(f"terrafm_tiny{ending}" for ending in VARIANTS)]
FEW = ["terrafm_tiny", "terrafm_tiny_s1rtc", "terrafm_tiny_eurosat", "terrafm_tiny_rgb"]
DICT = {"s1rtc": torch.randn(2, 2, PX, PX), "s2l2a": torch.randn(2, 12, PX, PX)}


def make(name: str = "terrafm_tiny", **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, embed_dim=DIM, depth=DEPTH, num_heads=3, **kwargs)


def images(model: nn.Module) -> Tensor:
    return torch.randn(2, model.pretrained_cfg["input_size"][0], PX, PX)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_gradients(name: str) -> None:
    model = make(name, num_classes=7).train()
    x = images(model)
    logits, tokens = model(x), model.forward_features(x)
    assert logits.shape == (2, 7)
    assert tokens.shape == (2, 1 + GRID**2, DIM)
    assert logits.isfinite().all()
    torch.testing.assert_close(model.forward_head(tokens), logits)
    logits.mean().backward()
    assert [part for part, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for part, p in model.named_parameters() if part.startswith("blocks."))


@pytest.mark.parametrize("name", NAMES)
def test_configuration_agrees_with_the_model(name: str) -> None:
    model = make(name, num_classes=7)
    config = timm.get_pretrained_cfg(name)
    assert model.pretrained_cfg == model.default_cfg
    assert model.pretrained_cfg["architecture"] == name
    assert model.modality == split_name(name)[1].get("modality")
    resolved = resolve_model_data_config(model)
    assert resolved["input_size"] == config.input_size == (model.in_chans, 224, 224)
    assert resolved["mean"] == config.mean
    assert resolved["std"] == config.std
    assert len(config.mean) == len(config.std) == model.in_chans
    assert make(name, in_chans=model.in_chans, num_classes=4)(images(model)).shape == (2, 4)
    assert config.num_classes == 0
    assert f"{config.classifier}.weight" in model.state_dict()
    assert model.get_classifier() is model.get_submodule(config.classifier)
    assert config.first_conv == model.pretrained_cfg["first_conv"]
    assert model.get_submodule(config.first_conv) is model.patch_embed.proj
    assert timm.is_model_pretrained(name) == name.startswith("terrafm_base")


@pytest.mark.parametrize("name", SIZES)
def test_true_sizes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        tokens = model.forward_features(torch.empty(2, 2, 96, 96))
    size = SIZES[name]
    assert model.num_features == model.head_hidden_size == model.embed_dim == size["embed_dim"]
    assert len(model.blocks) == size["depth"]
    assert tokens.shape == (2, 37, size["embed_dim"])
    assert [part["num_chs"] for part in model.feature_info] == [size["embed_dim"]] * size["depth"]


@pytest.mark.parametrize("name", NAMES)
def test_features_only(name: str) -> None:
    net = make(name, features_only=True).eval()
    assert isinstance(net, FeatureGetterNet)
    assert list(net.feature_info.out_indices) == [0, 1, 2]
    assert net.feature_info.channels() == [DIM] * 3
    assert net.feature_info.reduction() == [16] * 3
    with torch.no_grad():
        maps = net(images(net))
    assert [m.shape for m in maps] == [(2, DIM, GRID, GRID)] * 3
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(("indices", "kept"), [((0, 2), [0, 2]), ((1,), [1]), ((-2,), [1]), (2, [1, 2])])
def test_features_only_out_indices(indices: int | tuple[int, ...], kept: list[int]) -> None:
    full = make().eval()
    net = make(features_only=True, out_indices=indices).eval()
    assert len(net.model.blocks) == max(kept) + 1
    net.model.load_state_dict(full.state_dict())
    expected = full.forward_intermediates(DICT, indices=kept, intermediates_only=True)
    for ours, theirs in zip(net(DICT), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("x", [DICT["s1rtc"], DICT], ids=["tensor", "dict"])
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates(x: Tensor | dict[str, Tensor], norm: bool) -> None:
    model = make().eval()
    final, maps = model.forward_intermediates(x, norm=norm)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [m.shape for m in maps] == [(2, DIM, GRID, GRID)] * DEPTH
    only = {"norm": norm, "intermediates_only": True}
    lists = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, **only)
    for m, (tokens, prefix) in zip(maps, lists, strict=True):
        assert torch.equal(m.flatten(2).transpose(1, 2), tokens)
        assert prefix.shape == (2, 1, DIM)
    if norm:
        torch.testing.assert_close(torch.cat([prefix, tokens], 1), final)
        (last,) = model.get_intermediate_layers(x, 1, norm=True)
        torch.testing.assert_close(last, tokens)
    (early,) = model.forward_intermediates(x, indices=[0], stop_early=True, **only)
    assert torch.equal(early, maps[0])
    by_call = model.forward_intermediates(DICT["s2l2a"], modality="s2l1c", intermediates_only=True)
    assert len(by_call) == DEPTH
    named = model.forward_intermediates(x, norm=norm, output_dict=True, return_prefix_tokens=True)
    assert torch.equal(named["image_features"], final)
    assert len(named["image_intermediates"]) == len(named["image_intermediates_prefix"]) == DEPTH


@pytest.mark.parametrize("prune_norm", [False, True])
def test_prune_intermediate_layers(prune_norm: bool) -> None:
    full, model = make(num_classes=3).eval(), make(num_classes=3).eval()
    assert model.prune_intermediate_layers([0, 1], prune_norm=prune_norm) == [0, 1]
    assert len(model.blocks) == 2
    assert isinstance(model.norm, nn.Identity) == prune_norm
    assert isinstance(model.get_classifier(), nn.Identity)
    expected = full.forward_intermediates(DICT, indices=[0, 1], intermediates_only=True)
    for ours, theirs in zip(model.forward_intermediates(DICT)[1], expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map"])
def test_reset_classifier(pool: str) -> None:
    model = make(num_classes=5, global_pool=pool).eval()
    tokens = model.forward_features(DICT)
    assert model.get_classifier().out_features == 5
    assert model(DICT).shape == (2, 5)
    model.reset_classifier(9)
    assert model(DICT).shape == (2, 9)
    assert list(model.named_children())[-1][0] == "head"
    assert torch.equal(model.forward_features(DICT), tokens)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(DICT).shape == model.forward_head(tokens, pre_logits=True).shape == (2, DIM)
    if pool in ("token", "avg"):
        torch.testing.assert_close(model(DICT), tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1))
    model.reset_classifier(0, "")
    assert torch.equal(model(DICT), tokens)
    if pool != "map":  # timm: a pooling by attention is chosen when the model is built
        model.reset_classifier(4, "avg")
        torch.testing.assert_close(model(DICT), model.get_classifier()(tokens[:, 1:].mean(1)))


def test_parameter_groups_follow_depth() -> None:
    model = make(num_classes=2)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    of = {name: layers[name] for name, _ in model.named_parameters()}
    first = {name for name, layer in of.items() if layer == 0}
    assert first == {name for name in of if name.startswith(("patch_embed.", "cls_token", "pos_embed"))}
    assert any(".fusion." in name for name in first)
    for i in range(DEPTH):
        own = {name for name, layer in of.items() if layer == i + 1}
        last = {"norm.weight", "norm.bias"} if i == DEPTH - 1 else set()  # timm: with the block before it
        assert own == {name for name in of if name.startswith(f"blocks.{i}.")} | last
    assert {name for name, layer in of.items() if layer == DEPTH + 1} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", FEW)
def test_traced_by_fx(name: str) -> None:
    """As timm traces its own, and as torchvision's feature extractor does by itself: equal numbers, every gradient."""
    model = make(name, num_classes=7)
    own = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    for settings in ({}, own | {"param_shapes_constant": True}):
        ends = [nodes[-1] for nodes in get_graph_node_names(model, tracer_kwargs=settings)]
        traced = create_feature_extractor(
            model, train_return_nodes=ends[:1], eval_return_nodes=ends[1:], tracer_kwargs=settings
        )
        for x in (images(model), images(model).repeat(2, 1, 1, 2)):
            assert torch.equal(traced.eval()(x)[ends[1]], model.eval()(x))
        traced.train()(images(model))[ends[0]].mean().backward()
        assert [part for part, p in model.named_parameters() if p.grad is None] == []
        model.zero_grad()


def test_a_traced_model_still_checks() -> None:
    traced = create_feature_extractor(make("terrafm_tiny_s2l1c").eval(), ["blocks.1"])
    assert traced(torch.randn(2, 12, PX, PX))["blocks.1"].shape == (2, 1 + GRID**2, DIM)
    with pytest.raises(TerraFMError, match=r"s2l1c has 12 channels here .*, got 2"):
        traced(torch.randn(2, 2, PX, PX))
    with pytest.raises(TerraFMError, match=r"traced by torch.fx reads tensors of s2l1c alone"):
        traced(torch.randn(2, 12, PX, PX), modality="s2l2a")


@pytest.mark.parametrize(
    "inputs",
    [
        [{"x": torch.randn(2, 2, *size)} for size in ((32, 32), (48, 32), (64, 80))],
        [{"x": DICT}],
        [{"x": DICT, "sample_idx": {"s1rtc": torch.tensor([0, 1]), "s2l2a": torch.tensor([1, 2])}, "size": 3}],
    ],
    ids=["sizes", "dict", "rows"],
)
def test_compiles_in_one_graph_with_gradients(inputs: list[dict[str, Any]]) -> None:
    """Also for sizes that it has not been compiled for."""
    model = make(num_classes=2).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for given in inputs:
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            run(**given).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for plain, traced in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, traced)


@pytest.mark.parametrize("x", [DICT["s1rtc"], DICT], ids=["tensor", "dict"])
def test_export_is_exact(x: Tensor | dict[str, Tensor]) -> None:
    model = make().eval()
    batch = {0: torch.export.Dim("batch")}
    spec = batch if isinstance(x, Tensor) else dict.fromkeys(x, batch)
    program = torch.export.export(model, (x,), dynamic_shapes=(spec,)).module()
    wide = x[:1] if isinstance(x, Tensor) else {name: image.repeat(3, 1, 1, 1) for name, image in x.items()}
    assert torch.equal(program(x), model(x))
    torch.testing.assert_close(program(wide), model(wide))


def test_a_dynamic_size_is_refused_in_words() -> None:
    side = 16 * torch.export.Dim("rows", min=2, max=20)
    with pytest.raises(TerraFMError, match=r"only the batch may be dynamic.*export once for each\.$"):
        torch.export.export(make().eval(), (DICT["s1rtc"],), dynamic_shapes=({2: side},))


@pytest.mark.parametrize("name", FEW)
def test_a_local_folder_of_timm_round_trips(name: str, tmp_path: Path) -> None:
    model = make(name, num_classes=3)
    save_for_hf(model, tmp_path, model_args={"embed_dim": DIM, "depth": DEPTH, "num_heads": 3})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.pretrained_cfg["first_conv"] == model.pretrained_cfg["first_conv"]
    assert all(torch.equal(p, loaded.state_dict()[part]) for part, p in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_traces() -> None:
    model = make().eval()
    x = torch.randn(3, 2, PX, PX)
    with torch.no_grad():
        traced = torch.jit.trace(model, (DICT["s1rtc"],), check_trace=False)
        torch.testing.assert_close(traced(x), model(x))
