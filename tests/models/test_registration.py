"""The names are registered with timm and TorchGeo however and whenever they are imported."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
from torchgeo.models import api, get_model, get_model_weights, get_weight, list_models

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFM_Base_Weights, terrafm_base
from terrafm_tg.models.sizes import BUILDERS
from terrafm_tg.models.weights import WEIGHTS

FULL_NAME = "TerraFM_Base_Weights.SENTINEL12_ALL_DINO"


@pytest.mark.parametrize(
    "script",
    [
        "import timm; from torchgeo.models import get_model, list_models; import terrafm_tg",
        # A probe for an optional library, as many packages make it, must not use up the registration.
        "import terrafm_tg, importlib.util as u; u.find_spec('timm'); u.find_spec('torchgeo.models'); "
        "import timm; from torchgeo.models import get_model, list_models",
    ],
)
def test_any_order_of_imports(script: str) -> None:
    check = (
        "; import importlib.resources as r; assert r.files('timm').joinpath('__init__.py').is_file()"
        "; assert timm.is_model('terrafm_base_rgb') and 'terrafm_base' in list_models()"
        "; print(type(get_model('terrafm_tiny', depth=1)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script + check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "TerraFMViT"), done.stderr


def test_importing_the_package_is_light() -> None:
    heavy = {"torch", "timm", "torchgeo", "lightning"}
    script = f"import sys, terrafm_tg; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_timm_and_torchgeo_know_every_name() -> None:
    assert len(BUILDERS) == 20
    assert set(BUILDERS) <= set(list_models())
    assert set(BUILDERS) == set(timm.list_models("terrafm_*"))
    assert timm.is_model_pretrained("terrafm_base")
    assert not timm.is_model_pretrained("terrafm_large")


def test_both_names_give_the_identical_member() -> None:
    weights = get_weight("terrafm_base")
    assert weights is TerraFM_Base_Weights.SENTINEL12_ALL_DINO
    assert weights is get_weight(FULL_NAME)
    assert str(weights) == FULL_NAME
    assert str(weights) == "terrafm_base"
    assert str(weights) != "terrafm_large"
    assert hash(str(weights)) == hash(FULL_NAME)
    with pytest.raises(ValueError, match="not a valid WeightsEnum"):
        get_weight("terrafm_large")


def test_model_weights() -> None:
    for name in ("terrafm_base", "terrafm_base_s2l1c", "terrafm_base_rgb", terrafm_base):
        assert get_model_weights(name) is TerraFM_Base_Weights
    assert list(get_model_weights("terrafm_large")) == []
    assert set(map(id, WEIGHTS.values())) <= set(map(id, api._model_weights.values()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("terrafm_large", "announced"), ("terrafm_small", "measured"), ("terrafm_tiny", "ours")],
)
def test_asking_for_weights_that_are_not_published(name: str, reason: str) -> None:
    for ask in ({"weights": name}, {"weights": True}, {"pretrained": True}):
        with pytest.raises(TerraFMError, match=f"no published weights of {name} .*{reason}"):
            get_model(name, **ask)


def test_weights_of_another_size_are_refused_before_a_download() -> None:
    with pytest.raises(TerraFMError, match=f"{FULL_NAME} is of terrafm_base, not of terrafm_large"):
        get_model("terrafm_large", weights=get_weight("terrafm_base"))


def test_weights_pickle_and_copy() -> None:
    weights = get_weight("terrafm_base")
    assert pickle.loads(pickle.dumps(weights)) is weights
    assert copy.deepcopy(weights) is weights


def test_meta_says_what_a_user_needs() -> None:
    weights = get_weight("terrafm_base")
    assert weights.url == "https://huggingface.co/MBZUAI/TerraFM/resolve/main/TerraFM-B.pth"
    assert weights.meta["license"] == "MIT"
    assert weights.meta["modalities"] == ("s1rtc", "s2l1c", "s2l2a")
    assert weights.meta["bands"]["s1rtc"] == ("VV", "VH")
    assert weights.meta["in_chans"] == len(weights.meta["bands"]["s2l2a"]) == 12
    assert weights.meta["publication"].endswith("2506.06281")
