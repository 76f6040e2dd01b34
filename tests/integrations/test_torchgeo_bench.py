"""TerraFM in torchgeo-bench: its own evaluation runs on it, and bands reach the stems that they belong to."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torchgeo_bench.datasets import BENV2, EuroSAT, KuroSiwo, MEurosat, MForestnet, MSo2Sat, TreeSatAI
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.main import main
from torchgeo_bench.segmentation_probe import SegmentationProbe

from data.geobench.data import make_geobench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.integrations.torchgeo_bench import TerraFMBench, sentinel_band
from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A
from terrafm_tg.transforms import Normalize

CONF = Path(__file__).resolve().parents[2] / "conf/torchgeo_bench"


def tiny(bands: list[BandSpec], normalization: str = "model_native", **settings: object) -> TerraFMBench:
    torch.manual_seed(0)
    return TerraFMBench(bands, normalization, "terrafm_tiny", None, depth=2, **settings).eval()


def test_its_own_evaluation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-NN and logistic regression by torchgeo-bench's own command, reading its own way, beat chance by far."""
    make_geobench(tmp_path / "data", "m-eurosat", 40, 20, 20)
    monkeypatch.chdir(tmp_path)
    words = [
        "torchgeo-bench", f"--config-dir={CONF}", "model=terrafm_base", "model.model=terrafm_tiny",
        "model.weights=null", "+model.depth=2", "device=cpu", "dataset.names=[m-eurosat]", "dataset.bands=all",
        "dataset.image_size=32", "dataset.num_workers=0", "eval.bootstrap=10", "eval.c_range=[-1,1,2]",
        "output=scores.csv",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    main()
    scores = pd.read_csv("scores.csv").set_index("method")
    assert set(scores.index) == {"knn5", "linear"}
    assert (scores.name == "terrafm_base").all()
    assert (scores.n_train == 40).all()
    assert (scores.feature_dim == 192).all()
    assert scores.metric_value.min() > 0.5  # of ten classes


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (MEurosat, {"s2l1c": S2L1C.bands}),
        (EuroSAT, {"s2l1c": (*S2L1C.bands[:8], "B09", "B11", "B12", "B8A")}),
        (MForestnet, {"s2l2a": ("B02", "B03", "B04", "B8A", "B11", "B12")}),
        (BENV2, {"s2l2a": S2L2A.bands, "s1rtc": ("VV", "VH")}),
        (KuroSiwo, {"s1rtc": ("VV", "VH")}),
        (
            MSo2Sat,
            {"s2l2a": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"), "s1rtc": ("VH", "VV")},
        ),
    ],
)
def test_bands_of_its_datasets(dataset: type, names: dict[str, tuple[str, ...]]) -> None:
    """By wavelength or name, without cirrus, height and the parts of complex radar."""
    bands = dataset.bands
    model = tiny(bands, "bandspec_zscore")
    assert {name: set(some) for name, some in model.names.items()} == {k: set(v) for k, v in names.items()}
    for name, some in model.names.items():
        for band, at in zip(some, model.sources[name], strict=True):
            assert sentinel_band(bands[at]) == band
    x = torch.stack([torch.full((32, 32), spec.mean) for spec in bands])
    found = model.normalize_inputs(x[None])
    torch.testing.assert_close(found, torch.full_like(found, 0.5), atol=1e-3, rtol=0)
    assert model(x[None]).shape == (1, 192)


def test_native_normalisation_is_the_encoders() -> None:
    """Digital numbers, reflectance and linear power all become what `Normalize` makes of the modality's unit."""
    generator = torch.Generator().manual_seed(0)
    numbers = 3000 * torch.rand(2, 12, 32, 32, generator=generator)
    decibels = -20 * torch.rand(2, 2, 32, 32, generator=generator) - 1
    optical = [spec for spec in BENV2.bands if spec.sensor == "s2"]
    radar = [BandSpec("sar", name, name, 0.1, 0.1, 0, 500) for name in ("vv", "vh")]
    model = tiny([*optical, *radar])
    x = torch.cat([numbers, 10 ** (decibels / 10)], dim=1)
    images = {
        "s2l2a": Normalize("s2l2a", [sentinel_band(spec) for spec in optical])(numbers),
        "s1rtc": Normalize("s1rtc", S1RTC.bands)(decibels),
    }
    torch.testing.assert_close(model(x), model.backbone(images), atol=1e-4, rtol=1e-4)
    small = [BandSpec("s2", s.name, s.source_name, 0.1, 0.1, 0, 2.8, s.wavelength_um) for s in optical]
    again = tiny(small)(numbers / 10_000)
    torch.testing.assert_close(again, model.backbone({"s2l2a": images["s2l2a"]}), atol=1e-4, rtol=1e-4)


def test_the_order_of_bands_does_not_matter() -> None:
    x = 3000 * torch.rand(2, 13, 48, 48, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    first = tiny(MEurosat.bands)(x)
    second = tiny([MEurosat.bands[at] for at in order])(x[:, order])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    other = x.clone()
    other[:, 3] += 500
    assert not torch.allclose(first, tiny(MEurosat.bands)(other), atol=1e-3)


def test_missing_pixels_sizes_and_pooling() -> None:
    x = 3000 * torch.rand(2, 13, 40, 40, generator=torch.Generator().manual_seed(0))
    x[0, :, :5] = torch.nan
    token, mean = tiny(MEurosat.bands)(x), tiny(MEurosat.bands, pooling="mean")(x)
    assert torch.isfinite(token).all()
    assert torch.isfinite(mean).all()
    assert not torch.allclose(token, mean, atol=1e-3)


def test_its_segmentation_probe_finds_the_blocks() -> None:
    probe = SegmentationProbe(tiny(MEurosat.bands), ["blocks.1", "blocks.0"], num_classes=3)
    assert probe(torch.rand(1, 13, 32, 32)).shape == (1, 3, 32, 32)
    assert probe.channels_list == [192, 192]


def test_pictures_without_a_unit_take_the_datasets_statistics() -> None:
    """TreeSatAI's radar is stretched to 16 bits, Landsat of ForestNet to 8."""
    radar = [spec for spec in TreeSatAI.bands if spec.name in ("vv", "vh")]
    for bands in (radar, MForestnet.bands):
        x = torch.tensor([spec.mean for spec in bands])[None, :, None, None].expand(1, -1, 32, 32)
        found = tiny(bands).normalize_inputs(x)
        torch.testing.assert_close(found, torch.full_like(found, 0.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"pooling": "max"}, "'max'"), ({"modality": "s3"}, "'s3'"), ({"bands": KuroSiwo.bands[2:]}, "dem dem")],
)
def test_a_wrong_setting_is_one_sentence(settings: dict, said: str) -> None:
    with pytest.raises(TerraFMError, match=said):
        tiny(**({"bands": MEurosat.bands} | settings))
