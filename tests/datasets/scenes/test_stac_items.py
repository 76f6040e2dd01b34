"""Items as providers write them, and what is concluded from each."""

import math
from copy import deepcopy

import pytest

from refusals import refused
from terrafm_tg.datasets.scenes.said import Said, from_properties, told_applied
from terrafm_tg.datasets.scenes.stac.items import Place, item_scene
from terrafm_tg.modalities import MODALITIES

BANDS = MODALITIES["s2l2a"].bands
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
NAMES = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge1",
    "rededge2",
    "rededge3",
    "nir",
    "nir08",
    "nir09",
    "swir16",
    "swir22",
)
COMMON = ("coastal", "blue", "green", "red", *["rededge"] * 3, "nir", "rededge", None, "swir16", "swir22")
PRODUCT = "S2B_MSIL2A_20230302T095029_N0509_R079_T33UXP_20230302T104753"


def item(name: str, collection: str, assets: dict, **told) -> dict:
    told = {key.replace("__", ":"): value for key, value in told.items()}
    held = {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": collection, "assets": assets}
    return held | {"bbox": [16.3, 47.7, 17.8, 48.7], "properties": {"datetime": "2023-03-02T09:50:29.024Z"} | told}


def planetary_computer() -> dict:
    base = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/U/XP/x/IMG_DATA"
    assets = {
        b: {"href": f"{base}/T33UXP_20230302T095029_{b}.tif", "type": COG, "roles": ["data"], "gsd": 10.0,
            "eo:bands": [{"name": b, "common_name": c, "description": f"Band {b}"}]}
        for b, c in zip(BANDS, COMMON, strict=True)
    }  # fmt: skip
    for key in ("AOT", "WVP", "SCL", "visual", "preview"):
        assets[key] = {"href": f"{base}/{key}.tif", "type": COG, "roles": ["data"]}
    assets["granule-metadata"] = {"href": f"{base}/MTD_TL.xml", "type": "application/xml", "roles": ["metadata"]}
    images = {k: a for k, a in assets.items() if k != "granule-metadata"}  # what open_stac passes on
    told = {"s2__processing_baseline": "05.09", "eo__cloud_cover": 12.5, "platform": "Sentinel-2B"}
    return item(PRODUCT.replace("_N0509", ""), "sentinel-2-l2a", images, s2__product_uri=f"{PRODUCT}.SAFE", **told)


def earth_search(applied: bool | None = True) -> dict:
    base = "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/33/U/XP"
    assets = {}
    for band, name in zip(BANDS, NAMES, strict=True):
        held = {"nodata": 0, "data_type": "uint16", "spatial_resolution": 10, "scale": 0.0001, "offset": -0.1}
        said = {"eo:bands": [{"name": name, "common_name": name}], "raster:bands": [held], "roles": ["data"]}
        assets[name] = {"href": f"{base}/{band}.tif", "type": COG} | said
        assets[f"{name}-jp2"] = {"href": f"s3://sentinel-s2-l2a/{band}.jp2", "type": "image/jp2"} | said
    assets["scl"] = {"href": f"{base}/SCL.tif", "type": COG, "roles": ["data"]}
    assets["visual"] = {"href": f"{base}/TCI.tif", "type": COG, "roles": ["visual"]}
    more = {} if applied is None else {"earthsearch__boa_offset_applied": applied}
    told = {"s2__processing_baseline": "05.11", "platform": "sentinel-2b", "grid__code": "MGRS-33UXP"}
    return item("S2B_33UXP_20230302_0_L2A", "sentinel-2-l2a", assets, **told, **more)


def copernicus() -> dict:
    base, assets = f"s3://eodata/Sentinel-2/MSI/L2A/{PRODUCT}.SAFE/GRANULE/x/IMG_DATA", {}
    for band, name, res in zip(BANDS, NAMES, MODALITIES["s2l2a"].resolutions, strict=True):
        for meters in (10, 20, 60):
            if meters >= res:
                assets[f"{band}_{meters}m"] = {
                    "href": f"{base}/R{meters}m/{band}.jp2", "type": "image/jp2", "gsd": meters, "nodata": 0,
                    "bands": [{"name": band, "eo:common_name": name}], "raster:scale": 0.0001, "raster:offset": -0.1,
                    "proj:code": "EPSG:32633", "proj:shape": [109800 // meters] * 2,
                    "proj:transform": [meters, 0, 600000, 0, -meters, 5400000],
                }  # fmt: skip
    assets["SCL_20m"] = {"href": f"{base}/R20m/SCL.jp2", "type": "image/jp2", "gsd": 20}
    return item(PRODUCT, "sentinel-2-l2a", assets, processing__version="05.09", processing__level="L2")


def radar(collection: str = "sentinel-1-rtc", keys: tuple[str, ...] = ("vv", "vh"), **told) -> dict:
    base = "https://sentinel1euwestrtc.blob.core.windows.net/sentinel1-grd-rtc/x/measurement"
    assets = {key: {"href": f"{base}/iw-{key}.rtc.tiff", "type": COG, "roles": ["data"]} for key in keys}
    name = "S1A_IW_GRDH_1SDV_20230302T050520_20230302T050545_047466_05B2D9" + "_rtc" * (collection == "sentinel-1-rtc")
    return item(name, collection, assets, sat__orbit_state="descending", platform="SENTINEL-1A", **told)


def scene(held: dict, modality: str | None = None):
    return item_scene(held, Place.of(held), modality)


def test_planetary_computer():
    found = scene(planetary_computer())
    assert (found.modality, found.product, found.cloud_cover) == ("s2l2a", PRODUCT, 12.5)
    assert str(found.time) == "2023-03-02 09:50:29.024000"
    assert [*found.bands] == [*BANDS]
    assert all(source.path.endswith(f"_{band}.tif") for band, source in found.bands.items())
    assert [*found.masks] == ["SCL"]
    assert (found.claims.baseline, found.claims.offset_applied, found.claims.scale) == (509, None, None)
    assert found.claims.source["baseline"] == "STAC `s2:processing_baseline`"


@pytest.mark.parametrize("applied", [True, False, None])
def test_earth_search(applied):
    found = scene(earth_search(applied))
    assert {band: source.path.rpartition("/")[2] for band, source in found.bands.items()} == {
        band: f"{band}.tif" for band in BANDS
    }
    claims = found.claims
    assert (claims.baseline, claims.offset_applied, claims.nodata) == (511, applied, 0)
    assert (claims.scale, claims.offset) == (0.0001, -0.1)
    assert Place.of(earth_search()).tile == "33UXP"


def test_copernicus_has_each_band_in_several_resolutions():
    found = scene(copernicus())
    expected = {band: f"R{res}m/{band}.jp2" for band, res in zip(BANDS, MODALITIES["s2l2a"].resolutions, strict=True)}
    assert {b: s.path.partition("IMG_DATA/")[2] for b, s in found.bands.items()} == expected
    assert found.masks["SCL"].path.endswith("R20m/SCL.jp2")
    assert (found.epsg, found.height, found.transform.a, found.transform.f) == (32633, 10980, 10, 5400000)
    assert (found.claims.baseline, found.claims.offset) == (509, -0.1)


def test_radar():
    found = scene(radar())
    assert (found.modality, [*found.bands], found.claims.unit) == ("s1rtc", ["VV", "VH"], "linear")
    assert (found.orbit_state, found.platform, found.claims.baseline) == ("descending", "sentinel-1a", None)
    assert [*scene(radar(keys=("vv",))).bands] == ["VV"]
    assert scene(radar("OPERA_L2_RTC-S1_V1", ("0_VV", "0_VH"))).claims.unit is None  # its numbers tell


def test_a_stack_in_one_asset_is_read_by_the_names_of_its_bands():
    bands = [{"name": band} for band in ("B04", "B03", "B02", "B08")]
    stack = {"data": {"href": "https://h/x.tif", "type": COG, "bands": bands}}
    found = scene(item(PRODUCT, "mine", stack))
    assert {band: source.index for band, source in found.bands.items()} == {"B02": 3, "B03": 2, "B04": 1, "B08": 4}


def broken(**changes):
    held = deepcopy(planetary_computer())
    for key, value in changes.items():
        held["properties" if ":" in key else "assets"][key] = value
    return held


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (radar("sentinel-1-grd"), r"slant or ground range \(sentinel-1-grd\).*take a collection of Sentinel-1 RTC"),
        (broken(**{"s2:product_type": "S2MSI1C"}), r"s2l1c by `s2:product_type` \(S2MSI1C\) and s2l2a by its collect"),
        (item("x", "HLSS30.v2.0", planetary_computer()["assets"]), "tells its sensor and level: set `modality`"),
        (item(PRODUCT, "mine", {"data": {"href": "https://h/x.tif", "type": COG}}), "no GeoTIFF or JPEG 2000 of a"),
        (item(PRODUCT, "mine", radar()["assets"]), r"is s2l2a by its product .* and has the bands VV, VH|bands VH, VV"),
        (broken(B04={"href": "https://h/x.tif", "eo:bands": [{"name": "B04", "common_name": "green"}]}), "names B04"),
        (broken(B04={"href": "https://h/x.tif", "eo:bands": [{"name": "B04"}], "raster:bands": [{"scale": 1e-4}]}),
         "different values of `scale`"),
    ],
)  # fmt: skip
def test_what_is_refused(held, said):
    with refused(match=said):
        scene(held)


