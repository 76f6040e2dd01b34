"""What the simulated planet's pixels are like; `test_simulated.py` has the files."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.simulation import optics, radar
from terrafm_tg.simulation.optics import Sun, clouds, swath_edge
from terrafm_tg.simulation.planet import Planet
from terrafm_tg.simulation.product import plan_acquisitions
from terrafm_tg.simulation.surface import render_ground


def ground_of(cell, size, seed=0):
    return render_ground(Planet(seed), cell, size)


def test_pictures_of_neighbours_agree_where_they_overlap():
    """0.68 km of two full pictures show the same ground, in half-pixel shifted grids."""
    west = next(c for c in Planet(0).cells(60) if len(np.unique(ground_of(c, 264).land_cover)) > 3)
    east = GridCell(west.row, west.col + 1)
    a, b = ground_of(west, 1068).land_cover, ground_of(east, 1068).land_cover
    ta, tb = west.transform(1068), east.transform(1068)
    cols, rows_ = round((tb.c - ta.c) / 10), round((ta.f - tb.f) / 10)
    assert 980 < cols < 1068  # columns in the overlap: 1068 - cols
    height = 1068 - abs(rows_)
    left = a[max(rows_, 0) :][:height, cols:]
    right = b[max(-rows_, 0) :][:height, : 1068 - cols]
    assert len(np.unique(left)) > 1
    assert (left == right).mean() > 0.97


def test_edges_of_all_sensors_and_resolutions_coincide():
    """Correlation with the land's own boundary between water and land is best without a shift."""
    shifts = {}
    for cell in Planet(0).cells(500):
        ground, products = ground_of(cell, 144), plan_acquisitions(0, cell)
        water = ground.land_cover == 7
        scene = optics.OpticalScene(ground, products["s2l2a"], cell.corner[0])
        if not 0.2 < water.mean() < 0.8 or "s1rtc" not in products or scene.cloud_mask.any():
            continue
        bands = scene.bands("L2A", 0)
        vh = np.log(np.maximum(radar.observe_radar(ground, products["s1rtc"])[1], 1e-4))
        pictures = {"vh": vh, "B08": bands["B08"], "B8A": bands["B8A"], "B09": bands["B09"]}
        for name, picture in pictures.items():
            factor = 144 // len(picture)
            fine = np.kron(picture, np.ones((factor, factor))) if factor > 1 else picture
            inner = fine[12:-12, 12:-12].astype(float).ravel()
            scores = {
                (dy, dx): abs(np.corrcoef(np.roll(water, (dy, dx), (0, 1))[12:-12, 12:-12].ravel(), inner)[0, 1])
                for dy in range(-4, 5)
                for dx in range(-4, 5)
            }
            shifts.setdefault(name, []).append(max(scores, key=scores.get))
    assert len(shifts["B08"]) >= 4
    for name, found in shifts.items():
        assert np.abs(np.median(found, axis=0)).max() <= (1 if name in ("vh", "B09") else 0), (name, found)


def test_clouds_hide_the_optical_pictures_only():
    """Under a thick cloud the blue band is bright; radar there is as it is beside it."""
    change = {"B02": [], "vv": []}
    for cell in Planet(0).cells(500):
        product, lat = plan_acquisitions(0, cell), cell.corner[0]
        if "s1rtc" not in product:
            continue
        sun = Sun(lat, product["s2l2a"].time.timetuple().tm_yday)
        opacity, shadow = clouds((264, 264), product["s2l2a"], sun)
        cloud, clear = opacity > 0.8, (opacity < 0.15) & (shadow < 0.1)
        if min(cloud.mean(), clear.mean()) < 0.1:
            continue
        ground = ground_of(cell, 264)
        blue = optics.OpticalScene(ground, product["s2l2a"], lat).bands("L2A", 0)["B02"] / 1e4
        vv = radar.observe_radar(ground, product["s1rtc"])[0]
        change["B02"].append(blue[cloud].mean() - blue[clear & (blue > 0)].mean())
        change["vv"].append(10 * np.log10(vv[cloud & (vv > 0)].mean() / vv[clear & (vv > 0)].mean()))
    assert len(change["B02"]) > 5
    assert np.median(change["B02"]) > 0.4
    assert abs(np.median(change["vv"])) < 1


