"""The published encoder: every name, shape and output, from the file that users have to their numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchgeo.models import get_model, get_weight

from data.published_weights import FUSION
from terrafm_tg.models import TerraFMViT


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
