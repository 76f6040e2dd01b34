"""Names of bands, and the band that each means."""

import pytest

from terrafm_tg.datasets.scenes.names import OPTICAL, band_set, read_name, read_order

BANDS = {
    "B02": ["B2", "b02", "0_B02", "B02_10m", "S2_B02", "B02 surface reflectance", "blue", "Blue", "Band 1 - Blue",
            "B2, central wavelength 490 nm", "20230302T095029_20230302T095345_T33UXP_B2", "nbart_blue"],
    "B05": ["B5", "rededge1", "RED_EDGE_1", "nbart_red_edge_1", "B5 (Vegetation red edge)"],
    "B08": ["nir", "NIR_BROAD", "B08_10m"],
    "B8A": ["b8a", "B08A", "nir08", "NIR_NARROW", "narrow nir", "B8A narrow NIR"],
    "B09": ["nir09", "water_vapour", "B9"],
    "B10": ["cirrus", "B10"],
    "B11": ["swir16", "SWIR_1", "B11 - SWIR 1"],
    "B12": ["swir22", "SWIR_2"],
    "VV": ["vv", "0_VV", "Sigma0_VV", "iw-vv.rtc", "VV_dB", "VVdB", "T069-147170-IW1_VV"],
    "VH": ["Sigma0_VH_db", "Gamma0_VH", "Amplitude_VH"],
}  # fmt: skip
NONE = ["", None, "NDVI", "Band 2", "1", "B13", "B0", "B08_B04_ratio", "VV/VH", "VV_VH_ratio", "angle", "AOT_10m", "HH",
        "MSK_DETFOO_B02", "B02_stddev", "B4_NIR", "SR_B2", "rededge", "swir",
        "LC08_L2SP_193024_20230302_SR_B4"]  # fmt: skip


@pytest.mark.parametrize(("band", "text"), [(band, text) for band, texts in BANDS.items() for text in texts])
def test_one_band_in_a_name(band, text):
    assert read_name(text).band == band


@pytest.mark.parametrize("text", NONE)
def test_no_band_in_a_name(text):
    assert read_name(text).band == ""


def test_masks_and_units():
    masks = {"SCL": "SCL", "QA60": "QA60", "dataMask": "dataMask", "scl_20m": "SCL"}
    assert {text: read_name(text).mask for text in masks} == masks
    texts = ["Sigma0_VH_db", "VV_dB", "VVdB", "Amplitude_VV", "Intensity_VH", "Sigma0_VV"]
    assert [read_name(text).unit for text in texts] == ["dB", "dB", "dB", "amplitude", "linear", ""]


def test_names_that_differ_in_the_band_alone():
    assert {read_name(f"T33UXP_{band}_10m").rest for band in ("B02", "B8A")} == {"T33UXP_{}_10m"}


def test_an_earth_engine_stack():
    texts = [f"B{n}" for n in (*range(1, 9), "8A", 9, 11, 12)] + ["AOT", "WVP", "SCL", "QA60"]
    order = read_order(texts)
    assert order.problem == ""
    assert order.bands == {band: place for place, band in enumerate(b for b in OPTICAL if b != "B10")}
    assert order.masks == {"SCL": 14, "QA60": 15}
    assert order.skipped == ("AOT", "WVP")


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["0_B2", "1_B2"], "both name B02"),
        (["VV", None], "only 1 of its 2 bands are named"),
        (["B2", "VV"], "optical and radar"),
        (["b1", "b2", "b3", "b4"], "only counted"),
        (["SR_B2", "SR_B3"], "Landsat"),
        (["B4_NIR", "B3_RED"], "names B04 and B08 or B8A"),
    ],
)
def test_names_that_cannot_be_obeyed(texts, problem):
    assert problem in read_order(texts).problem


def test_sorted():
    assert band_set({"B12", "B8A", "B02", "VV"}) == ("VV", "B02", "B8A", "B12")