def test_the_offset_adds_exactly_1000():
    cell = Planet(0).cells(1)[0]
    scene = optics.OpticalScene(ground_of(cell, 48), plan_acquisitions(0, cell)["s2l1c"], cell.corner[0])
    for level in ("L1C", "L2A"):
        without, with_offset = scene.bands(level, 0), scene.bands(level, 1000)
        for name, band in without.items():
            valid = band > 1  # 1 is where a number that would be 0 or less ends
            assert (with_offset[name][valid] - band[valid] == 1000).all()


def test_products_differ_by_sensor_as_an_archive_s_do():
    plans = [plan_acquisitions(0, cell) for cell in Planet(0).cells(400)]
    without = np.mean(["s1rtc" not in p for p in plans])
    assert 0.15 < without < 0.35
    assert all("s1rtc" not in p or p["s1rtc"].time.date() != p["s2l2a"].time.date() for p in plans)
    same = np.mean([p["s2l1c"].time == p["s2l2a"].time for p in plans])
    assert 0.7 < same < 0.9
    assert all((p["s2l1c"].key == p["s2l2a"].key) == (p["s2l1c"].time == p["s2l2a"].time) for p in plans)
    baselines = [p[m].id.split("_")[3] for p in plans for m in ("s2l1c", "s2l2a")]
    assert {"N0300", "N0400", "N0500"} == set(baselines)
    assert min(np.mean([b == name for b in baselines]) for name in set(baselines)) > 0.1
    months = {p["s2l2a"].time.month for p in plans}
    assert len(months) == 12


def test_swath_edges_leave_nodata_and_some_pixels_in_every_quarter():
    plans = {cell: plan_acquisitions(0, cell) for cell in Planet(0).cells(1000)}
    for modality, sensor in (("s1rtc", radar), ("s2l2a", optics)):
        products = {cell: plan[modality] for cell, plan in plans.items() if modality in plan}
        cut = {cell: swath_edge((48, 48), product, sensor.SWATH_EDGES) for cell, product in products.items()}
        cut = {cell: outside for cell, outside in cut.items() if outside is not None}
        assert len(cut) / len(products) == pytest.approx(sensor.SWATH_EDGES, rel=0.4)
        for outside in cut.values():
            assert outside.any()
            assert not any(outside[i : i + 24, j : j + 24].all() for i in (0, 24) for j in (0, 24))
        for cell, outside in list(cut.items())[:3]:
            if modality == "s1rtc":
                power = radar.observe_radar(ground_of(cell, 48), products[cell])
                assert (power[:, outside] == -32768).all()
                assert (power[:, ~outside] > 0).all()
            else:
                scene = optics.OpticalScene(ground_of(cell, 48), products[cell], cell.corner[0])
                bands = scene.bands("L2A", 1000)
                assert ((bands["B02"] == 0) == outside).all()
                assert {(band == 0).any() for band in bands.values()} == {True}


def test_speckle_is_gamma_noise_of_the_sensor_s_looks():
    """Over an even surface the squared mean over the variance is the number of looks."""
    looks = []
    for cell in Planet(0).cells(250):
        product, ground = plan_acquisitions(0, cell).get("s1rtc"), ground_of(cell, 96)
        if product is None or (ground.land_cover != 7).any():
            continue
        power = radar.observe_radar(ground, product)[1].astype(float)  # cross-polarised water: thermal noise
        if (power > 0).all():
            local = uniform_filter(power, 9)[8:-8, 8:-8]
            looks.append(local.mean() ** 2 / (uniform_filter(power**2, 9)[8:-8, 8:-8] - local**2).mean())
    assert len(looks) >= 3
    assert np.median(looks) == pytest.approx(radar.LOOKS, rel=0.15)


# --- Hard enough to mean something


