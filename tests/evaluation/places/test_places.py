"""Radar to optical, change and dimensions on small cities in OSCD's layout, against scores by hand and scikit-learn."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rasterio.errors import NotGeoreferencedWarning
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from data.cities import DATES, write_city
from refusals import refused
from terrafm_tg.cli.main import main
from terrafm_tg.cli.real import held_out_parts
from terrafm_tg.datamodules import SentinelFolderDataModule
from terrafm_tg.datamodules.loading.split import place_names, split_places
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.evaluation.places import canonical, windows
from terrafm_tg.evaluation.places.canonical import fit_canonical, probe
from terrafm_tg.evaluation.places.scores import CANONICAL, CHANGE, OVERALL, SHARE, WITHIN, nearer_shares, score_places
from terrafm_tg.evaluation.places.windows import LAYOUT, STATISTICS, Windows, describe_windows, find_labels, open_places
from terrafm_tg.evaluation.places.windows import read_pictures as read
from terrafm_tg.models import build_encoder

CITIES = "pisa", "rennes", "mumbai", "beirut"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cities, the last without radar."""
    root = tmp_path_factory.mktemp("oscd")
    for number, name in enumerate(CITIES):
        write_city(root, name, number, radar=name != "beirut")
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> SentinelFolderDataModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = SentinelFolderDataModule(root, tile_size=96, num_workers=0)
        _ = data.tiles
    return data


def test_the_folder_is_read_as_it_lies(data: SentinelFolderDataModule):
    table = data.tiles.table
    assert len(table) == 4 * 2 * 4, "four cities, two dates, tiles of 96 px"
    assert not table["path_s2l1c"].str.contains("rect").any()
    for number, date in enumerate(DATES, 1):
        part = table[table["path_s2l1c"].str.contains(f"imgs_{number}/")]
        assert (part["date_s2l1c"].dt.normalize() == pd.Timestamp(date)).all(), "dates.txt, not the name"
        assert part["path_s1rtc"].dropna().str.contains(f"_t{number}_VV").all(), "radar of the same date"
    assert table["has_s1rtc"].sum() == 3 * 2 * 4
    sample = data.tiles[data.tiles.tile_slice(int(np.flatnonzero(table["has_s1rtc"])[0]))]
    assert not sample["bands_s1rtc"][1], "VH is absent"
    names = place_names(table)
    assert set(names) == set(CITIES)
    train, held_out = split_places(table, ["pisa", "beirut"])
    assert sorted([*train, *held_out]) == list(range(len(table)))
    assert {*names[held_out]} == {"pisa", "beirut"}
    with refused(match=r"no place 'piza' in the data: did you mean 'pisa'\?"):
        split_places(table, ["piza"])
    with refused(match="none to train on"):
        split_places(table, list(CITIES))


def test_places_are_scenes_that_share_ground():
    """Folders by date hold one place each time; neighbors that touch are two."""
    boxes = {
        "a/1.tif": (0, 1),
        "b/1.tif": (0.5, 1.5),
        "a/2.tif": (3, 4),
        "c/sub/3.tif": (4.0, 5),
        "c/sub/4.tif": (4, 5),
    }
    rows = [
        {"path_s2l2a": p, "xmin": x, "ymin": 0, "xmax": y, "ymax": 1, "cell": "0U_0R"} for p, (x, y) in boxes.items()
    ]
    names = place_names(pd.DataFrame([*rows, *rows]))
    assert names[:5].tolist() == names[5:].tolist() == ["1", "1", "2", "sub", "sub"]
    cells = pd.DataFrame({"cell": ["502U_105R", "502U_106R", "300U_100R"]})
    assert len({*place_names(cells)}) == 2, "blocks of cells"


def test_an_archive_of_cells_has_blocks_for_places_with_a_gap_between():
    lat, lon = (part.ravel() for part in np.mgrid[0.05:1.05:12j, 0.05:1.05:12j])
    rows, cols = grid.cells_at(lat, lon)
    table = pd.DataFrame({"cell": grid.names(rows, cols)})
    names = place_names(table)
    train, queries = split_places(table, [names[70]])
    assert len(train) + len(queries) < len(table), "cells between them are on neither side"
    apart = [np.maximum(abs(rows[train] - rows[at]), abs(cols[train] - cols[at])).min() for at in queries]
    assert min(apart) == 2


