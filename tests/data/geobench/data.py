"""The twelve datasets of GEO-Bench v1 as they are on disk, written by geobench's own classes.

Classes differ in colour and texture, so that a model can tell them apart.
"""

import datetime
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import geobench
import numpy as np
from affine import Affine
from geobench.dataset import compute_dataset_statistics
from rasterio.crs import CRS

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_S2 = geobench.sentinel2_13_bands
_NO_CIRRUS = [band for band in _S2 if band.name != "10 - SWIR - Cirrus"]
_CLOUDY = [*_NO_CIRRUS, geobench.CloudProbability()]
_INFRARED = geobench.SpectralBand("NearInfrared", ("nir",), 1, 0.876)
_NEON = [
    geobench.ElevationBand("Canopy Height Model", ("lidar", "CHM"), 0.1),
    geobench.HyperSpectralBands("Neon", n_bands=369, spatial_resolution=1),
]
_RGB = geobench.make_rgb_bands(0.1)
_LANDSAT = geobench.landsat8_9_bands
_NOVEMBER = datetime.date(2019, 11, 15)

#: What geobench's README says the channels of the two datasets with wrong names are; names not of Sentinel-2 are
#: the true-colour picture.
TRUE_BANDS = {
    "m-eurosat": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"),
    "m-brick-kiln": (
        "B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12", "TCI_R", "TCI_G", "TCI_B",
    ),
}  # fmt: skip
#: What the same channels are called in the files.
LABELLED_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@dataclass(frozen=True)
class Kind:
    """A dataset: its bands as the writer names them, the type and the typical number of its pixels, its classes."""

    bands: list
    dtype: type
    level: float
    classes: int
    task: str
    date: datetime.date | None = None


KINDS = {
    "m-eurosat": Kind(_S2, np.int16, 1500, 10, "multiclass"),
    "m-bigearthnet": Kind(_NO_CIRRUS, np.float32, 1500, 43, "multilabel"),
    "m-so2sat": Kind(geobench.sentinel1_8_bands + _S2[1:9] + _S2[-2:], np.float32, 0.15, 17, "multiclass"),
    "m-brick-kiln": Kind(_S2, np.float64, 1500, 2, "multiclass"),
    "m-forestnet": Kind(_LANDSAT[3:0:-1] + _LANDSAT[4:7], np.uint8, 90, 12, "multiclass", _NOVEMBER),
    "m-pv4ger": Kind(_RGB, np.uint8, 110, 2, "multiclass"),
    "m-cashew-plant": Kind(_CLOUDY, np.float32, 1500, 7, "segmentation", _NOVEMBER),
    "m-SA-crop-type": Kind(_CLOUDY, np.int16, 50, 10, "segmentation"),
    "m-chesapeake": Kind([*geobench.make_rgb_bands(1), _INFRARED], np.float32, 110, 7, "segmentation"),
    "m-nz-cattle": Kind(_RGB, np.uint8, 110, 2, "segmentation", datetime.date(2017, 1, 1)),
    "m-NeonTree": Kind([*_RGB, *_NEON], np.uint8, 110, 2, "segmentation"),
    "m-pv4ger-seg": Kind(_RGB, np.uint8, 110, 2, "segmentation"),
}


def folder(root: Path, name: str) -> Path:
    """Where the samples of a dataset lie."""
    part = "segmentation" if KINDS[name].task == "segmentation" else "classification"
    return root / f"{part}_v1.0" / name


def make_geobench(
    root: Path,
    name: str,
    n_train: int = 20,
    n_val: int = 10,
    n_test: int = 10,
    *,
    size: int = 32,
    classes: int | None = None,
    marked: bool = False,
    dates: int = 1,
) -> Path:
    """Writes a small dataset, and returns its folder.

    Args:
        root: The folder of the benchmark.
        name: The dataset.
        n_train: Training samples; classes take turns.
        n_val: Validation samples.
        n_test: Test samples.
        size: Height and width in pixels.
        classes: How many of the classes occur; all of them unless given.
        marked: Fills each channel with its number, from 1: times 100 digital numbers, minus that many dB of radar,
            and as it is of 8-bit pixels.
        dates: How often each band is in a sample; only of datasets with dated bands.
    """
    kind = KINDS[name]
    rng = np.random.default_rng(sorted(KINDS).index(name))
    target = folder(root, name)
    target.mkdir(parents=True)
    occurring = min(classes or kind.classes, kind.classes)
    colours = rng.uniform(0.4, 1.6, (len(kind.bands), kind.classes))
    partition: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    by_class: dict[int, list[str]] = {}
    for split, count in zip(partition, (n_train, n_val, n_test), strict=True):
        for index in range(count):
            sample = f"{split}_{index:04d},40.5_-1.25"  # real names have dots and commas
            label, truth = _truth(rng, kind, index, occurring, size)
            bands = [
                geobench.Band(
                    data=_pixels(rng, kind, number, truth, colours[number], marked),
                    band_info=info,
                    spatial_resolution=10,
                    date=kind.date + datetime.timedelta(days=30 * when) if kind.date else None,
                    transform=Affine(10, 0, 600_000, 0, -10, 5_000_000),
                    crs=CRS.from_epsg(32634),
                )
                for when in range(dates)
                for number, info in enumerate(kind.bands)
            ]
            if kind.task == "segmentation":
                label = geobench.Band(
                    data=truth.astype(np.uint8), band_info=_label_type(kind), spatial_resolution=10, date=kind.date
                )
            else:
                by_class.setdefault(index % occurring, []).append(sample)
            geobench.Sample(bands, label=label, sample_name=sample).write(target)
            partition[split].append(sample)
    _write_folder(target, name, kind, size, occurring, partition)
    if kind.task == "multiclass":
        (target / "label_map.json").write_text(json.dumps(by_class))
    return target


