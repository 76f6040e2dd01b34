import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from matplotlib import pyplot as plt
from shapely import box

from data.geotiff import write_geotiff
from terrafm_tg.datasets.esa_worldcover import ESAWorldCover, set_lakes
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, OCEAN, UNKNOWN, majorities

PIXELS = 40  # per degree; the real map has 12,000
RES = 1 / PIXELS


def write_tile(folder, lat, lon, codes, year=2021, version="v200"):
    corner = f"{'N' if lat >= 0 else 'S'}{abs(lat):02d}{'E' if lon >= 0 else 'W'}{abs(lon):03d}"
    path = folder / f"ESA_WorldCover_10m_{year}_{version}_{corner}_Map.tif"
    write_geotiff(path, codes, resolution=3 / len(codes), epsg=4326, corner=(lon, lat + 3), nodata=0)


@pytest.fixture
def folder(tmp_path):
    """Two neighbouring tiles of random codes (12 of them, 0 included), west and east of 3° E."""
    rng = np.random.default_rng(0)
    codes = np.array([0, *(c.code for c in CLASSES)], dtype=np.uint8)
    for lon in (0, 3):
        write_tile(tmp_path, 48, lon, rng.choice(codes, (3 * PIXELS, 3 * PIXELS)))
    return tmp_path


def pixels(folder, west, south, east, north):
    """All codes whose pixel centres lie in a box, by brute force."""
    found = []
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as src:
            rows, cols = np.mgrid[: src.height, : src.width]
            x, y = src.bounds.left + (cols + 0.5) * RES, src.bounds.top - (rows + 0.5) * RES
            found.append(src.read(1)[(x > west) & (x < east) & (y > south) & (y < north)])
    return np.concatenate(found)


def test_legend_is_the_published_one():
    assert [c.code for c in CLASSES] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert len(CLASS_NAMES) == 12
    assert CLASS_NAMES[OCEAN] == "Ocean"
    assert CLASSES[9].color == (0, 207, 117)


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param((0.51, 48.53, 1.22, 49.01), id="within a tile"),
        pytest.param((2.51, 49.93, 3.62, 50.51), id="across two tiles"),
        pytest.param((-1.0, 47.0, 0.31, 48.51), id="over the map's edge"),
    ],
)
def test_histogram_counts_each_pixel_once(folder, bounds):
    codes = pixels(folder, *bounds)
    counts = ESAWorldCover(folder, missing="unknown").histogram(box(*bounds))
    assert counts.dtype == np.int64
    assert counts.tolist() == [(codes == c.code).sum() for c in CLASSES] + [(codes == 0).sum()]
    assert counts.sum() > 100


def test_histogram_of_a_turned_polygon_leaves_out_the_corners_of_its_box(folder):
    diamond = box(1.0, 49.0, 2.0, 50.0).intersection(box(1.0, 49.0, 2.0, 50.0).buffer(0)).centroid.buffer(0.5, 1)
    counts = ESAWorldCover(folder, missing="unknown").histogram(diamond)
    assert counts.sum() == pytest.approx(0.5 * PIXELS**2, rel=0.03)


def test_histogram_across_the_date_line(tmp_path):
    for lon in (177, -180):
        write_tile(tmp_path, 48, lon, np.random.default_rng(lon + 180).choice([0, 10, 95], (120, 120)).astype(np.uint8))
    counts = ESAWorldCover(tmp_path, missing="ocean").histogram(box(179.51, 48.53, 180.72, 49.01))
    west, east = pixels(tmp_path, 179.51, 48.53, 180, 49.01), pixels(tmp_path, -180, 48.53, -179.28, 49.01)
    codes = np.concatenate([west, east])
    assert counts[:11].tolist() == [(codes == c.code).sum() for c in CLASSES]
    assert abs(counts[OCEAN] - (codes == 0).sum()) <= 1  # nothing of it is missing


def test_a_file_of_the_map_that_is_cut_off(folder):
    worldcover, path = ESAWorldCover(folder), next(folder.glob("*E000_Map.tif"))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(TerraFMError, match=r"N48E000_Map.tif of ESA WorldCover cannot be read .*: get it again"):
        worldcover.histogram(box(1, 48, 2, 50))


def test_place_without_a_tile(folder):
    nowhere = box(20, 10, 21, 11)
    assert ESAWorldCover(folder).missing == "unknown"  # two tiles are not the complete map
    assert ESAWorldCover(folder).histogram(nowhere).sum() == 0
    counts = ESAWorldCover(folder, missing="ocean").histogram(nowhere)
    assert counts[OCEAN] == counts.sum() == pytest.approx(PIXELS**2, abs=1)


def histogram(**counts):
    out = np.zeros(12, dtype=np.int64)
    for name, count in counts.items():
        out[{"tree": 0, "grass": 2, "water": 7, "wetland": 8, "none": 11}[name]] = count
    return out


