"""The seven wrong ways of feeding the encoder: the projects' inputs, and what is measured of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from benchmarks import feeding
from benchmarks.feeding import L1C, WAYS, Chips, Way
from datasets.scenes import providers
from terrafm_tg.modalities import S2L2A, get_modality
from terrafm_tg.models import TerraFMViT, build_encoder


@pytest.fixture(scope="module")
def model() -> TerraFMViT:
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", depth=2).eval()


@pytest.fixture(scope="module")
def chips() -> Chips:
    generator = torch.Generator().manual_seed(1)
    return Chips(4000 * torch.rand(6, 12, 32, 32, generator=generator), torch.arange(6) // 2)


def test_the_right_feeding_does_not_move_an_embedding(model: TerraFMViT, chips: Chips) -> None:
    found = feeding.moved(model, model, Way("right", ""), chips, None, {})
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.right == found.alike == found.mixed
    x = feeding.embed(model, feeding.trained(chips.x, *2 * [torch.ones(12)]), "s2l2a")
    pairs = [cosine_similarity(x[i], x[j], dim=0) for i in range(6) for j in range(6) if i != j]
    assert found.apart == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)


def test_absent_bands_are_right_at_their_mean(model: TerraFMViT, chips: Chips) -> None:
    way = next(way for way in WAYS if way.bands == feeding.RGB)
    columns = get_modality("s2l2a").band_indices(feeding.RGB)
    alone = build_encoder("terrafm_tiny", depth=2, modality="s2l2a", bands=feeding.RGB).eval()
    alone.load_state_dict(model.state_dict())
    filled = feeding.embed(model, feeding.as_right(way, chips.x), "s2l2a")
    rgb = feeding.embed(alone, feeding.as_right(way, chips.x)[:, columns], "s2l2a")
    torch.testing.assert_close(filled, rgb, atol=1e-5, rtol=1e-4)


def test_what_goes_in() -> None:
    mean, std = torch.full((12,), 1000.0), torch.full((12,), 500.0)
    x = torch.full((1, 12, 16, 16), 3000.0)
    ways = {way.title: way for way in WAYS}
    wide = ways["RGB and NIR over 3000, eight bands 0"].feed(x, mean, std)[0, :, 0, 0]
    np.testing.assert_array_equal(wide, [0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0])
    assert ways["reflectance cut to 0–1, L1C stem"].feed(4 * x, mean, std).unique().tolist() == [1.0]
    assert ways["z-scores of the data set"].feed(x, mean, std).unique().tolist() == [4.0]
    assert ways["L2A through the L1C stem"].stem == L1C
    radar = 10 * torch.arange(1, 201.0).reshape(1, 2, 10, 10).log10()
    expected = np.log1p(np.arange(1, 201.0)) / np.percentile(np.log1p(np.arange(1, 201.0)), 99)
    made = feeding.compressed(radar, mean[:2], std[:2]).flatten().numpy()
    np.testing.assert_allclose(made, expected.clip(0, 1), rtol=1e-4)


def test_real_chips_in_their_own_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip whose georeference says 60 m is not enlarged."""
    monkeypatch.setattr(feeding, "REAL", ("chips",))
    image = providers.optical(120, baseline=300)
    providers.stack(tmp_path / "chips/S2", image, names=list(S2L2A.bands), res=60)
    chips, _ = feeding.real_chips(tmp_path)["s2l2a"]
    assert (chips.x.shape, chips.label.tolist()) == ((4, 12, 48, 48), [0] * 4)
    for place, band in enumerate(S2L2A.bands):
        np.testing.assert_array_equal(chips.x[0, place], image.at_ten(band)[:48, :48])
        np.testing.assert_array_equal(chips.x[2, place], image.at_ten(band)[-48:, :48])


def test_the_table_of_a_run(
    small_world: Path, model: TerraFMViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "encoder.pth")
    figure, numbers = tmp_path / "feeding.png", tmp_path / "feeding.json"
    feeding.measure(str(tmp_path / "encoder.pth"), "terrafm_tiny", str(small_world), None, 40, 48, figure, numbers)
    printed = capsys.readouterr().out
    assert all(way.title in printed for way in WAYS)
    assert figure.stat().st_size > 10_000
    assert numbers.stat().st_size > 1_000