def _label_type(kind: Kind) -> geobench.label.LabelType:
    names = [f"class {number}" for number in range(kind.classes)]
    if kind.task == "segmentation":
        return geobench.SegmentationClasses("label", spatial_resolution=10, n_classes=kind.classes, class_names=names)
    if kind.task == "multilabel":
        return geobench.MultiLabelClassification(kind.classes, names)
    return geobench.Classification(kind.classes, names)


def _truth(
    rng: np.random.Generator, kind: Kind, index: int, occurring: int, size: int
) -> tuple[int | np.ndarray, np.ndarray]:
    """The label, and the class of each pixel: one, a stripe per label, or blocks."""
    first = index % occurring
    if kind.task == "multiclass":
        return first, np.full((size, size), first)
    if kind.task == "multilabel":
        present = sorted({first, (3 * index + 1) % occurring})
        label = np.zeros(kind.classes, int)
        label[present] = 1
        return label, np.repeat(np.array(present).repeat(math.ceil(size / len(present)))[:size, None], size, axis=1)
    blocks = (rng.integers(0, occurring, (4, 4)) + first) % occurring
    return first, np.kron(blocks, np.ones((math.ceil(size / 4),) * 2, int))[:size, :size]


def _pixels(
    rng: np.random.Generator, kind: Kind, number: int, truth: np.ndarray, colour: np.ndarray, marked: bool
) -> np.ndarray:
    """One band: a colour and stripes by class, and noise; a tenth of the size for NEON's coarse bands."""
    name = kind.bands[number].name
    power = "VH" in name or "VV" in name
    if marked:
        mark = number + 1
        unit = 0.01 if kind.level < 1 else 1 if kind.level < 1000 else 100
        return np.full(truth.shape, 10 ** (-mark / 10) if power else mark * unit, kind.dtype)
    stripes = 1 + 0.2 * np.sin(np.arange(truth.shape[1]) * (1 + truth))
    image = kind.level * colour[truth] * stripes * rng.normal(1, 0.05, truth.shape)
    if isinstance(kind.bands[number], geobench.HyperSpectralBands):
        return np.repeat(image[::10, ::10, None], 369, axis=2).astype(np.int16)
    if isinstance(kind.bands[number], geobench.ElevationBand):
        return image[::10, ::10].astype(np.float32)
    limit = 255 if kind.dtype is np.uint8 else np.inf
    return np.clip(image, kind.level / 100, limit).astype(kind.dtype)


def _write_folder(
    target: Path, name: str, kind: Kind, size: int, occurring: int, partition: dict[str, list[str]]
) -> None:
    """Partitions, ``task_specs.pkl`` and ``band_stats.json``."""
    geobench.TaskSpecifications(
        dataset_name=name,
        benchmark_name=target.parent.name,
        patch_size=(size, size),
        n_time_steps=1,
        bands_info=kind.bands,
        label_type=_label_type(kind),
        spatial_resolution=10,
    ).save(target)
    geobench.Partition(partition).save(target, "default")
    train = partition["train"]
    for fraction in FRACTIONS:
        share = max(int(len(train) * fraction), min(len(train), occurring))
        geobench.Partition({**partition, "train": train[:share]}).save(target, f"{fraction:.2f}x_train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # geobench's own, of the two datasets with wrong names
        dataset = geobench.GeobenchDataset(target, split="train")
    _, stats = compute_dataset_statistics(dataset, n_value_per_image=100, n_samples=4)
    text = json.dumps({band: values.to_dict() for band, values in stats.items()})
    (target / "band_stats.json").write_text(text)
