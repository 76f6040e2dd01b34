"""Copernicus-Bench's frozen protocol: what it trains, by which schedule, and what it reports."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from data.labelled import make_copernicus, make_landslide
from data.tiny_bench import open_splits, tiny_task
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.evaluation.protocols import Context, make_protocol
from terrafm_tg.tasks.finetune.heads import PyramidHead

SPEC = ModelSpec("terrafm_tiny", size=32)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "segmentation"])
def test_settings_are_the_benchmark_s(kind: str) -> None:
    """SGD or, of pixels, AdamW with the rate of the kind of task, which falls as a cosine without warm-up."""
    protocol = make_protocol("copernicus-frozen").of_kind(kind)
    assert (protocol.epochs, protocol.weight_decay, protocol.width, protocol.auxiliary) == (50, 1e-4, 512, 0.4)
    (peak,), steps, low = protocol.rates, 20, protocol.rates[0] / 25 / 1e4
    optimizer, schedule = protocol.optimize(tiny_task({}, kind), peak, [nn.Parameter(torch.ones(1))], steps)
    (group,) = optimizer.param_groups
    dense = kind == "segmentation"
    assert isinstance(optimizer, torch.optim.AdamW if dense else torch.optim.SGD)
    assert group["weight_decay"] == (0.01 if dense else 1e-4)
    assert (peak, protocol.batch_size) == {"multiclass": (0.1, 64), "multilabel": (1, 64)}.get(kind, (1e-3, 16))
    momenta = []
    for i in range(steps):
        assert group["lr"] == pytest.approx(low + (peak - low) * (1 + math.cos(math.pi * (i + 1) / steps)) / 2)
        momenta.append(group["betas"][0] if dense else group["momentum"])
        optimizer.step()
        schedule.step()
    assert momenta == sorted(momenta)
    assert (momenta[0], momenta[-1]) == (pytest.approx(0.85, abs=0.01), 0.95)


def test_the_linear_head_is_batch_norm_without_parameters_and_a_linear_layer(tmp_path: Path) -> None:
    splits = open_splits(make_copernicus(tmp_path, "EuroSAT-S2", n=4), "EuroSAT-S2")
    encoder = load_encoder(SPEC, splits.train.task, splits.train)
    head = make_protocol("copernicus-frozen").head(encoder, splits.train).train()
    x = 5 * torch.randn(16, encoder.dim) + 2
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert head.linear.weight.std() < 0.015
    normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(head(x)[0], head.linear(normed), atol=1e-5)


def test_the_pyramid_has_four_sizes_and_floods_are_a_difference(tmp_path: Path) -> None:
    head = PyramidHead(8, 3, dates=1, width=16, auxiliary_width=4, dropout=0.1).eval()
    maps = [torch.randn(2, 8, 4, 4) for _ in range(4)]
    sizes = [scale(x).shape[-1] for scale, x in zip(head.pyramid, maps, strict=True)]
    assert sizes == [16, 8, 4, 2]
    logits, auxiliary = head(maps)
    assert (logits.shape, auxiliary.shape) == ((2, 3, 16, 16), (2, 3, 4, 4))
    splits = open_splits(make_copernicus(tmp_path, "Flood-S1", n=4), "Flood-S1")
    encoder = load_encoder(SPEC, splits.train.task, splits.train)
    batch = next(iter(DataLoader(splits.train, 4)))
    change = PyramidHead(encoder.dim, 3, 2, 16, 4, 0.1)
    with torch.no_grad():
        found = change.read(encoder, batch)
        both = encoder.pyramid_inputs(batch)
        swapped = change.read(encoder, batch | {"image_s1rtc": batch["image_s1rtc"].flip(1)})
    assert found[0].shape == (4, encoder.dim // 2, 2, 2)
    for x, y, z in zip(found, both, swapped, strict=True):
        before, after = y.chunk(2, dim=1)
        assert torch.allclose(x, after - before, atol=1e-5)
        assert torch.allclose(x, -z, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "metric", "least"),
    [("EuroSAT-S1", "oa", 70), ("BigEarthNet-S2", "map", 40), ("landslide4sense", "miou", 80)],
)
def test_it_learns_what_pixels_tell_apart(tmp_path: Path, name: str, metric: str, least: float) -> None:
    if name == "landslide4sense":
        make_landslide(tmp_path, n=16)
    else:
        make_copernicus(tmp_path, name, n=40)
    protocol = make_protocol("copernicus-frozen", epochs=6, batch_size=4, width=16, auxiliary_width=8)
    sensors = ("terrain",) if metric == "miou" else None
    spec = ModelSpec("pixel-statistics", size=32, sensors=sensors)
    found = protocol.run(spec, open_splits(tmp_path, name), Context(folder=tmp_path / "work"))
    (headline,) = [score for score in found if score.headline]
    (true,) = [score for score in found if score.metric == metric and score.average == "true"]
    assert (headline.metric, headline.average) == (metric, "per-batch")
    assert true.score > least
    assert headline.settings["lr"] == {"oa": 0.1, "map": 1.0, "miou": 1e-3}[metric]
