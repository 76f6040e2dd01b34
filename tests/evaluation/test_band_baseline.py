"""Band statistics against NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from terrafm_tg.evaluation.band_statistics import band_statistics, baseline_output, standardize
from terrafm_tg.evaluation.scores import TileFeatures
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.models.embedding import FUSED


@pytest.fixture
def batch(make_batch: Callable[..., dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tiles with missing pixels; S1 for tiles 1 and 3 only."""
    rng = np.random.default_rng(0)
    batch = make_batch([0, 1, 2, 3], tile=12, without_s1=(0, 2))
    for key, x in batch.items():
        if key.startswith("image"):
            x.numpy()[rng.random(x.shape) < 0.2] = -32768 if "s1rtc" in key else 0
    batch["image_s1rtc_10m"][0, 0, 0, 0] = np.nan
    return batch | {"row": torch.arange(4) + 10, "land_cover": torch.arange(4)}


def _oracle(stack: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Means then deviations of (n, C, H, W) over valid pixels."""
    masked = np.ma.array(stack.astype(np.float64), mask=~valid)
    return np.concatenate([masked.mean((2, 3)).filled(np.nan), masked.std((2, 3)).filled(np.nan)], axis=1)


def test_optics_in_stem_order_without_nodata(batch):
    got = band_statistics(batch, S2L2A).double().numpy()
    for resolution, bands in S2L2A.native.items():
        x = batch[S2L2A.native_key(resolution)].numpy()
        expected = _oracle(x, x > 0)
        for i, band in enumerate(bands):
            channel = S2L2A.bands.index(band)
            np.testing.assert_allclose(got[:, channel], expected[:, i], rtol=1e-5)
            np.testing.assert_allclose(got[:, 12 + channel], expected[:, len(bands) + i], rtol=1e-5)


def test_radar_in_decibels_without_nodata(batch):
    power = batch["image_s1rtc_10m"].numpy()
    valid = np.isfinite(power) & (power > 0)
    decibels = 10 * np.log10(np.where(valid, power, 1))
    np.testing.assert_allclose(band_statistics(batch, S1RTC), _oracle(decibels, valid), rtol=1e-4)


def test_a_band_without_a_valid_pixel_is_not_a_number_and_then_average(batch):
    batch["image_s2l2a_60m"][2] = 0
    statistics = band_statistics(batch, S2L2A)
    missing = [i + part for part in (0, 12) for i in S2L2A.band_indices(["B01", "B09"])]
    assert statistics.isnan().nonzero().tolist() == [[2, i] for i in sorted(missing)]
    tiles = {"s2l2a": TileFeatures(statistics, batch["row"], batch["land_cover"])}
    z = standardize(tiles, tiles)["s2l2a"].x
    assert torch.equal(z[2, missing], torch.zeros(len(missing)))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(24), atol=1e-4, rtol=0)


def test_fused_stands_side_by_side_and_knows_what_is_missing(batch):
    output = baseline_output(batch, list(MODALITIES.values()))
    fused = output["embeddings"][FUSED]
    assert fused.shape == (4, 2 * (2 + 12 + 12))
    assert fused[[0, 2], :4].isnan().all()
    torch.testing.assert_close(fused[[1, 3], :4], output["embeddings"]["s1rtc"])
    torch.testing.assert_close(fused[:, 28:], band_statistics(batch, S2L2A))
    assert output["sample_idx"][FUSED].tolist() == [0, 1, 2, 3]


def test_queries_are_standardized_by_the_bank():
    row = torch.arange(100)
    bank = {"a": TileFeatures(7 + 3 * torch.randn(100, 4), row, row)}
    query = {"a": TileFeatures(torch.full((1, 4), 10.0), row[:1], row[:1]), "b": bank["a"]}
    z = standardize(query, bank)
    expected = (10 - bank["a"].x.numpy().mean(0)) / bank["a"].x.numpy().std(0)
    np.testing.assert_allclose(z["a"].x[0], expected, rtol=1e-5)
    assert "b" not in z, "a sensor without a bank has no scale"
