"""Every dataset by every protocol that takes it, through the real command."""

import contextlib
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_bench import QUICK, write_config

from terrafm_tg.cli.main import main
from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.evaluation.bench import SCHEMA
from terrafm_tg.evaluation.protocols import PROTOCOLS, get_protocol

FITTING = {(task.name, name) for task in TASKS.values() for name in PROTOCOLS if task.kind in get_protocol(name).kinds}


pytestmark = pytest.mark.soak  # a minute and a half: every dataset by every protocol


@pytest.fixture(scope="module")
def words(benchmarks: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command."""
    folder = tmp_path_factory.mktemp("matrix")
    return write_config(
        benchmarks,
        folder / "out",
        models=[{"model": "terrafm_nano", "weights": str(weights), "name": "tiny", "size": 32}],
        datasets=["GEO-Bench", "Copernicus-Bench", "Landslide4Sense"],
        protocols=QUICK,
    )


@pytest.fixture(scope="module")
def finished(words: list[str]) -> tuple[str, Path]:
    """What it printed, and its results."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(words)
    return printed.getvalue(), Path(words[1].partition("=")[2]).with_suffix("")


def test_every_dataset_meets_every_protocol_that_takes_it(finished: tuple[str, Path]) -> None:
    printed, out = finished
    table = pd.read_parquet(out / "results.parquet")
    assert {tuple(row) for row in table[["dataset", "protocol"]].to_numpy()} == FITTING
    assert list(table.columns) == SCHEMA.names
    headlines = table[table.headline]
    assert (headlines.groupby(["dataset", "protocol"]).size() == 1).all()
    for row in headlines.itertuples():
        assert row.metric == TASKS[row.dataset].metric, (row.dataset, row.protocol)
    assert table.score[table.headline].between(0, 100).all()
    assert set(table.average) == {"true", "per-batch"}
    assert not (out / "unfinished").exists()
    assert json.loads((out / "skipped.json").read_text()) == []
    assert str(out / "report.html") in printed.replace("\n", "")
    assert all(name in (out / "report.html").read_text() for name in TASKS)
    assert all(name in (out / "report.md").read_text() for name in TASKS)


def test_classes_are_told_apart(finished: tuple[str, Path]) -> None:
    """Three classes of GEO-Bench and ten or more of Copernicus-Bench, by k-NN far above chance."""
    table = pd.read_parquet(finished[1] / "results.parquet")
    scores = table[(table.protocol == "knn") & (table.average == "true") & (table.metric.isin(["accuracy", "oa"]))]
    assert len(scores) == 8
    assert scores.score.min() > 45
    assert scores.score.mean() > 75


def test_the_csv_holds_the_same(finished: tuple[str, Path]) -> None:
    parquet = pd.read_parquet(finished[1] / "results.parquet")
    csv = pd.read_csv(finished[1] / "results.csv", keep_default_na=False, na_values={"score": [""]})
    texts = parquet.per_class.map(lambda found: "" if found is None else json.dumps(list(found)))
    plain = parquet.assign(per_class=texts, confusion=parquet.confusion.fillna(""))
    pd.testing.assert_frame_equal(csv, plain, check_dtype=False)
    counts = json.loads(parquet.confusion.dropna().iloc[0])
    assert len(counts) == len(counts[0]) > 1
    settings = json.loads(parquet.settings[parquet.protocol == "knn"].iloc[0])
    assert settings["k"] == 5
    assert settings["absent"] == "neighbour"


def test_a_second_run_does_nothing_and_gives_the_same(
    words: list[str], finished: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[1]
    before = {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()}
    table = (out / "results.parquet").read_bytes()
    main([*words, "--dry_run"])
    assert f"{len(before)} of {len(before)} units are done" in capsys.readouterr().out
    main(words)
    assert {path: path.stat().st_mtime_ns for path in (out / "units").iterdir()} == before
    assert (out / "results.parquet").read_bytes() == table
