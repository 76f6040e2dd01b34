"""Table, CSV and figure of the held-out scores."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from terrafm_tg.evaluation.held_out import BASELINE
from terrafm_tg.evaluation.held_out_report import TRAINED, UNTRAINED, sections, table, write_report
from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL
from terrafm_tg.models.embedding import FUSED

SENSORS = ("s1rtc", "s2l1c", "s2l2a")


def _frame(shift: float = 0.0) -> pd.DataFrame:
    """Scores that follow a rule: 0.1, 0.2 ... by row, 0.3 more when trained, no baseline across S1."""
    pairs = [(a, b) for a in SENSORS for b in SENSORS if a != b]
    rows = []
    for encoder, gain in ((UNTRAINED, 0.0), (TRAINED, 0.3), (BASELINE, 0.05)):
        for metric in ("accuracy", "balanced accuracy"):
            rows += [
                (encoder, KNN, name, name, metric, 0.1 * (i + 1) + gain) for i, name in enumerate((*SENSORS, FUSED))
            ]
            rows += [(encoder, CROSS_SENSOR, a, b, metric, 0.1 + gain) for a, b in pairs]
        rows += [(encoder, RETRIEVAL, b, a, "recall@10", 0.2 + gain) for a, b in pairs]
    frame = pd.DataFrame(rows, columns=["encoder", "task", "bank", "query", "metric", "score"])
    frame["score"] += shift
    frame = frame.assign(chance=0.04, n_bank=500, n_query=250)
    radar = (frame.bank == "s1rtc") ^ (frame["query"] == "s1rtc")
    return frame[~((frame.encoder == BASELINE) & radar)]


def _text(frame: pd.DataFrame, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(frame))
    return stream.getvalue().splitlines()


def test_every_row_is_printed_within_80_columns():
    lines = _text(_frame())
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    rows = [line.split() for line in lines if line.startswith("   ")]
    assert ["S1", "0.04", "0.15", "0.10", "0.40", "+0.30"] in rows
    assert ["fused", "0.04", "0.45", "0.40", "0.70", "+0.30"] in rows
    assert ["S1", "→", "L2A", "0.04", "–", "0.10", "0.40", "+0.30"] in rows
    assert ["L1C", "→", "L2A", "0.04", "0.25", "0.20", "0.50", "+0.30"] in rows
    assert sum(row[-1] == "+0.30" for row in rows) == 2 * 4 + 2 * 6 + 6
    assert len({line.index("+0.30") for line in lines if "+0.30" in line}) == 1  # columns line up


def test_several_seeds_become_mean_and_deviation():
    lines = _text(pd.concat([_frame(-0.02), _frame(), _frame(0.02)]))
    assert max(map(len, lines)) <= 80
    assert ["S1", "0.04", "0.15±0.02", "0.10±0.02", "0.40±0.02", "+0.30"] in [line.split() for line in lines]


def test_an_arrow_of_retrieval_points_from_query_to_bank():
    frame = _frame()
    one = (frame.task == RETRIEVAL) & (frame["query"] == "s1rtc") & (frame.bank == "s2l2a") & (frame.encoder == TRAINED)
    frame.loc[one, "score"] = 0.99
    retrieval = next(scores for heading, scores in sections(frame) if "recall" in heading)
    assert retrieval["mean"].loc["S1 → L2A", TRAINED] == 0.99
    assert retrieval.index[0] == "S1 → L1C"


def test_encoders_of_any_name_are_listed_without_a_change():
    frame = _frame().replace({UNTRAINED: "tiny", TRAINED: "base"})
    lines = _text(frame)
    assert any(line.split() == ["chance", "deviation", "tiny", "base"] for line in lines)


def test_csv_and_figure(tmp_path: Path):
    frame = _frame()
    csv, png = write_report(frame, tmp_path / "run")
    pd.testing.assert_frame_equal(pd.read_csv(csv), frame.reset_index(drop=True), rtol=1e-5)
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 500
    blue = (abs(pixels - (0, 114, 178)).sum(axis=2) < 12).sum()
    assert blue > 1000, "the trained encoder's points are drawn"


@pytest.mark.parametrize("task", [KNN, CROSS_SENSOR, RETRIEVAL])
def test_one_task_alone_is_reported(task: str, tmp_path: Path):
    frame = _frame()
    frame = frame[frame.task == task]
    assert _text(frame)
    write_report(frame, tmp_path)
