"""The report of `terrafm bench`: every number is there, from the table alone, in a page that needs nothing else."""

import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluation.bench_results import DATASETS, MODELS, results
from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.bench import SCHEMA
from terrafm_tg.evaluation.report import counterparts, published_scores, write_bench_report
from terrafm_tg.evaluation.report.lines import entries, score_lines
from terrafm_tg.evaluation.report.page import fraction_curves, with_published
from terrafm_tg.evaluation.report.published import highest
from terrafm_tg.evaluation.report.tables import difference_cell
from terrafm_tg.evaluation.scores import estimate


def _read(path: Path) -> Element:
    """The page's elements, read as XML once those that HTML leaves open are closed; fails where tags do not nest."""
    return fromstring(re.sub(r"<((?:meta|link|br)\b[^>]*?)/?>", r"<\1/>", path.read_text()))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return results()


@pytest.fixture(scope="module")
def lines(table: pd.DataFrame) -> pd.DataFrame:
    return score_lines(entries(table))


@pytest.fixture(scope="module")
def report(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bench_report(table, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report: Path) -> Element:
    return _read(report)


def test_the_page_stands_alone_and_can_be_read_aloud(page: Element):
    assert not {"script", "img", "iframe"} & {element.tag for element in page.iter()}
    assert [link.get("href") for link in page.iter("link")] == ["data:,"]
    assert all("src" not in element.attrib for element in page.iter())
    assert not any("url(" in text or "@import" in text for text in page.itertext())
    places = {f"#{element.get('id')}" for element in page.iter() if "id" in element.attrib}
    assert {link.get("href") for link in page.iter("a")} <= places
    assert all("scope" in cell.attrib for cell in page.iter("th"))
    charts = [element for element in page.iter() if element.get("role") == "img"]
    assert all("aria-label" in chart.attrib for chart in charts)
    assert len(charts) > 100


def test_every_score_is_in_both_reports(table: pd.DataFrame, report: Path, page: Element):
    words = set(" ".join(page.itertext()).split())
    markdown = set(re.split(r"[\s|()]+", report.with_suffix(".md").read_text()))
    for score in table.score:
        assert f"{score:.2f}" in words
        assert f"{score:.2f}" in markdown


def test_every_published_score_of_what_was_run_is_there(table: pd.DataFrame, page: Element):
    ran = set(zip(table.dataset, table.protocol.str.removeprefix("copernicus-"), table.train_fraction, strict=True))
    theirs = [p for p in published_scores() if (p.dataset, p.protocol, p.train_fraction) in ran]
    assert len(theirs) > 150
    text = set(page.itertext())
    assert all(f"{score.score:.1f}" in text and score.label in text for score in theirs)


def test_published_scores_are_the_file():
    scores = published_scores()
    assert len(scores) == 250
    assert {p.benchmark for p in scores} == {"GEO-Bench", "Copernicus-Bench", "Landslide4Sense"}
    found = [p.score for p in scores if p[:5] == ("GEO-Bench", "knn", 0.01, "m-eurosat", "accuracy")]
    assert max(found) == 62.1
    assert len(found) == 14


@pytest.mark.parametrize(
    ("model", "weights", "labels"),
    [
        ("terrafm_base", "default", {"TerraFM, ViT-Base", "TerraFM, ViT-B/16", "TerraFM (120M)"}),
        ("terrafm_large", "large.ckpt", {"TerraFM, ViT-Large"}),
        ("terrafm_base", None, set()),
        ("torchgeo/dofa_base_patch16_224", "DOFABase16_Weights.DOFA_MAE", {"DOFA, ViT-Base", "DOFA, ViT-B/16"}),
        ("torchgeo/croma_base", "default", {"CROMA, ViT-Base", "CROMA, ViT-B/8"}),
        (
            "torchgeo/vit_small_patch14_dinov2",
            "ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON",
            {"SoftCon, ViT-Small"},
        ),
        ("timm/vit_base_patch16_224", None, {"Random, ViT-B/16"}),
        ("timm/vit_base_patch16_224", "default", set()),
        ("pixel-statistics", None, set()),
    ],
)
def test_counterparts(model: str, weights: str | None, labels: set[str]):
    assert {score.label for score in counterparts(published_scores(), model, weights)} == labels


def test_intervals_are_students_over_seeds_and_wilsons_of_one_seeds_accuracy(lines: pd.DataFrame):
    assert (lines.estimate.map(lambda found: found.kind) == "t").sum() > 100
    for line in lines.itertuples():
        found, scores, n = line.estimate, list(line.scores.values()), line.n_test
        assert found.mean == pytest.approx(np.mean(scores), rel=1e-12)
        share = line.metric in ("accuracy", "oa") and line.average == "true"
        if len(scores) == 1:
            assert found.kind == ("binomial" if share else "")
        if found.kind == "t":
            ends = stats.t.interval(0.95, len(scores) - 1, np.mean(scores), stats.sem(scores))
            assert (found.low, found.high) == pytest.approx(ends, rel=1e-12)
        elif found.kind:
            ends = stats.binomtest(round(found.mean / 100 * n), n).proportion_ci(method="wilson")
            assert (found.low / 100, found.high / 100) == pytest.approx(tuple(ends))


def test_seeds_that_agree_are_no_interval_of_width_zero():
    found = estimate([91.0, 91.0, 91.0], trials=1000)
    assert (found.kind, found.n) == ("binomial", 3)
    assert found.low < 90
    assert estimate([91.0, 91.0]).kind == ""


@pytest.mark.parametrize(
    ("scores", "values", "text", "small"),
    [
        ([95.0], {}, "+0.8 ≈", "TerraFM, ViT-Base: 94.2"),
        ([94.26, 94.24], {}, "+0.0 ≈", "TerraFM, ViT-Base: 94.2"),  # more than the interval, less than the rounding
        ([94.5, 94.6, 94.55], {}, "+0.3 ▲", "TerraFM, ViT-Base: 94.2"),
        ([93.0, 93.2, 93.1], {}, "−1.1 ▼", "TerraFM, ViT-Base: 94.2"),
        ([90.0, 97.0], {}, "−0.7 ≈", "TerraFM, ViT-Base: 94.2"),
        ([99.0], {"dataset": "m-bigearthnet", "metric": "f1"}, "+30.3", "TerraFM, ViT-Base: 68.7"),  # no interval
        ([99.9], {"n_test": 10_000}, "+5.7", "TerraFM, ViT-Base: 94.2; another test split"),
    ],
)
def test_a_difference_is_ours_minus_the_file_and_judged_by_the_interval(
    scores: list[float], values: dict, text: str, small: str, tmp_path: Path
):
    table = pd.concat([_one(score=score, seed=i, **values) for i, score in enumerate(scores)])
    (line,) = score_lines(entries(table)).itertuples()
    assert line.leads
    assert difference_cell(line, line.reference)[:2] == (text, small)
    assert difference_cell(line, highest(line.published)).small.startswith("TerraFM, ViT-Large: ")
    if "n_test" in values:
        assert line.estimate.differs(94.2)
        found = _read(write_bench_report(table, tmp_path)).itertext()
        assert any("m-eurosat (10,000 test samples, not 1,000)" in part for part in found)


def test_per_batch_averages_are_compared_and_named(lines: pd.DataFrame, page: Element):
    lead = lines[lines.leads]
    assert set(lead.average[lead.protocol == "copernicus-frozen"]) == {"per-batch"}
    assert set(lead.average[lead.protocol != "copernicus-frozen"]) == {"true"}
    assert "per-batch" in page.itertext()
    assert any("(per-batch)" in text for text in page.itertext())


_SECOND = {"dataset": "m-so2sat", "sensors": "s1rtc,s2l1c"}


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (
            [{}, {"pooling": "mean"}, {"bands": "labelled"}, {"size": 64}, {"stem": "s2l2a"},
             {"name": "other", "pooling": "mean"}, {"name": "other", "pooling": "mean", "dataset": "m-so2sat"}],
            ["TerraFM", "TerraFM, mean of patches", "TerraFM, bands as labelled", "TerraFM, stored size",
             "TerraFM, stem s2l2a", "other", "other"],
        ),
        (  # sizes and sensors are one entry over datasets
            [{"size": 224, "sensors": "s2l1c"}, {"size": 64, "sensors": "s2l1c"}, {"size": 224} | _SECOND,
             {"size": 32} | _SECOND, {"dataset": "m-so2sat", "size": 224, "sensors": "s2l1c"}],
            ["TerraFM", "TerraFM, stored size", "TerraFM", "TerraFM, stored size", "TerraFM, s2l1c"],
        ),
        ([{"settings": '{"k": 5, "metric": "l2"}'}, {"settings": '{"k": 20, "metric": "l2"}'}],
         ["TerraFM, k 5", "TerraFM, k 20"]),  # protocols of one name are not taken for seeds
        ([{}, {}], ["TerraFM"]),  # the same score twice is one seed
    ],
)  # fmt: skip
def test_an_entry_says_what_tells_it_from_others(rows: list[dict], names: list[str]):
    table = entries(pd.concat([_one(**row) for row in rows]))
    assert list(table.entry) == names
    assert all(scores == {0: 94.0} for scores in score_lines(table).scores)


