"""k-NN, linear probe and logistic regression: against plain implementations, and on data that can be told apart."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from data.tiny_bench import tiny_data
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError
from terrafm_tg.evaluation.protocols import PROTOCOLS, Context, Splits, get_protocol, make_protocol
from terrafm_tg.evaluation.protocols.embedded import Labelled
from terrafm_tg.evaluation.protocols.linear_probe import LinearProbe
from terrafm_tg.evaluation.protocols.logistic import fit_logistic
from terrafm_tg.modalities import S2L2A

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
    [("knn", {"k": 5}), ("linear-probe", {"epochs": 20, "batch": 8, "rates": [1e-6, 0.1]}), ("logistic", {"count": 6})],
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
        assert headline.settings["lr_at_edge"]
    if name == "logistic":
        assert headline.settings["C"] in protocol.values()
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
def test_probes_of_all_rates_are_those_trained_alone(kind: str) -> None:
    """Against BatchNorm1d, Linear and AdamW of torch, one rate at a time."""
    train, val = labelled(kind), labelled(kind, seed=1)
    protocol = LinearProbe(rates=(1e-3, 1e-2, 0.3), epochs=6, batch=16)
    together = protocol.fit(train, 3, seed=4)(val.x)
    torch.manual_seed(4)
    linear = nn.Linear(8, 3)
    loss = nn.BCEWithLogitsLoss() if kind == "multilabel" else nn.CrossEntropyLoss()
    y = train.y.float() if kind == "multilabel" else train.y
    for number, rate in enumerate(protocol.rates):
        probe = nn.Sequential(nn.BatchNorm1d(8), copy.deepcopy(linear))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(4)
        for epoch in range(6):
            for step, rows in enumerate(torch.randperm(60, generator=generator).tensor_split(4)):
                optimizer.param_groups[0]["lr"] = protocol.rate_at(epoch + step / 4, rate)
                optimizer.zero_grad()
                loss(probe(train.x[rows]), y[rows]).backward()
                optimizer.step()
        torch.testing.assert_close(together[number], probe.eval()(val.x), rtol=1e-3, atol=1e-3)


def test_the_rate_rises_for_a_tenth_and_falls_as_a_cosine() -> None:
    protocol = LinearProbe()
    assert len(protocol.rates) == 16
    assert (protocol.rates[0], protocol.rates[-1]) == (1e-4, 0.8)
    assert [protocol.rate_at(epoch, 0.8) for epoch in (0, 2.5, 5)] == [0, 0.4, 0.8]
    assert protocol.rate_at(27.5, 0.8) == pytest.approx((0.8 + 1e-5) / 2)
    assert protocol.rate_at(50, 0.8) == pytest.approx(1e-5)


@given(st.sampled_from(KINDS), st.integers(10, 80), st.floats(-3, 2), st.integers(0, 1000))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_logistic_regression_equals_scikit_learns(kind: str, n: int, exponent: float, seed: int) -> None:
    train = labelled(kind, n, seed=seed)
    train.y[:2] = torch.tensor([0, 1]) if kind == "multiclass" else torch.tensor([[0, 0, 0], [1, 1, 1]])
    if kind == "multiclass" and seed % 3 == 0:  # two classes are another objective in scikit-learn
        train.y[train.y == 2] = 1
    query = labelled(kind, 30, seed=seed + 1).x
    classes = int(train.y.max()) + 1 if kind == "multiclass" else 3
    logits = fit_logistic(train, classes, 10**exponent, tolerance=1e-8)(query)
    columns = [train.y] if kind == "multiclass" else train.y.unbind(1)
    for label, y in enumerate(columns):
        if len(y.unique()) < classes and kind == "multiclass":
            return  # scikit-learn knows no class that does not occur
        oracle = LogisticRegression(C=10**exponent, tol=1e-8, max_iter=10_000).fit(train.x.double(), y)
        expected = oracle.predict_proba(query.double())
        if kind == "multiclass":
            found = logits.softmax(1).numpy()
        else:
            found = torch.stack([1 - logits[:, label].sigmoid(), logits[:, label].sigmoid()], dim=1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_start_elsewhere_ends_at_the_same_place() -> None:
    train = labelled("multiclass")
    cold = fit_logistic(train, 3, 10.0, tolerance=1e-9)
    warm = fit_logistic(train, 3, 10.0, fit_logistic(train, 3, 0.01), tolerance=1e-9)
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-4, atol=1e-5)


def test_masks_are_not_for_embeddings(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2L2A.bands}, "segmentation")
    with pytest.raises(UnsupportedTaskError, match="takes multiclass and multilabel, and tiny-segmentation is of"):
        make_protocol("knn").run(ModelSpec("pixel-statistics"), Splits(data, data, data), Context())


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
        ("linear-probe", {"rates": []}, "`rates` of the protocol linear-probe is 0.0"),
        ("linear-probe", {"warmup": 1}, "`warmup` is a share of the epochs, got 1"),
        ("logistic", {"count": 0}, "`count` of the protocol logistic is 0"),
    ],
)
def test_wrong_settings_are_one_sentence(name: str, settings: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message):
        make_protocol(name, **settings)
