"""Statistics of an archive: those of NumPy over all pixels, robust, resumable, the same whatever does the work."""

import json

import numpy as np
import pytest

from datasets.tiny_files import optics, product, radar, write, write_major_tom
from terrafm_tg.cli.main import main
from terrafm_tg.datasets.index import statistics
from terrafm_tg.datasets.index.statistics import build_statistics, count_values, moments
from terrafm_tg.datasets.source import open_tiles
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L2A
from terrafm_tg.transforms import Normalize

CELLS = ("536U_101R", "536U_104R", "537U_98R")
QUIET = {"workers": 0, "progress": False}


def holes(modality, band, share=0.3):
    random = np.random.default_rng(3)
    row = product(modality, CELLS[2])
    pixels = np.where(random.random((24, 24)) < share, 0, random.integers(1, 9000, (24, 24)))
    return product(modality, CELLS[2], pixels={band: pixels.astype(np.uint16)}) | {"metadata": row["metadata"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three cells, of which the first has the offset, the third missing pixels and no radar."""
    rows = {
        "s2l2a": [product("s2l2a", CELLS[0], "N0400"), product("s2l2a", CELLS[1]), holes("s2l2a", "B02")],
        "s1rtc": [product("s1rtc", cell) for cell in CELLS[:2]],
    }
    return write_major_tom(tmp_path_factory.mktemp("root"), rows)


def pixels_of(root, modality):
    """All pixels of each band in the modality's unit, by NumPy; NaN where missing."""
    tiles = open_tiles(str(root))
    bands = [[] for _ in modality.bands]
    for row in np.flatnonzero(tiles.table[f"has_{modality.name}"]):
        groups = tiles._read(int(row), modality)
        for resolution, names in modality.native.items():
            for place, plane in zip(modality.band_indices(names), groups[resolution], strict=True):
                valid = plane[plane > 0].astype(np.float64)
                bands[place].append(10 * np.log10(valid) if modality.unit == "dB" else valid)
    return [np.concatenate(parts) for parts in bands]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_they_are_those_of_numpy(root, tmp_path, clip):
    found = build_statistics(root, tmp_path / "stats.json", clip=clip, **QUIET)
    for modality, exact in ((S2L2A, 1e-9), (S1RTC, 0.006)):  # radar is counted by hundredths of a decibel
        for band, values in enumerate(pixels_of(root, modality)):
            ordered = np.sort(values)
            ends = [int(np.ceil(share * len(values))) - 1 for share in (clip, 1 - clip)]
            low, high = ordered[max(ends[0], 0)], ordered[ends[1]]
            within = values.clip(low, high)
            own = found[modality.name]
            if len(values) < 100:  # 60 m bands of so few tiles
                assert (own["mean"][band], own["std"][band]) == (modality.mean[band], modality.std[band])
                continue
            assert own["pixels"][band] == len(values)
            assert own["mean"][band] == pytest.approx(within.mean(), abs=exact, rel=1e-9)
            assert own["std"][band] == pytest.approx(within.std(), abs=exact, rel=1e-9)
            assert (own["low"][band], own["high"][band]) == pytest.approx((low, high), abs=exact)
    assert json.loads((tmp_path / "stats.json").read_text()) == found
    assert found["tiles"] == 12
    assert found["damaged"] == 0


def test_outliers_do_not_widen_them():
    counts = np.zeros((12, 65536), np.int64)
    counts[:, 1000:2000] = 10
    plain = moments(counts, S2L2A, 0.001)
    counts[:, 65535] = 9  # saturated
    robust, wide = (moments(counts, S2L2A, clip) for clip in (0.001, 0.0))
    assert robust["std"][0] == pytest.approx(plain["std"][0], rel=2e-3)
    assert wide["std"][0] > 6 * plain["std"][0]
    assert robust["mean"][0] == pytest.approx(1499.5, abs=1)


def test_a_band_that_nothing_is_known_of_keeps_the_published_ones(tmp_path):
    for at in range(3):
        write(tmp_path / f"S1RTC/{at}.tif", radar()[:1], x=400_000 + 900 * at, descriptions=["VV"])
    own = build_statistics(tmp_path, tile_size=24, **QUIET)["s1rtc"]
    assert (own["mean"][1], own["std"][1], own["pixels"][1]) == (S1RTC.mean[1], S1RTC.std[1], 0)
    assert own["mean"][0] == pytest.approx(radar()[0].mean(), abs=0.1)


def test_a_store_gives_the_same(root, tmp_path):
    pack(open_tiles(str(root), harmonize=False), tmp_path / "store", **QUIET)
    expected = build_statistics(root, tmp_path / "a.json", **QUIET)
    assert build_statistics(tmp_path / "store", tmp_path / "b.json", **QUIET) == expected


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(root, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_UNIT", 2)
    build_statistics(root, tmp_path / "whole.json", **QUIET)
    calls = []

    def stops(tiles, last=3):
        calls.append(len(tiles))
        if len(calls) > last:
            raise KeyboardInterrupt
        return count_values(tiles)

    monkeypatch.setattr(statistics, "count_values", stops)
    with pytest.raises(KeyboardInterrupt):
        build_statistics(root, tmp_path / "parts.json", **QUIET)
    assert len(list((tmp_path / "parts.json.work").iterdir())) == 3
    damaged = next((tmp_path / "parts.json.work").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    monkeypatch.setattr(statistics, "count_values", lambda tiles: stops(tiles, 99))
    build_statistics(root, tmp_path / "parts.json", **QUIET)
    assert len(calls) == 4 + 4  # of six units two were kept
    assert (tmp_path / "parts.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / "parts.json.work").exists()


def test_other_files_or_settings_take_nothing_from_a_stopped_run(root, tmp_path, monkeypatch):
    def fails(tiles):
        raise AssertionError("counted anew")

    monkeypatch.setattr(statistics.shutil, "rmtree", lambda *args, **kwargs: None)
    build_statistics(root, tmp_path / "stats.json", **QUIET)
    monkeypatch.setattr(statistics, "count_values", fails)
    build_statistics(root, tmp_path / "stats.json", **QUIET)
    with pytest.raises(AssertionError, match="anew"):
        build_statistics(root, tmp_path / "stats.json", modalities=["s1rtc"], **QUIET)


@pytest.mark.usefixtures("dask_from_server")
def test_worker_processes_give_the_same(root, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_UNIT", 3)
    found = [build_statistics(root, tmp_path / f"{n}.json", workers=n, progress=False) for n in (0, 2)]
    assert found[0] == found[1]


def test_damaged_images_are_counted(tmp_path):
    """Of which one band is nodata."""
    black = np.zeros((12, 12), np.uint16)
    rows = {"s2l2a": [product("s2l2a", CELLS[0], pixels={"B05": black}), product("s2l2a", CELLS[1])]}
    root = write_major_tom(tmp_path / "root", rows)
    found = build_statistics(root, **QUIET)
    assert (found["tiles"], found["damaged"]) == (8, 4)
    assert found["s2l2a"]["pixels"][1] == 4 * 144
    assert (root / "statistics.json").is_file()


def test_a_part_of_the_tiles_even_over_the_index(root, tmp_path):
    found = build_statistics(root, tmp_path / "stats.json", tiles=3, **QUIET)
    assert found["tiles"] == 3
    assert found["s2l2a"]["pixels"][2] == 3 * 144


def test_the_command_shows_them_and_names_the_next(root, tmp_path, capsys):
    out = tmp_path / "stats.json"
    main(["stats", str(root), "--out", str(out), "--workers", "0", "--progress", "false", "--modalities", "s1rtc"])
    text = capsys.readouterr().out
    assert "Sentinel-1 RTC, dB" in text
    assert "Sentinel-2" not in text
    assert "-12.76" in text  # the published mean
    assert f"--model.statistics {out}" in text
    assert Normalize("s1rtc", statistics=out).statistics.keys() == {"s1rtc"}


def test_bad_input_is_one_sentence(root, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, message in (
        ({"root": tmp_path / "none"}, "cannot be written|is no folder"),
        ({"root": tmp_path / "none", "out": tmp_path / "x.json"}, "none is no folder"),
        ({"root": root, "out": tmp_path / "no/folder/x.json"}, "cannot be written"),
        ({"root": root, "clip": 0.5}, "`clip` is 0.5: it must be from 0 and up to 0.2"),
        ({"root": root, "tiles": 0}, "`tiles` is 0"),
        ({"root": "s3://bucket/store"}, "is a URL"),
        ({"root": root, "radar_unit": "dB", "out": tmp_path / "x.json"}, "`radar_unit` is no setting"),
    ):
        with pytest.raises(TerraFMError, match=message):
            build_statistics(**given, **QUIET)


def test_chips_of_a_folder(tmp_path):
    write(tmp_path / "S2L2A/a.tif", optics(12, 24))
    found = build_statistics(tmp_path, offset=0, tile_size=24, **QUIET)
    assert found["s2l2a"]["mean"][0] == pytest.approx(optics(12, 24)[0].mean(), rel=2e-3)
