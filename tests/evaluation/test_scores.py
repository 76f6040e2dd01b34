"""Which scores a set of embeddings gives."""

import pandas as pd
import pytest
import torch

from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL, TileFeatures, score
from terrafm_tg.models.embedding import FUSED

SENSORS = ("s1rtc", "s2l1c", "s2l2a")


def world(n: int, seed: int, widths: dict[str, int] | None = None, gap: float = 0.0) -> dict[str, TileFeatures]:
    """Tiles of four classes that all sensors see with their own noise; `gap` moves each sensor aside."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=generator)
    place = 3 * torch.eye(4, 16)[label] + torch.randn(n, 16, generator=generator)
    result = {}
    for i, name in enumerate((*SENSORS, FUSED)):
        x = place + 0.3 * torch.randn(n, 16, generator=generator) + gap * torch.eye(16)[i + 8]
        result[name] = TileFeatures(x[:, : (widths or {}).get(name, 16)], torch.arange(n), label)
    return result


def _frame(*args: object, **kwargs: object) -> pd.DataFrame:
    return pd.DataFrame(score(*args, **kwargs))


def test_every_sensor_every_ordered_pair_every_task():
    frame = _frame(world(200, 0), world(100, 1))
    pairs = {(a, b) for a in SENSORS for b in SENSORS if a != b}
    tasks = frame.groupby("task")[["bank", "query"]].apply(lambda part: set(zip(part.bank, part["query"], strict=True)))
    assert tasks[KNN] == {(name, name) for name in (*SENSORS, FUSED)}
    assert tasks[CROSS_SENSOR] == tasks[RETRIEVAL] == pairs
    assert frame.score.between(0, 1).all()
    assert (frame.score > frame.chance + 0.2).all(), "sensors that see the same place must agree"
    assert frame[frame.task == RETRIEVAL].chance.unique().tolist() == [0.1]
    assert len(frame) == 2 * 4 + 2 * 6 + 6


def test_embeddings_of_different_width_are_not_compared():
    widths = {"s1rtc": 4, "s2l1c": 12, "s2l2a": 12}
    frame = _frame(world(200, 0, widths), world(100, 1, widths))
    across = frame[frame.task != KNN]
    assert set(zip(across.bank, across["query"], strict=True)) == {("s2l1c", "s2l2a"), ("s2l2a", "s2l1c")}


def test_unknown_land_cover_votes_nowhere_and_counts_nowhere():
    bank, query = world(200, 0), world(100, 1)
    half = torch.arange(100) % 2 == 0
    partly = {name: t._replace(land_cover=t.land_cover.where(half, -1)) for name, t in query.items()}
    expected = _frame(bank, {name: t.select(half) for name, t in query.items()})
    got = _frame(bank, partly)
    pd.testing.assert_frame_equal(got[got.task != RETRIEVAL], expected[expected.task != RETRIEVAL])
    nowhere = {name: t._replace(land_cover=torch.full_like(t.land_cover, -1)) for name, t in query.items()}
    assert set(_frame(bank, nowhere).task) == {RETRIEVAL}


def test_a_gap_between_sensors_shows_in_cross_sensor_rows_only():
    near, far = _frame(world(200, 0), world(100, 1)), _frame(world(200, 0, gap=50), world(100, 1, gap=50))
    means = [frame[frame.metric == "accuracy"].groupby("task").score.mean() for frame in (near, far)]
    assert means[1][KNN] == pytest.approx(means[0][KNN], abs=0.1)
    assert means[1][CROSS_SENSOR] < means[0][CROSS_SENSOR] - 0.1


def test_a_sensor_without_tiles_and_pairs_without_common_tile_give_no_row():
    bank, query = world(50, 0), world(40, 1)
    del query["s1rtc"]
    query["s2l1c"] = query["s2l1c"]._replace(row=torch.arange(1000, 1040))
    frame = _frame(bank, query)
    assert "s1rtc" not in set(frame["query"])
    assert RETRIEVAL not in set(frame.task)