def test_settings_are_told_apart_from_choices(tmp_path: Path):
    settings = {"epochs": 50, "rates": [0.1, 0.5], "lr": 0.5, "tried": {"0.1": 90.0}, "channels": None}
    page = _read(write_bench_report(_one(protocol="linear-probe", settings=json.dumps(settings)), tmp_path))
    assert {"epochs 50; rates 0.1,0.5", "lr 0.5"} <= set(page.itertext())


def test_csv_and_parquet_give_the_same_report(table: pd.DataFrame, tmp_path: Path):
    small = table[(table.dataset == "EuroSAT-S1") | ((table.dataset == "m-eurosat") & (table.pooling == "mean"))]
    expected = write_bench_report(small, tmp_path / "memory").read_bytes()
    small.to_parquet(tmp_path / "results.parquet")
    assert (
        write_bench_report(pd.read_parquet(tmp_path / "results.parquet"), tmp_path / "parquet").read_bytes() == expected
    )
    flat = small.assign(per_class=[None if x is None else json.dumps(list(x)) for x in small.per_class])
    flat.to_csv(tmp_path / "results.csv", index=False)
    assert write_bench_report(pd.read_csv(tmp_path / "results.csv"), tmp_path / "csv").read_bytes() == expected
    assert write_bench_report(small, tmp_path / "memory").read_bytes() == expected  # again