def tile_statistics(count, size, seed=0):
    """Band means and deviations of every tile, its majority class, and its cluster."""
    cells = Planet(seed).cells(count)
    far = [0] + [max(abs(a.row - b.row), abs(a.col - b.col)) > 5 for a, b in pairwise(cells)]
    stats, labels, clusters = {name: [] for name in MODALITIES}, [], []
    for cell, cluster in zip(cells, np.cumsum(far), strict=True):
        ground, products = ground_of(cell, size), plan_acquisitions(seed, cell)
        pictures = {"s1rtc": {}}
        for level in ("l1c", "l2a"):
            product = products[f"s2{level}"]
            pictures[f"s2{level}"] = optics.OpticalScene(ground, product, cell.corner[0]).bands(level.upper(), 0)
        pictures["s2l1c"].pop("B10")
        if "s1rtc" in products:
            pictures["s1rtc"] = dict(zip(("VV", "VH"), radar.observe_radar(ground, products["s1rtc"]), strict=True))
        for quarter in range(4):

            def cut(picture, q=quarter):
                half = len(picture) // 2
                return picture[q // 2 * half :, q % 2 * half :][:half, :half]

            classes = np.bincount(cut(np.where(ground.open_sea, 11, ground.land_cover)).ravel(), minlength=12)
            labels.append(classes.argmax())
            clusters.append(cluster)
            for name, bands in pictures.items():
                values = [v[v > 0].astype(float) for v in map(cut, bands.values())]
                values = [10 * np.log10(v) if name == "s1rtc" else v for v in values]
                row = [(v.mean(), v.std()) if v.size else (np.nan, np.nan) for v in values]
                stats[name].append(row or [(np.nan, np.nan)] * 2)
    return {k: np.array(v) for k, v in stats.items()}, np.array(labels), np.array(clusters)


def check_difficulty(count, size):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    stats, labels, clusters = tile_statistics(count, size)
    complete = np.all([np.isfinite(s).all(axis=(1, 2)) for s in stats.values()], axis=0)
    use = complete & (labels < 11)
    truth, groups = labels[use], clusters[use]
    report = {"majority": np.bincount(truth).max() / len(truth)}
    for name, sensors in {**{m: [m] for m in stats}, "all": list(stats)}.items():
        means = np.concatenate([stats[m][use, :, 0] for m in sensors], axis=1)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=10))
        report[name] = np.mean(cross_val_predict(probe, means, truth, groups=groups, cv=GroupKFold(5)) == truth)
    # What two sensors' raw pictures have in common to be compared by: brightness and contrast.
    common = {m: StandardScaler().fit_transform(s[use].mean(axis=1)) for m, s in stats.items()}
    for bank, query in (("s1rtc", "s2l2a"), ("s2l2a", "s1rtc"), ("s1rtc", "s2l1c")):
        guess = np.empty_like(truth)
        for held_out in (groups % 4 == fold for fold in range(4)):
            knn = KNeighborsClassifier(20, weights="distance").fit(common[bank][~held_out], truth[~held_out])
            guess[held_out] = knn.predict(common[query][held_out])
        report[f"{bank} to {query}"] = np.mean(guess == truth)
        report[f"{bank} to {query}, balanced"] = balanced_accuracy_score(truth, guess)
    return report, np.bincount(labels, minlength=12) / len(labels)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("count", [200, pytest.param(700, marks=pytest.mark.soak)])
def test_raw_statistics_do_not_give_the_land_cover_away(count):
    report, shares = check_difficulty(count, 264)
    assert max(report[name] for name in ("s1rtc", "s2l1c", "s2l2a", "all")) < 0.8
    assert report["all"] > report["majority"] + 0.1  # but they are no noise either
    for name, value in report.items():
        if "balanced" in name:
            assert value < 2.2 / 11, name
        elif " to " in name:
            assert value < report["majority"] + 0.1, name
    assert (shares > 0).all()  # all 11 classes and ocean
    assert shares[[0, 7]].min() > 0.08  # tree cover and water are common
    assert shares[[8, 9, 10]].max() < 0.08  # wetland, mangroves, moss and lichen are rare


def test_cells_spread_over_the_planet_in_clusters():
    cells = Planet(0).cells(700)
    assert len(set(cells)) == 700
    places = np.array([cell.corner for cell in cells])
    assert places[:, 0].min() > -60
    assert np.ptp(places[:, 0]) > 100
    assert np.ptp(places[:, 1]) > 300
    grid_rows = np.array([(c.row, c.col) for c in cells])
    beside = [(np.abs(grid_rows - cell).max(axis=1) == 1).sum() for cell in grid_rows]
    assert np.mean(beside) > 1  # most cells have a neighbour


def test_a_place_on_the_date_line_has_a_climate():
    """Of planet 1 a place lies at 180.07° E, beyond the last longitude of the climate's grid."""
    assert len(Planet(1).cells(20)) == 20
