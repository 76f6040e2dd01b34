"""k-NN, linear probe and logistic regression on data that can be told apart; impossible settings of all protocols."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.tiny_bench import tiny_data, tiny_task
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError
from terrafm_tg.evaluation.protocols import PROTOCOLS, Context, Splits, get_protocol, make_protocol
from terrafm_tg.evaluation.protocols.embedded import Labelled
from terrafm_tg.evaluation.protocols.logistic import fit_logistic
from terrafm_tg.evaluation.protocols.probes import LinearProbe
from terrafm_tg.evaluation.protocols.sweep import seeded
from terrafm_tg.modalities import S2L2A
from terrafm_tg.tasks.finetune.heads import LinearHead

KINDS = ("multiclass", "multilabel")


def labelled(kind: str, n: int = 60, dim: int = 8, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    if kind == "multilabel":
        y = torch.randint(2, (n, 3), generator=generator)
    shown = (nn.functional.one_hot(y, 3) if kind == "multiclass" else y).float()
    return Labelled(shown @ torch.randn(3, dim, generator=generator) + torch.randn(n, dim, generator=generator), y)


@pytest.fixture(scope="module", params=KINDS)
def splits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    parts = []
    for seed, split in enumerate(("train", "val", "test")):
        root = tmp_path_factory.mktemp(split)
        parts.append(tiny_data(root, {"s2l2a": S2L2A.bands}, request.param, count=24, seed=seed, split=split))
    return Splits(*parts)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("knn", {"k": 5}),
        ("linear-probe", {"epochs": 20, "batch_size": 8, "rates": [1e-6, 0.1]}),
        ("logistic", {"count": 6}),
    ],
)
def test_classes_that_differ_are_told_apart(splits: Splits, tmp_path: Path, name: str, chosen: dict) -> None:
    protocol = make_protocol(name, **chosen)
    context = Context(cache=tmp_path, batch_size=8)
    scores = protocol.run(ModelSpec("pixel-statistics"), splits, context)
    (headline,) = [score for score in scores if score.headline]
    assert headline.metric == splits.train.task.metric
    assert headline.score > 95
    assert {score.average for score in scores} == {"true", "per-batch"}
    if name == "linear-probe":
        assert headline.settings["lr"] == 0.1  # the other rate learns nothing
        assert headline.settings["tried"]["0.1"] > headline.settings["tried"]["1e-06"]
    if name == "logistic":
        assert headline.settings["C"] in np.logspace(-6, 4, 6)
    again = protocol.run(ModelSpec("pixel-statistics"), splits, context)
    assert again == scores
    assert len(list(tmp_path.iterdir())) == (2 if name == "knn" else 3)


def test_the_mean_of_the_patches_is_another_row(splits: Splits, tmp_path: Path) -> None:
    context = Context(cache=tmp_path)
    poolings = [
        make_protocol("logistic", count=1, start=0).run(ModelSpec("terrafm_tiny", pooling=p, size=16), splits, context)
        for p in ("token", "mean")
    ]
    assert len(list(tmp_path.iterdir())) == 3  # one forward of each split gave both
    assert all(score.score >= 0 for scores in poolings for score in scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_probe_is_trained_as_by_galileo(kind: str, tmp_path: Path) -> None:
    """Against BatchNorm1d, Linear and AdamW of torch in Galileo's loop, one rate at a time."""
    train, val = labelled(kind), labelled(kind, seed=1)
    task, context = tiny_task({}, kind), Context(seed=4)
    protocol = LinearProbe(rates=(1e-3, 1e-2, 0.3), epochs=20, batch_size=16)
    with seeded(context):
        start = LinearHead(8, 3, norm=nn.BatchNorm1d(8))
    with seeded(context):
        heads = protocol.fit(task, start, train, context)
    loss = nn.BCEWithLogitsLoss() if kind == "multilabel" else nn.CrossEntropyLoss()
    y = train.y.float() if kind == "multilabel" else train.y
    for rate in protocol.rates:
        torch.manual_seed(4)
        probe = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(4)
        for epoch in range(20):
            for step, chosen in enumerate(torch.randperm(60, generator=generator).tensor_split(4)):
                done = epoch + step / 4  # a warm-up of two epochs
                falling = 1e-5 + (rate - 1e-5) * (1 + math.cos(math.pi * (done - 2) / 18)) / 2
                optimizer.param_groups[0]["lr"] = rate * done / 2 if done < 2 else falling
                optimizer.zero_grad()
                loss(probe(train.x[chosen]), y[chosen]).backward()
                optimizer.step()
        torch.testing.assert_close(heads[rate].eval()(val.x)[0], probe.eval()(val.x), rtol=1e-3, atol=1e-3)


