"""The twelve datasets of GEO-Bench v1 (Lacoste et al. 2023), and the names and units of the bands in their files."""

from collections.abc import Mapping
from functools import partial

from torchgeo.datasets import BigEarthNet, So2Sat

from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A

from .geobench import FileUnit, GeoBench
from .task import BenchTask, Kind

#: Bands of Sentinel-2 by their names in GEO-Bench's files, in the order of files that have all.
SENTINEL2 = {
    "B01": "01 - Coastal aerosol", "B02": "02 - Blue", "B03": "03 - Green", "B04": "04 - Red",
    "B05": "05 - Vegetation Red Edge", "B06": "06 - Vegetation Red Edge", "B07": "07 - Vegetation Red Edge",
    "B08": "08 - NIR", "B8A": "08A - Vegetation Red Edge", "B09": "09 - Water vapour",
    "B10": "10 - SWIR - Cirrus", "B11": "11 - SWIR", "B12": "12 - SWIR",
}  # fmt: skip
#: Likewise of Sentinel-1 (the Lee-filtered power; the files have VH before VV) and aerial photographs.
_OTHERS = {"VV": "06 - VV.LEE Filtered", "VH": "05 - VH.LEE Filtered"}
_OTHERS |= {"red": "Red", "green": "Green", "blue": "Blue", "nir": "NearInfrared"}
_LANDSAT8 = {
    "red": "04 - Red", "green": "03 - Green", "blue": "02 - Blue", "nir": "05 - NIR", "swir1": "06 - SWIR1",
    "swir2": "07 - SWIR2",
}  # fmt: skip

_L2A = {S2L2A.name: S2L2A.bands}
_RGB = {"rgb": ("red", "green", "blue")}


def _task(
    name: str,
    kind: Kind,
    classes: tuple[str, ...],
    sensors: Mapping[str, tuple[str, ...]],
    size: int,
    counts: tuple[int, int, int],
    *,
    metric: str = "",
    input_size: int = 224,
    mislabelled: bool = False,
    units: Mapping[str, FileUnit] | None = None,
) -> BenchTask:
    folder = f"{'segmentation' if kind == 'segmentation' else 'classification'}_v1.0"
    labelled = dict.fromkeys(sensors, tuple(SENTINEL2)) if mislabelled else None
    names = {
        sensor: tuple(_LANDSAT8[band] if sensor == "landsat8" else (SENTINEL2 | _OTHERS)[band] for band in bands)
        for sensor, bands in (labelled or sensors).items()
    }
    return BenchTask(
        name=name,
        benchmark="GEO-Bench",
        kind=kind,
        classes=classes,
        metric=metric or ("miou" if kind == "segmentation" else "accuracy"),
        sensors=sensors,
        labelled=labelled,
        size=size,
        input_size=input_size,
        counts=counts,
        where=f"download {folder}/{name}.zip of https://huggingface.co/datasets/recursix/geo-bench-1.0 and unpack it "
        "there (`geobench-download` fetches all of them).",
        opener=partial(GeoBench, stored=names, units=units or {}, mislabelled=mislabelled),
    )


#: Six classification and six segmentation datasets.
GEO_BENCH: tuple[BenchTask, ...] = (
    _task(
        "m-eurosat",
        "multiclass",
        (
            "Annual Crop", "Forest", "Herbaceous Vegetation", "Highway", "Industrial Buildings", "Pasture",
            "Permanent Crop", "Residential Buildings", "River", "SeaLake",
        ),
        {S2L1C.name: ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")},
        64,
        (2000, 1000, 1000),
        mislabelled=True,
    ),
    _task(
        "m-bigearthnet", "multilabel", tuple(BigEarthNet.class_sets[43]), _L2A, 120, (20000, 1000, 1000), metric="f1"
    ),
    # The files lack B01 and B09; an encoder may let B02 and B8A stand in, as published evaluations did.
    _task(
        "m-so2sat",
        "multiclass",
        tuple(So2Sat.classes),
        {S1RTC.name: S1RTC.bands, S2L1C.name: tuple(band for band in S2L1C.bands if band not in ("B01", "B09"))},
        32,
        (19992, 986, 986),
        units={S1RTC.name: "power", S2L1C.name: "reflectance"},
    ),
    # Of 13 channels ten are bands, without B06, B09 and B10; the last three are a true-color picture of 8 bits, left
    # out. The level is L2A: the pictures are in Earth Engine's surface reflectance only, and blue is dark.
    _task(
        "m-brick-kiln",
        "multiclass",
        ("not brick kiln", "brick kiln"),
        {S2L2A.name: ("B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12")},
        64,
        (15063, 999, 999),
        mislabelled=True,
    ),
    _task(
        "m-forestnet",
        "multiclass",
        (
            "Oil palm plantation", "Timber plantation", "Other large-scale plantations", "Grassland shrubland",
            "Small-scale agriculture", "Small-scale mixed plantation", "Small-scale oil palm plantation", "Mining",
            "Fish pond", "Logging", "Secondary forest", "Other",
        ),
        {"landsat8": ("red", "green", "blue", "nir", "swir1", "swir2")},
        332,
        (6464, 989, 993),
    ),
    _task("m-pv4ger", "multiclass", ("no solar pv", "solar pv"), _RGB, 320, (11814, 999, 999)),
    _task(
        "m-cashew-plant",
        "segmentation",
        (
            "no data", "well-managed plantation", "poorly-managed plantation", "non-plantation", "residential",
            "background", "uncertain",
        ),
        _L2A,
        256,
        (1350, 400, 50),
        input_size=256,
    ),
    _task(
        "m-SA-crop-type",
        "segmentation",
        (
            "No Data", "Lucerne/Medics", "Planted pastures (perennial)", "Fallow", "Wine grapes", "Weeds",
            "Small grain grazing", "Wheat", "Canola", "Rooibos",
        ),
        _L2A,
        256,
        (3000, 1000, 1000),
        input_size=256,
        units={S2L2A.name: "byte"},
    ),
    _task(
        "m-chesapeake",
        "segmentation",
        (
            "water", "tree-canopy-forest", "low-vegetation-field", "barren-land", "impervious-other",
            "impervious-roads", "no-data",
        ),
        {"naip": ("red", "green", "blue", "nir")},
        256,
        (3000, 1000, 1000),
        input_size=256,
    ),
    _task("m-nz-cattle", "segmentation", ("no cattle", "cattle"), _RGB, 500, (524, 66, 65), input_size=512),
    # The canopy height and the 369 hyperspectral bands are left out: they have another size and no encoder here.
    _task("m-NeonTree", "segmentation", ("no tree", "tree"), _RGB, 400, (270, 94, 93), input_size=400),
    _task("m-pv4ger-seg", "segmentation", ("no solar pv", "solar pv"), _RGB, 320, (3000, 403, 403), input_size=320),
)  # fmt: skip
