"""`terrafm inspect`: what is said of a dataset is what independent numbers say, and the verdict is the exit status."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image

from data.geotiff import write_geotiff
from datasets.scenes import providers
from datasets.scenes.stac_world import SearchServer, write_world
from refusals import refusal
from terrafm_tg.cli.inspect import as_typed
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.tiles.plot import tile_channels, tile_picture
from terrafm_tg.evaluation.inspection import EDGES, combinations, days_apart, look_at
from terrafm_tg.evaluation.inspection_sources import inspect_source
from terrafm_tg.modalities import S1RTC, S2L2A

RNG = np.random.default_rng(5)
#: Digital numbers of a plain scene without an offset: dark pixels in every band.
SCENE = RNG.integers(100, 3000, (12, 60, 60)).astype(np.uint16)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are written where the command runs."""
    monkeypatch.chdir(tmp_path)


def folder(root: Path, image: np.ndarray = SCENE, name: str = "S2L2A/20210601_a.tif", **profile: Any) -> Path:
    """A folder with one scene of 60 px."""
    write_geotiff(root / name, image, **profile)
    return root


def inspected(path: Path | str, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """The JSON that the command prints."""
    main(["inspect", str(path), "--json", "--figure", "false", *options])
    return json.loads(capsys.readouterr().out)


def test_a_world_as_it_is(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(small_world, capsys)
    index = pd.read_parquet(small_world / "index.parquet")
    assert (found["trainable"], found["problem"], found["kind"]) == (True, None, "MajorTOM")
    assert (found["tiles"], found["tile_sizes"]) == (len(index), [72])
    assert [found["sensors"][m]["tiles"] for m in ("s1rtc", "s2l1c", "s2l2a")] == [
        int(index[f"has_{m}"].sum()) for m in ("s1rtc", "s2l1c", "s2l2a")
    ]
    both = index["has_s1rtc"] & index["has_s2l2a"] & index["has_s2l1c"]
    assert found["together"]["s1rtc + s2l1c + s2l2a"] == both.sum()
    assert sum(found["together"].values()) == len(index)
    optical = found["sensors"]["s2l2a"]
    days = pd.to_datetime(index["date_s2l2a"])
    assert optical["dates"] == [str(days.min().date()), str(days.max().date())]
    assert sum(optical["crs"].values()) == optical["images"] == index.loc[index["has_s2l2a"], "cell"].nunique()


def test_values_are_those_of_the_tiles(small_world: Path) -> None:
    data = MajorTOM(small_world, tile_size=72)
    look = look_at(data, S2L2A, count=4)
    rows = np.flatnonzero(data.table["has_s2l2a"])
    rows = rows[np.linspace(0, len(rows) - 1, 4).round().astype(int)]
    images = [data[data.tile_slice(int(row))]["image_s2l2a"].numpy() for row in rows]
    values = {band: np.concatenate([x[i].ravel() for x in images]) for i, band in enumerate(S2L2A.bands)}
    for i, band in enumerate(S2L2A.bands):
        x = values[band][np.isfinite(values[band])]
        assert look.quantiles[band] == pytest.approx(np.percentile(x, (1, 50, 99)).tolist())
        far = np.abs(x - S2L2A.mean[i]) > 2 * S2L2A.std[i]
        assert look.outside[band] == pytest.approx(far.mean(), abs=1e-6)
        assert look.histogram[i].sum() == len(x)
        assert look.histogram[i][(EDGES[:-1] < -1e-9) | (EDGES[1:] > 1 + 1e-9)].sum() == far.sum()
    everything = np.concatenate(list(values.values()))
    assert look.missing == pytest.approx(1 - np.isfinite(everything).mean())


def test_fill_is_missing_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = SCENE.copy()
    image[:, :15] = 0
    picture = tmp_path / "look.png"
    main(["inspect", str(folder(tmp_path / "data", image)), "--figure", str(picture)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "missing 25.0% of the pixels (1 tile read)" in printed
    assert "60 px; crops of 224 px, the paper's, would be enlarged from them: train with" in printed
    assert "--model.crops.global_size 48" in printed
    assert "It can be trained on." in printed
    with Image.open(picture) as shown:
        assert min(shown.size) > 300
    look = inspect_source(tmp_path / "data").looks[0]
    assert look.missing == pytest.approx(0.25)
    assert np.isnan(look.image[:, :15]).all()
    with rasterio.open(tmp_path / "data/S2L2A/20210601_a.tif") as src:
        np.testing.assert_array_equal(look.image[:, 15:], src.read()[:, 15:])


def test_what_cannot_be_trained_on(small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = str(folder(tmp_path / "bright", np.full((12, 60, 60), 4000, np.uint16) + SCENE // 10))
    with pytest.raises(SystemExit) as stop:
        main(["inspect", bright, "--figure", "false"])
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert "+1000" in printed.err
    assert "offset not known" in " ".join(printed.out.split())
    assert "It cannot be trained on as it is." in printed.out
    main(["inspect", bright, "--offset", "0", "--figure", "false"])
    assert "It can be trained on." in capsys.readouterr().out
    assert "does not exist" in refusal(capsys, "inspect", str(tmp_path / "nothing"))
    assert "`--bands` is no setting" in refusal(capsys, "inspect", str(small_world), "--bands", "[B02]")
    only_fill = str(folder(tmp_path / "fill", np.zeros((12, 60, 60), np.uint16)))
    assert refusal(capsys, "inspect", only_fill, "--offset", "0")


def test_images_in_no_tile_are_said_first_and_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, side in (("a", 60), ("b", 60), ("c", 40)):
        folder(tmp_path, SCENE[:, :side, :side], f"S2L2A/20210601_{name}.tif")
    main(["inspect", str(tmp_path), "--tile_size", "60", "--offset", "0", "--figure", "false"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 tiles, read as a folder of scenes; 1 of 3 images is in no tile; 1 note below Sentinel-2 L2A" in printed
    assert "images 3, of which 2 are in 2 tiles" in printed
    assert "It can be trained on. But see above: 1 of 3 images of s2l2a left out." in printed


def test_what_is_right_is_shown_beside_a_contradiction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, lying = providers.optical(baseline=300), providers.optical(baseline=509, time="20230402T095029")
    for image in (plain, lying):  # neither holds the offset
        providers.stack(tmp_path, image, name=image.product)
    found = inspect_source(tmp_path)
    assert [path for path, _ in found.contradictions] == [f"{lying.product}.tif"]
    assert lying.product in found.problem
    assert "`offset`" in found.problem
    assert [found.sensors["s2l2a"][name] for name in ("images", "unused", "tiles")] == [2, 1, 1]
    assert "holds for all images, or take this one away" in found.problem
    assert found.sensors["s2l2a"]["offsets"] == {"no +1000 DN in them": 1}
    assert lying.product in refusal(capsys, "inspect", str(tmp_path), "--figure", "false")
    assert inspected(tmp_path, capsys, "--offset", "0")["sensors"]["s2l2a"]["offsets"] == {"no +1000 DN in them": 2}


def test_one_of_many_that_contradicts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are judged together: one that tells nothing takes the offset of the rest."""
    for day in (1, 2):
        image = providers.optical(offset=1000, baseline=None, time=f"2023040{day}T095029", y=5_400_000 + 9000 * day)
        providers.stack(tmp_path / "S2L2A", image, name=f"S2A_MSIL2A_2023040{day}T095029_N0509_R079_T33UXP_x")
    bright = providers.optical(offset=6000)
    providers.stack(tmp_path / "S2L2A", bright, name="S2A_MSIL2A_20230403T095029_N0509_R079_T33UXP_x")
    lying = providers.optical(baseline=509, time="20230404T095029")
    providers.stack(tmp_path / "S2L2A", lying)
    found = inspect_source(tmp_path)
    assert [path for path, _ in found.contradictions] == [f"S2L2A/{lying.product}.tif"]
    assert found.sensors["s2l2a"]["offsets"] == {"+1000 DN, taken off": 3}
    sentence = refusal(capsys, "inspect", str(tmp_path), "--figure", "false")
    assert lying.product in sentence
    assert "set `--offset 1000`" in sentence or "set `--offset 0`" in sentence


def test_a_reason_that_many_files_share_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path)
    for band in range(2, 8):
        write_geotiff(tmp_path / f"LC08_L2SP_190025_20210601_20210608_02_T1_SR_B{band}.tif", SCENE[:1])
    main(["inspect", str(tmp_path), "--figure", "false"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "SR_B2.tif and 5 more: its name is that of another sensor" in printed
    assert printed.count("another sensor") == 1


def test_a_picture_without_a_usual_band_is_gray() -> None:
    image = np.full((12, 4, 4), np.nan, np.float32)
    image[S2L2A.bands.index("B04")], image[S2L2A.bands.index("B03")] = np.arange(16).reshape(4, 4), 3
    shown = tile_picture(image, S2L2A)
    assert list(tile_channels(image, S2L2A)) == ["B04", "B03"]
    assert np.ptp(shown, axis=2).max() == 0
    assert np.ptp(shown) > 0
    radar = np.stack([np.arange(16.0).reshape(4, 4) - 20, np.full((4, 4), np.nan)])
    assert list(tile_channels(radar, S1RTC)) == ["VV"]
    assert np.ptp(tile_picture(radar, S1RTC), axis=2).max() == 0


def test_a_part_of_major_tom_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Core-S2L2A").mkdir()
    (tmp_path / "Core-S2L2A/metadata.parquet").write_bytes(b"")
    assert "give the folder above it" in refusal(capsys, "inspect", str(tmp_path / "Core-S2L2A"))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_product_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool) -> None:
    image = providers.optical(offset=1000)
    providers.safe(tmp_path, image, zipped=zipped)
    providers.stack(tmp_path, providers.optical(offset=1000, seed=3), name="another.tif")
    (product,) = tmp_path.glob("S2*")
    sensor = inspected(product, capsys)["sensors"]["s2l2a"]
    assert (sensor["images"], sensor["products"]) == (1, [image.product])
    assert sensor["offsets"] == {"+1000 DN, taken off": 1}


def test_bands_units_and_places_of_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optical = providers.without(providers.optical(offset=1000), "B01", "B09")
    providers.stack(tmp_path / "S2", optical, names=list(optical.bands))
    providers.pc_rtc(tmp_path / "S1", providers.radar())
    found = inspected(tmp_path, capsys)
    assert list(found["sensors"]["s2l2a"]["bands"]) == ["B02 B03 B04 B05 B06 B07 B08 B8A B11 B12"]
    assert found["sensors"]["s2l2a"]["bands_by"] == {"their names": 1}
    assert set(found["sensors"]["s2l2a"]["pixels"]["bands"]) == {*optical.bands}
    assert found["sensors"]["s1rtc"]["units"] == {"linear power": 1}
    assert found["sensors"]["s1rtc"]["crs"] == {"EPSG:32633": 1}
    assert found["sensors"]["s1rtc"]["pixel_sizes"] == {"10 m": 1}
    assert found["together"] == {"s1rtc + s2l2a": 1}
    main(["index", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Sentinel-2 L2A: 1 image, 10 of 12, without B01, B09" in printed
    assert "Sentinel-1: 1 image, all 2 bands, linear power" in printed
    assert "Tiles: s1rtc + s2l2a (1 tile)" in printed
    assert "crops of 224 px, the paper's, would be enlarged" in printed


def test_a_catalog_and_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = tmp_path / "world"
    write_world(world)
    found = inspected(world / "catalog.json", capsys)
    assert {name: sensor["images"] for name, sensor in found["sensors"].items()} == {"s1rtc": 1, "s2l2a": 2}
    assert found["sensors"]["s2l2a"]["offsets"] == {"+1000 DN, taken off": 2}
    assert found["sensors"]["s2l2a"]["cloud"] == pytest.approx((5 + 60) / 2)
    with SearchServer(world) as server:
        box = ["--bbox=[11.72,48.09,11.78,48.12]", "--dates=2023-05-01/2023-05-10", "--tile_size=252"]
        collections = "--collections=[sentinel-2-l2a,sentinel-1-rtc]"
        near = inspected(f"{server.url}/api", capsys, collections, *box)
    assert near["trainable"]
    assert {name: sensor["images"] for name, sensor in near["sensors"].items()} == {"s1rtc": 1, "s2l2a": 1}
    assert near["sensors"]["s2l2a"]["dates"] == ["2023-05-01"] * 2
    assert near["sensors"]["s2l2a"]["pixels"]["tiles_read"] > 0
    assert "is not: leave them out" in refusal(capsys, "inspect", str(world), *box)


@pytest.mark.parametrize(
    "words",
    [
        [""], ["a\0b"], ["loop"], ["fifo"], ["text.txt"], ["empty"], ["data", "--tile_size=0"],
        ["data", "--tile_size=abc"], ["data", "--unit=meters"], ["data", "--offset=7"], ["data", "--scale=-1"],
        ["data", "--nodata=abc"], ["data", "--max_days=-1"], ["data", "--folders={s2l2a: gone}"],
        ["data", "--ambiguous_offset=perhaps"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_value_gets_one_sentence(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "data")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text.txt").write_text("a thesis")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    sentence = refusal(capsys, "inspect", *words)
    assert len(sentence.splitlines()) < 12
    assert (tmp_path / "text.txt").read_text() == "a thesis"


def test_images_that_are_left_out_are_counted_and_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The facts of a sensor are those of its images in tiles, and the verdict names what is not."""
    folder(tmp_path / "data")
    folder(tmp_path / "data", SCENE[:, :30, :30], "S2L2A/20220601_b.tif", epsg=32631)
    found = inspected(tmp_path / "data", capsys, "--tile_size", "60")
    sensor = found["sensors"]["s2l2a"]
    assert (sensor["images"], sensor["unused"], sensor["dates"]) == (2, 1, ["2021-06-01"] * 2)
    assert found["doubts"] == ["1 of 2 images of s2l2a left out"]
    main(["inspect", str(tmp_path / "data"), "--tile_size", "60", "--figure", "false"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "images 2, of which 1 is in 1 tile; what follows is of these" in printed
    assert "or `--small_images pad`" in printed
    assert "It can be trained on. But see above: 1 of 2 images of s2l2a left out." in printed


def test_settings_as_they_are_typed() -> None:
    said = "`bands` to [VH, VV], `offset` to 1000, `unit` to 'dB', `scale` to 0.01. `max_days` and `other` to 3."
    assert as_typed(said) == (
        "`--bands '[VH, VV]'`, `--offset 1000`, `--unit dB`, `--scale 0.01`. `--max_days` and `other` to 3."
    )


def test_days_between_images_of_a_tile() -> None:
    table = pd.DataFrame({
        "has_s1rtc": [True, True, True, False], "has_s2l2a": [True, True, True, True],
        "date_s1rtc": pd.to_datetime(["2021-01-01", "2021-01-09", None, "2020-01-01"]),
        "date_s2l2a": pd.to_datetime(["2021-01-03", "2021-01-09", "2021-01-01", "2021-01-01"]),
    })  # fmt: skip
    assert days_apart(table) == {"least": 0, "most": 2, "undated": 1}
    assert days_apart(table[3:]) is None


def test_combinations_of_sensors() -> None:
    table = pd.DataFrame({"has_s1rtc": [True, True, False], "has_s2l1c": [False] * 3, "has_s2l2a": [True, False, True]})
    assert combinations(table) == {"s1rtc + s2l2a": 1, "s1rtc": 1, "s2l2a": 1}