def test_a_setting_names_the_sensor_of_items_that_do_not():
    held = item("x", "mine", planetary_computer()["assets"])
    assert scene(held, "s2l1c").modality == "s2l1c"
    assert scene(held, "s2l1c").claims.source["modality"] == "`modality`"


@pytest.mark.parametrize("wild", [None, 3, "x", [], {}, [None], math.nan, True, {"bands": 3}])
def test_wild_values_are_passed_over_or_refused(wild):
    for change in ("datetime", "eo:cloud_cover", "proj:shape", "s2:processing_baseline", "platform", "sat:orbit_state"):
        held = planetary_computer()
        held["properties"][change] = wild
        assert scene(held).modality == "s2l2a"
    for key in ("bbox", "id", "collection", "properties"):
        held = planetary_computer() | {key: wild}
        Place.of(held)
    for key in ("eo:bands", "bands", "raster:bands", "roles", "gsd", "proj:transform", "type"):
        held = planetary_computer()
        held["assets"]["B04"][key] = wild
        assert scene(held).bands["B04"].path.endswith("_B04.tif")


@pytest.mark.parametrize(
    "told",
    [
        {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True},
        {"processing:version": "N0511"},
        {"earthsearch:processing_baseline": "02.14", "sentinel:boa_offset_applied": False},
        {"processing:baseline": "04.00", "earthsearch:boa_offset_applied": "yes"},
    ],
)
def test_an_item_beside_files_says_what_it_says_in_a_catalog(told):
    """By the words of the keys: one reading, whether the JSON lies beside files or comes from a search."""
    beside = from_properties(Said(), told, "its item")
    baseline = {"05.09": 509, "N0511": 511, "02.14": 214, "04.00": 400}[next(iter(told.values()))]
    applied = next((x for x in told.values() if isinstance(x, bool)), None)
    assert (beside.baseline, beside.offset_applied) == (baseline, applied)
    found = Place.of({"id": "x", "properties": told})
    assert found.baseline == baseline
    assert told_applied(told)[0] is applied