@pytest.mark.parametrize(
    ("counts", "latitude", "expected"),
    [
        (histogram(tree=60, grass=40), 10, 0),
        (histogram(water=60, grass=40), 10, 7),  # a lake and its shore
        (histogram(water=94, grass=6), 10, 7),
        (histogram(water=95, grass=5), 10, OCEAN),
        (histogram(water=55, none=45), 10, OCEAN),  # the coast, where the map ends
        (histogram(none=60, grass=40), 10, OCEAN),
        (histogram(none=40, grass=60), 10, 2),
        (histogram(none=100), -59, OCEAN),
        (histogram(none=100), -61, UNKNOWN),  # south of the map nothing is known
        (histogram(water=100), -61, 7),
        (histogram(), 10, UNKNOWN),
    ],
)
def test_majority(counts, latitude, expected):
    assert majorities(counts[None], np.array([latitude])) == expected


def test_lakes_lie_inside_a_continent():
    """Places by their coordinates; of coasts only such as lie well off the coarse outline."""
    places = {
        (33.0, -1.0): 7,  # Lake Victoria
        (-87.0, 43.5): 7,  # Lake Michigan
        (51.0, 41.0): 7,  # the Caspian Sea: a hole between the outlines of Asia and Europe
        (108.0, 53.5): 7,  # Lake Baikal
        (19.0, 57.0): OCEAN,  # the Baltic
        (34.0, 43.3): OCEAN,  # the Black Sea
        (-85.0, 60.0): OCEAN,  # Hudson Bay
        (1.5, 51.0): OCEAN,  # the Strait of Dover
        (187.0, 0.0): OCEAN,  # beyond 180 degrees
        (208.0, 65.0): 7,  # in Alaska, written so
    }
    lon, lat = np.array(list(places)).T
    share = np.zeros((len(places), 11), np.float32)
    share[:, 7] = 0.96
    found = set_lakes(np.full(len(places), OCEAN, np.int8), share, lon, lat)
    assert dict(zip(places, found.tolist(), strict=True)) == places
    others = np.array([0, 7, UNKNOWN, OCEAN])  # what is no ocean, or is it for lack of data, stays
    share[:, 7] = 0.3
    np.testing.assert_array_equal(set_lakes(others, share[:4], lon[:4], lat[:4]), others)


def test_mask_holds_class_indices_and_is_valid_at_any_date(folder):
    dataset = ESAWorldCover(folder)
    when = slice(pd.Timestamp("2023-05-01"), pd.Timestamp("2023-05-02"), 1)
    sample = dataset[0.5:1.5:RES, 48.5:49.5:RES, when]
    codes = pixels(folder, 0.5, 48.5, 1.5, 49.5).reshape(PIXELS, PIXELS)
    expected = np.full(codes.shape, UNKNOWN)
    for number, c in enumerate(CLASSES):
        expected[codes == c.code] = number
    assert sample["mask"].dtype == torch.int64
    np.testing.assert_array_equal(sample["mask"], expected)


def test_transforms_see_class_indices(folder):
    seen = []
    dataset = ESAWorldCover(folder, transforms=lambda sample: seen.append(sample["mask"].max().item()) or sample)
    dataset[0.5:1.5:RES, 48.5:49.5:RES]
    assert seen == [10]


def test_plot_draws_the_published_colours(folder):
    dataset = ESAWorldCover(folder)
    sample = dataset[0.5:1.5:RES, 48.5:49.5:RES]
    sample["prediction"] = sample["mask"].clone()
    figure = dataset.plot(sample, suptitle="Land cover")
    shown = figure.axes[0].images[0]
    color = shown.to_rgba(np.array([[9]]), bytes=True)[0, 0, :3]
    assert tuple(color) == CLASSES[9].color
    assert len(figure.axes) == 2
    plt.close(figure)


def test_only_the_year_asked_for_is_read(tmp_path):
    write_tile(tmp_path, 48, 0, np.full((30, 30), 10, np.uint8), year=2020, version="v100")
    write_tile(tmp_path, 48, 0, np.full((30, 30), 40, np.uint8))
    counts = [ESAWorldCover(tmp_path, **year).histogram(box(1, 49, 2, 50)) for year in ({"year": 2020}, {})]
    assert majorities(np.stack(counts), np.array([49, 49])).tolist() == [0, 3]


def test_bad_input_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(TerraFMError, match=rf"No ESA WorldCover tile in {folder}: .* ESA_WorldCover_10m_2021"):
            ESAWorldCover(folder)
    with pytest.raises(TerraFMError, match="`year` is 2019: it must be from 2020 and up to 2021"):
        ESAWorldCover(tmp_path, year=2019)
    with pytest.raises(TerraFMError, match="'ocean' or 'unknown'"):
        ESAWorldCover(tmp_path, missing="sea")