def test_a_class_that_does_not_occur_is_never_predicted() -> None:
    """scikit-learn knows the classes of its samples alone."""
    train, query = labelled("multiclass"), labelled("multiclass", seed=1).x
    for there in ([0, 2], [1]):
        some = torch.isin(train.y, torch.tensor(there))
        logits = fit_logistic(Labelled(train.x[some], train.y[some]), 3, 1.0, query)
        assert logits.argmax(1).unique().tolist() == there
    labels = labelled("multilabel")
    labels.y[:, 0], labels.y[:, 1] = 0, 1
    logits = fit_logistic(labels, 3, 1.0, query)
    assert (logits[:, 0] < 0).all()
    assert (logits[:, 1] > 0).all()
    assert len((logits[:, 2] > 0).unique()) == 2


def test_masks_are_not_for_embeddings(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2L2A.bands}, "segmentation")
    with pytest.raises(UnsupportedTaskError, match="takes multiclass and multilabel, and tiny-segmentation is of"):
        make_protocol("knn").run(ModelSpec("pixel-statistics"), Splits(data, data, data), Context())


@pytest.mark.parametrize(
    ("name", "rates", "lowest", "highest", "settings"),
    [
        ("linear-probe", 16, 1e-4, 0.8, {"epochs": 50, "batch_size": 128, "min_lr": 1e-5, "warmup": 0.1}),
        ("segmentation-probe", 16, 1e-4, 0.8, {"epochs": 50, "batch_size": 128, "min_lr": 1e-5, "warmup": 0.1}),
        ("finetune", 9, 1e-5, 6e-3, {"epochs": 50, "effective_batch": 256, "min_lr": 1e-6, "clip": 1.0}),
    ],
)
def test_settings_are_galileo_s(name: str, rates: int, lowest: float, highest: float, settings: dict) -> None:
    protocol = make_protocol(name)
    assert (len(protocol.rates), min(protocol.rates), max(protocol.rates)) == (rates, lowest, highest)
    assert settings.items() <= protocol.settings.items()


def test_every_protocol_is_where_the_table_says() -> None:
    for name in PROTOCOLS:
        assert get_protocol(name).name == name


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nearest", {}, "Protocol 'nearest' is unknown: use one of knn, linear-probe"),
        ("knn", {"n": 3}, "Protocol 'knn' has no setting 'n': it has k, metric"),
        ("knn", {"k": 0}, "`k` of the protocol knn is 0: give a number above 0"),
        ("knn", {"metric": "l1"}, "`metric` of the protocol knn is 'l1': use one of cosine, l2"),
        ("linear-probe", {"rates": []}, "`rates` is \\[\\]: give one learning rate above 0"),
        ("linear-probe", {"warmup": 1}, "`warmup` is a share of the epochs, got 1"),
        ("linear-probe", {"epochs": 0}, "`epochs` of the protocol linear-probe is 0"),
        ("copernicus-frozen", {"rates": [-1]}, "give one learning rate above 0"),
        ("segmentation-probe", {"rates": ["fast"]}, "a list of numbers above 0"),
        ("segmentation-probe", {"dtype": "float8"}, "use float16 or float32"),
        ("segmentation-probe", {"tile": -1}, "`tile` is -1"),
        ("finetune", {"batch_size": 3, "effective_batch": 8}, "`batch_size` is 3 and `effective_batch` 8: .* set a"),
        ("logistic", {"count": 0}, "`count` of the protocol logistic is 0"),
    ],
)
def test_wrong_settings_are_one_sentence(name: str, settings: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message):
        make_protocol(name, **settings)
