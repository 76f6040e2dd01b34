"""The names are registered with timm, smp and TorchGeo however and whenever they are imported, and light where not."""

import copy
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torchgeo.models import get_model, get_model_weights, get_weight, list_models

from data import published_weights
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFM_Base_Weights, registration, terrafm_base
from terrafm_tg.models.sizes import NAMES, SIZES, VARIANTS

FULL_NAME = "TerraFM_Base_Weights.SENTINEL12_ALL_DINO"


def python(script: str, *words: str) -> str:
    """Output of a new process."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "script",
    [
        "import timm; from torchgeo.models import get_model, list_models; import terrafm_tg",
        "import terrafm_tg; import timm; from torchgeo.models import get_model, list_models",
    ],
)
def test_any_order_of_imports(script: str) -> None:
    check = (
        "; import importlib.resources as r, sys; assert r.files('timm').joinpath('__init__.py').is_file()"
        "; assert timm.is_model('terrafm_base_rgb') and 'terrafm_base' in list_models()"
        "; assert not any(type(f).__module__.startswith('terrafm') for f in sys.meta_path)"
        "; print(type(get_model('terrafm_tiny', depth=1)).__name__)"
    )
    assert python(script + check) == "TerraFMViT"


def test_the_command_is_light_until_it_has_work() -> None:
    heavy = {"torch", "timm", "torchgeo", "lightning"}
    script = f"import sys; sys.argv = ['/bin/terrafm']; import terrafm_tg.cli; print({heavy} & sys.modules.keys())"
    assert python(script) == "set()"


def test_the_encoder_needs_only_torch_and_timm(tmp_path: Path) -> None:
    """Built, run and loaded from a file where nothing else of the package's dependencies can be imported."""
    torch.save(published_weights.tiny(), tmp_path / "tiny.pth")
    blocked = (
        "torchgeo lightning lightly kornia pandas rasterio geopandas torchmetrics segmentation_models_pytorch "
        "scipy sklearn pyarrow shapely pyproj matplotlib jsonargparse"
    )
    script = f"""
import sys
sys.modules.update(dict.fromkeys({blocked.split()}))
import terrafm_tg, timm, torch
model = timm.create_model("terrafm_tiny", weights=sys.argv[1])
assert model({{"s1rtc": torch.rand(1, 2, 32, 32), "s2l2a": torch.rand(1, 12, 32, 32)}}).shape == (1, 192)
print(timm.create_model("terrafm_nano_rgb", num_classes=3)(torch.rand(1, 3, 32, 32)).shape)
"""
    assert python(script, str(tmp_path / "tiny.pth")) == "torch.Size([1, 3])"


def test_timm_torchgeo_and_smp_know_every_name() -> None:
    assert len(NAMES) == len(set(NAMES)) == 5 * (1 + len(VARIANTS)) == 50
    assert set(NAMES) <= set(list_models())
    assert set(NAMES) <= set(smp.encoders.get_encoder_names())
    assert set(NAMES) == set(timm.list_models("terrafm_*"))
    assert timm.is_model_pretrained("terrafm_base")
    assert not timm.is_model_pretrained("terrafm_large")


def test_both_names_give_the_same_weights() -> None:
    member, short, full = (TerraFM_Base_Weights.SENTINEL12_ALL_DINO, get_weight("terrafm_base"), get_weight(FULL_NAME))
    assert full is member
    assert short == full
    assert hash(short) == hash(full)
    assert short.value is full.value
    assert (str(short), str(full)) == ("terrafm_base", FULL_NAME)
    assert full != get_weight("ViTSmall16_Weights.SENTINEL2_ALL_DINO")
    with pytest.raises(ValueError, match="not a valid WeightsEnum"):
        get_weight("terrafm_large")
    for weight in (short, full):
        assert pickle.loads(pickle.dumps(weight)) is weight
        assert copy.deepcopy(weight) is weight


def test_model_weights() -> None:
    for name in ("terrafm_base", "terrafm_base_s2l1c", "terrafm_base_rgb", terrafm_base):
        assert get_model_weights(name) is TerraFM_Base_Weights
    for size in SIZES.keys() - {"terrafm_base"}:
        assert list(get_model_weights(size)) == []


@pytest.mark.parametrize("name", ["terrafm_large", "terrafm_small", "terrafm_tiny"])
def test_asking_for_weights_that_are_not_published(name: str) -> None:
    for ask in ({"weights": name}, {"weights": True}, {"pretrained": True}):
        with pytest.raises(TerraFMError, match=f"no published weights of {name}: pass your own"):
            get_model(name, **ask)


def test_weights_of_another_size_are_refused_before_a_download() -> None:
    with pytest.raises(TerraFMError, match=f"{FULL_NAME} is of terrafm_base, not of terrafm_large"):
        get_model("terrafm_large", weights=get_weight(FULL_NAME))


def test_meta_says_what_a_user_needs() -> None:
    weights = get_weight("terrafm_base")
    assert weights.url == "https://huggingface.co/MBZUAI/TerraFM/resolve/main/TerraFM-B.pth"
    assert weights.meta["license"] == "MIT"
    assert weights.meta["modalities"] == ("s1rtc", "s2l1c", "s2l2a")
    assert weights.meta["bands"]["s1rtc"] == ("VV", "VH")
    assert weights.meta["in_chans"] == len(weights.meta["bands"]["s2l2a"]) == 12
    assert weights.meta["publication"].endswith("2506.06281")
    transforms = weights.transforms(bands=("B04", "B03", "B02"))
    assert transforms(1000 * torch.rand(2, 3, 264, 120)).shape == (2, 3, 224, 224)
    mean = torch.tensor([1526.9789, 1382.2553, 1135.3391])[:, None, None].expand(3, 224, 224)
    torch.testing.assert_close(transforms(mean), torch.full((3, 224, 224), 0.5))
    assert weights.transforms("s1rtc", size=32)(torch.rand(2, 40, 40)).shape == (2, 32, 32)


@pytest.mark.parametrize("broken", [False, True], ids=["without tables", "cannot be imported"])
def test_a_torchgeo_that_keeps_its_models_in_timms_registry(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """As TorchGeo's pull request 3882 announces: no tables, no ``WeightsEnum``, models by ``timm.create_model``."""
    api = types.ModuleType("torchgeo.models.api")
    models = types.ModuleType("torchgeo.models")
    models.api = api
    monkeypatch.setitem(sys.modules, "torchgeo.models", None if broken else models)
    monkeypatch.setitem(sys.modules, "torchgeo.models.api", api)
    before = dict(vars(api))
    with pytest.warns(UserWarning, match=r"get_weight\(\) do not know TerraFM .*: use timm.create_model"):
        registration.register()
    assert vars(api) == before
    assert timm.create_model("terrafm_nano", depth=1)(torch.rand(1, 2, 32, 32)).shape == (1, 192)