def test_awkward_names_are_shown_as_they_are(tmp_path: Path):
    names = ["<script>alert(1)</script>", "a\"b'c & <b>|d|</b> `e` [f](g)", "模型 — Größe 😀", "x" * 300]
    rows = [_one(name=name, dataset=dataset) for name in names for dataset in ("m-eurosat", "<i>&</i>|")]
    path = write_bench_report(pd.concat(rows), tmp_path, [{"dataset": names[0], "why": names[1]}])
    page = _read(path)
    assert not {"script", "b", "i"} & {element.tag for element in page.iter()}
    assert set(names) <= set(page.itertext())
    lines = path.with_suffix(".md").read_text().splitlines()
    assert not any("<script" in line or "<b>" in line for line in lines)
    _cells(path.with_suffix(".md"))


def test_markdown_tables_keep_their_columns(report: Path):
    assert len(_cells(report.with_suffix(".md"))) > 20


def _cells(path: Path) -> list[int]:
    """The number of bars per row of each table; a bar within a name is escaped, so that a row keeps its cells."""
    blocks = [block.splitlines() for block in path.read_text().split("\n\n") if block.startswith("|")]
    bars = [{len(re.findall(r"(?<!\\)\|", line)) for line in block} for block in blocks]
    assert all(len(some) == 1 and min(some) >= 3 for some in bars)
    return [min(some) for some in bars]


@pytest.mark.parametrize("empty", [pd.DataFrame(), results(seeds=0).head(0)])
def test_no_results_and_what_was_skipped(empty: pd.DataFrame, tmp_path: Path):
    where = "https://huggingface.co/datasets/recursix/geo-bench-1.0"
    skipped = [{"dataset": "m-so2sat", "reason": "is not there", "model": None}, {"where": where}]
    path = write_bench_report(empty, tmp_path, skipped)
    page = _read(path)
    assert any("no results yet" in text for text in page.itertext())
    assert {"m-so2sat", "is not there", where} <= set(page.itertext())
    assert where in {link.get("href") for link in page.iter("a")}
    assert where.replace("_", r"\_") in path.with_suffix(".md").read_text()


def test_one_row_whose_confusion_carries_the_names_of_classes(tmp_path: Path):
    confusion = (np.eye(10, dtype=int) * 90 + 1).tolist()
    page = _read(write_bench_report(_one(confusion=json.dumps(confusion)), tmp_path))
    assert {"m-eurosat", "94.0", "94.00", "−0.2 ≈"} <= set(page.itertext())
    assert set(TASKS["m-eurosat"].classes) <= set(page.itertext())
    assert {"91", "100"} <= set(page.itertext())  # 91 of 100 in every row


def test_a_table_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(TerraFMError, match="no column benchmark, dataset"):
        write_bench_report(pd.DataFrame({"score": [1.0]}), tmp_path)


def _one(**values) -> pd.DataFrame:
    """A row as of TerraFM's k-NN on all of m-eurosat."""
    row = {
        "benchmark": "GEO-Bench", "dataset": "m-eurosat", "protocol": "knn", "model": "terrafm_base", "name": "TerraFM",
        "weights": "default", "stem": None, "sensors": None, "pooling": "token", "size": None, "normalization": "model",
        "bands": "corrected", "train_fraction": 1.0, "seed": 0, "metric": "accuracy", "average": "true",
        "headline": True, "score": 94.0, "n_train": 2000, "n_test": 1000,
    }  # fmt: skip
    return pd.DataFrame([row | values])


def test_the_stand_in_table_is_what_the_command_writes(table: pd.DataFrame):
    assert set(table) == set(SCHEMA.names)
    assert {model["name"] for model in MODELS} == set(table["name"])
    assert set(table.dataset) == set(DATASETS)


def test_charts_stay_between_0_and_100(tmp_path: Path):
    """Student's t of two seeds reaches far beyond: the table says so, the chart's axis does not."""
    scores = {0.01: (2.0, 30.0), 1.0: (60.0, 99.0)}
    rows = [_one(train_fraction=f, seed=i, score=s) for f, both in scores.items() for i, s in enumerate(both)]
    lines = score_lines(entries(pd.concat(rows)))
    charts = [*with_published(lines), *fraction_curves(lines)]
    marks = [mark for chart in charts for _, marks in chart.series for mark in marks]
    ends = [end for chart in charts for end in (chart.ticks[0], chart.ticks[-1])]
    ends += [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    assert len(ends) > 10
    assert all(0 <= end <= 100 for end in ends)
    page = _read(write_bench_report(pd.concat(rows), tmp_path))
    assert any("-161.89–193.89 (t)" in text for text in page.itertext())
