"""The tasks of Copernicus-Bench for which TerraFM has a stem."""

from functools import partial
from pathlib import PurePosixPath

from torchgeo.datasets import (
    CopernicusBenchBigEarthNetS1,
    CopernicusBenchBigEarthNetS2,
    CopernicusBenchCloudS2,
    CopernicusBenchEuroSATS1,
    CopernicusBenchEuroSATS2,
    CopernicusBenchFloodS1,
    CopernicusBenchLCZS2,
)

from terrafm_tg.datasets.labelled.dfc2020 import DFC2020S1, DFC2020S2, IGNORED
from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A

from .copernicus import Reader, open_copernicus
from .copernicus_files import (
    bigearthnet_s1,
    bigearthnet_s2,
    cloud,
    dfc2020_s1,
    dfc2020_s2,
    eurosat,
    flood,
    lcz,
)
from .task import BenchTask, Kind

#: Sentinel-2 L1C with the cirrus band, which other models read and no stem of TerraFM does.
_L1C = {S2L1C.name: (*S2L1C.bands[:10], "B10", *S2L1C.bands[10:])}
_L2A = {S2L2A.name: S2L2A.bands}
_RADAR = {S1RTC.name: S1RTC.bands}


def _task(
    name: str,
    reader: Reader,
    kind: Kind,
    metric: str,
    sensors: dict[str, tuple[str, ...]],
    size: int,
    input_size: int,
    counts: tuple[int, int, int],
    dates: int = 1,
    ignore_index: int | None = None,
) -> BenchTask:
    url = PurePosixPath(str(reader.source.url).format("*"))
    return BenchTask(
        name=name,
        benchmark="Copernicus-Bench",
        kind=kind,
        classes=reader.source.classes,
        metric=metric,
        sensors=sensors,
        size=size,
        input_size=input_size,
        counts=counts,
        dates=dates,
        ignore_index=ignore_index,
        where=f"download {url.parent.name}/{url.name} of https://huggingface.co/datasets/wangyi111/Copernicus-Bench"
        f"{' and unpack it' if url.suffix == '.zip' else ''} into the folder of the benchmarks.",
        opener=partial(open_copernicus, reader),
    )


#: Eight tasks of the paper, and Flood-S1.
COPERNICUS_BENCH: tuple[BenchTask, ...] = (
    _task(
        "Cloud-S2", Reader(CopernicusBenchCloudS2, cloud), "segmentation", "miou", _L1C, 512, 512, (1699, 567, 551)
    ),
    _task(
        "EuroSAT-S1", Reader(CopernicusBenchEuroSATS1, eurosat), "multiclass", "oa", _RADAR, 64, 224,
        (16200, 5400, 5400),
    ),
    _task(
        "EuroSAT-S2", Reader(CopernicusBenchEuroSATS2, eurosat), "multiclass", "oa", _L1C, 64, 224,
        (16200, 5400, 5400),
    ),
    _task(
        "BigEarthNet-S1", Reader(CopernicusBenchBigEarthNetS1, bigearthnet_s1), "multilabel", "map", _RADAR, 120, 224,
        (11894, 6117, 5991),
    ),
    _task(
        "BigEarthNet-S2", Reader(CopernicusBenchBigEarthNetS2, bigearthnet_s2), "multilabel", "map", _L2A, 120, 224,
        (11894, 6117, 5991),
    ),
    _task(
        "DFC2020-S1", Reader(DFC2020S1, dfc2020_s1), "segmentation", "miou", _RADAR, 256, 256, (3156, 986, 986),
        ignore_index=IGNORED,
    ),
    _task(
        "DFC2020-S2", Reader(DFC2020S2, dfc2020_s2), "segmentation", "miou", _L1C, 256, 256, (3156, 986, 986),
        ignore_index=IGNORED,
    ),
    _task(
        "LCZ-S2", Reader(CopernicusBenchLCZS2, lcz, "reflectance"), "multiclass", "oa",
        {S2L1C.name: CopernicusBenchLCZS2.all_bands}, 32, 112, (15000, 5000, 5000),
    ),
    _task(
        "Flood-S1", Reader(CopernicusBenchFloodS1, flood, "power"), "segmentation", "miou", _RADAR, 224, 224,
        (3000, 1000, 1000), dates=2, ignore_index=3,
    ),
)  # fmt: skip