def test_rank_by_hand():
    query = np.array([[1, 0], [0, 1], [1, 1]], float)
    bank = np.array([[1, 0.1], [1, 0], [1, 1.1]], float)
    # 1: its own has cosine 0.995, the second 1; 2: its own is the worst; 3: its own is the best.
    assert nearer_shares(query, bank).tolist() == [1, 2, 0]
    assert nearer_shares(query, np.ones((3, 2))).tolist() == [2, 2, 2], "ties count against the query"


def test_canonical_correlation_is_scikit_learns():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(300, 2))
    x = np.hstack([common[:, :1] + rng.normal(size=(300, 1)), rng.normal(size=(300, 3))]) * [1, 5, 0.1, 9] + 3
    y = np.hstack([rng.normal(size=(300, 2)), common + 0.3 * rng.normal(size=(300, 2))])
    found, other = fit_canonical(x, y, ridge=0.0), CCA(3, max_iter=20_000, tol=1e-12).fit(x, y)
    theirs = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(z.T for z in other.transform(x, y)), strict=True)]
    np.testing.assert_allclose(found.correlation[:3], theirs, atol=1e-5)
    for side, (own, z) in enumerate(zip((x, y), other.transform(x, y), strict=True)):
        mine = found.project(own, side)[:, 0]
        assert abs(np.corrcoef(mine, z[:, 0])[0, 1]) == pytest.approx(1, abs=1e-5)
    wide = fit_canonical(np.hstack([x, x[:, :1], np.zeros((300, 1))]), y)  # a copy, and a band that is absent
    assert np.isfinite(wide.project(np.zeros((1, 6)), 0)).all()
    assert (wide.correlation < 1).all()


def test_the_probe_is_ridge_regression():
    rng = np.random.default_rng(1)
    x, query = rng.normal(2, 3, (80, 5)), rng.normal(size=(9, 5))
    label = (x[:, 0] > 2).astype(float)
    z = (x - x.mean(0)) / x.std(0)
    other = Ridge(alpha=canonical.PROBE_RIDGE * len(x), fit_intercept=False).fit(z, label - label.mean())
    np.testing.assert_allclose(probe(x, label, query), other.predict((query - x.mean(0)) / x.std(0)), rtol=1e-6)


def test_windows_and_their_statistics(root: Path, data: SentinelFolderDataModule, tmp_path: Path, caplog):
    dataset, places, optical = open_places(data)
    assert (optical, sorted({*places}), len(dataset)) == ("s2l1c", sorted(CITIES[:3]), 6)
    pictures = list(read(dataset, places))
    assert [p.date for p in pictures] == [0, 0, 0, 1, 1, 1]
    found = describe_windows(pictures, {}, labels=find_labels(root))
    assert len(found.where) == 6 * 3 * 3, "204 px hold 3 x 3 windows of 64, more than tiles of 96 px do"
    image = pictures[0].images["s2l1c"]
    cut, at = windows.cut_windows(pictures[0].images)
    np.testing.assert_array_equal(cut["s2l1c"][5], image[:, 64:128, 128:192])
    assert at[5].tolist() == [1, 2]
    mean = np.log10(image[3, 64:128, 128:192]).mean()
    assert found.features[STATISTICS]["s2l1c"][5, 3] == pytest.approx(mean, rel=1e-4)
    assert found.features[LAYOUT]["s1rtc"].shape == (54, 2 * (5 + 16))
    assert not found.features[LAYOUT]["s1rtc"][:, 1::2][:, :5].any(), "VH is absent"
    block = np.log10(image[3, 64:80, 144:160]).mean()  # row 0, column 1 of the patches
    assert found.tokens[STATISTICS]["s2l1c"][5, 1, 3] == pytest.approx(block, rel=1e-4)
    # The square from (32, 48) to (96, 112) covers these patches of window (0, 0), and no others.
    assert found.changed[0].reshape(4, 4).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert np.isnan(found.changed[27:]).all(), "the second date has no label of its own"
    for damage in (b"", b"II*\0 no image"):
        (tmp_path / "pisa-cm.tif").write_bytes(damage)
        again = describe_windows(pictures, {}, labels=find_labels(root) | find_labels(tmp_path))
        assert np.isnan(again.changed[again.where.place == "pisa"]).all()
        assert "changes of pisa are not scored" in caplog.text
        assert (again.changed == found.changed)[(again.where.place != "pisa") & (again.where.date == 0)].all()
        caplog.clear()


def test_scores_of_places(root: Path, data: SentinelFolderDataModule):
    dataset, places, optical = open_places(data)
    torch.manual_seed(0)
    encoder = build_encoder("terrafm_nano", depth=1).eval()
    found = describe_windows(read(dataset, places), {"untrained": encoder}, labels=find_labels(root))
    frame = score_places(found, ["pisa"], optical)
    assert {*frame.place} == {"pisa", ""}
    one = frame[(frame.encoder == LAYOUT) & (frame.features == CANONICAL)].set_index(["task", "metric"])
    assert one.score[WITHIN, "recall@1"] > 0.8, "both sensors are functions of one surface"
    assert one.score[WITHIN, SHARE] == 0
    assert one.chance[WITHIN, "recall@5"] == pytest.approx(5 / 9)
    assert one.chance[OVERALL, "recall@5"] == pytest.approx(5 / 18)
    change = frame[(frame.task == CHANGE) & (frame.encoder == STATISTICS)]
    assert (change.score > 0.9).all(), "the second date is brighter where it changed"
    # Scores of a known answer: radar features are the optical ones, those of two windows exchanged.
    own = found.features["untrained"][optical]
    other = own.copy()
    first = np.flatnonzero((found.where.place == "pisa") & (found.where.date == 0))
    other[first[:2]] = own[first[1::-1]]
    swapped = Windows(found.where, {"x": {"s1rtc": other, optical: own}}, {}, found.changed)
    scores = (
        score_places(swapped, ["pisa"], optical).query("features == '' and task == 'within'").set_index("metric").score
    )
    assert scores["recall@1"] == pytest.approx((7 / 9 + 1) / 2)


def test_the_places_that_runs_hold_out(tmp_path: Path):
    parts = held_out_parts(CITIES, tmp_path, None, None, 0)
    assert len(parts) == 3
    assert sorted(name for part in parts for name in part) == sorted(CITIES)
    (tmp_path / "train.txt").write_text("pisa\nrennes\n")
    assert held_out_parts(CITIES, tmp_path, None, None, 0) == [["mumbai", "beirut"]]
    assert len(held_out_parts(CITIES, tmp_path, None, 2, 0)) == 2, "folds by choice"
    with refused(match="`folds` is 5, and both sensors show 4 places"):
        held_out_parts(CITIES, tmp_path, None, 5, 0)
    (tmp_path / "all.txt").write_text(",".join(CITIES))
    with refused(match="names all of the places"):
        held_out_parts(CITIES, tmp_path, tmp_path / "all.txt", None, 0)


def test_one_command_pretrains_and_reports(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = tmp_path / "small.yaml"
    small.write_text(json.dumps({
        "trainer": {"max_epochs": 1},
        "model": {"init_args": {"depth": 1, "schedule": {"warmup_epochs": 0}, "head": {"prototypes": 64}}},
        "data": {"init_args": {"batch_size": 8, "num_workers": 0, "cache": False}},
    }))  # fmt: skip
    stack = f"[pretrain, size/nano, hardware/cpu, small_scale, real, {small}]"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        main(["real", str(root), "--folds=2", f"--out={tmp_path / 'out'}", f"--configs={stack}"])
    shown = capsys.readouterr().out
    assert "Each of 3 places held out once, in 2 runs" in shown
    frame = pd.read_csv(tmp_path / "out/places.csv")
    assert {*frame[frame.task == WITHIN].place} == set(CITIES[:3])
    assert {*frame.encoder} == {STATISTICS, LAYOUT, "untrained", "trained"}
    pictures = sorted(path.name for path in (tmp_path / "out").rglob("*.jpg"))
    assert pictures == ["queries.jpg"] * 2 + ["tokens.jpg"] * 2


def test_real_cities(real_data: Path):
    """The shared part of OSCD: pairs by date, places by city, and hand-made statistics above chance."""
    folder = real_data / "oscd"
    if not folder.is_dir():
        pytest.skip(f"Real cities are not at {folder}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = SentinelFolderDataModule(folder, tile_size=96, num_workers=0)
        dataset, places, optical = open_places(data)
    few = np.isin(places, ["paris", "bercy", "rennes", "aguasclaras"])
    assert len(few) == 24
    assert few.sum() == 8
    dataset.index = dataset.table[few].reset_index(drop=True)
    found = describe_windows(read(dataset, places[few]), {}, labels=find_labels(folder))
    frame = score_places(found, ["paris", "rennes"], optical)
    share = frame[(frame.encoder == LAYOUT) & (frame.task == WITHIN) & (frame.metric == SHARE)].score
    assert (share < 0.5).all()  # chance
    assert share.mean() < 0.4
