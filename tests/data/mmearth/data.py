"""MMEarth as it is on disk: one HDF5 file with a chunk per place and modality, and three JSON files beside it."""

import json
from pathlib import Path

import h5py
import numpy as np
from torchgeo.datasets import MMEarth

BANDS = {
    "l1c": MMEarth.all_modality_bands["sentinel2"],
    "l2a": [b for b in MMEarth.all_modality_bands["sentinel2"] if b != "B10"],
}
#: Number, middle, zone, level of Sentinel-2, and bands of the ascending and the descending image of each place.
PLACES = (
    ("1000007", -14.5, -57.0, 32721, "l1c", ["VV", "VH"], ["VV", "VH"]),
    ("1000013", 47.2, 8.1, 32632, "l2a", ["VH", "VV"], None),
    ("1000021", 78.0, 15.5, 32633, "l2a", ["HH", "HV"], ["HH", "HV"]),
    ("1000033", 47.9, 8.2, 32632, "l1c", None, ["VV", "VH"]),
)  # fmt: skip


def create(root: Path, subset: str = "MMEarth100k", side: int = 128, repeat: int = 1) -> None:
    """Writes the places; each further repetition lies 0.3 degrees further east."""
    name = MMEarth.filenames[subset]
    folder = root / name
    folder.mkdir(parents=True)
    places = [(f"{int(p[0]) + 100 * i}", p[1], p[2] + 0.3 * i, *p[3:]) for i in range(repeat) for p in PLACES]
    with h5py.File(folder / f"{name}.h5", "w") as file:
        kinds = {"sentinel2": (13, "uint16"), "sentinel1": (8, "float32"), "esa_worldcover": (1, "uint8")}
        for kind, (bands, dtype) in kinds.items():
            shape = (bands, side, side)
            file.create_dataset(kind, (len(places), *shape), dtype, compression="gzip", chunks=(1, *shape))
        numbers = np.dtype([("tile_id", "S100"), ("S2_type", "S10")])
        file.create_dataset("metadata", (len(places),), numbers, compression="gzip", chunks=(1,))
        for i, place in enumerate(places):
            file["metadata"][i] = (place[0], place[4])
            file["sentinel2"][i] = optics(place, side)
            file["sentinel1"][i] = radar(place, side)
            file["esa_worldcover"][i] = np.where(np.arange(side) < side // 4, 10, 40)
    info = {
        p[0]: {"S2_DATE": "2019-07-16", "S2_type": p[4], "CRS": f"EPSG:{p[3]}", "lat": p[1], "lon": p[2],
               "BANDS": {"sentinel2": BANDS[p[4]], "sentinel1_asc": p[5], "sentinel1_desc": p[6]}}
        for p in places
    }  # fmt: skip
    splits = {"train": list(range(len(places))), "val": [], "test": []}
    for kind, content in (("tile_info", info), ("splits", splits), ("band_stats", {})):
        (folder / f"{name}_{kind}.json").write_text(json.dumps(content))


def optics(place: tuple, side: int = 128) -> np.ndarray:
    """Digital numbers (13, side, side); 0 for the bands that the level lacks."""
    numbers = np.random.default_rng(int(place[0])).integers(1, 5000, (13, side, side)).astype(np.uint16)
    numbers[[band not in BANDS[place[4]] for band in BANDS["l1c"]]] = 0
    return numbers


def radar(place: tuple, side: int = 128) -> np.ndarray:
    """Decibels (8, side, side), ascending before descending; minus infinity where there is no image."""
    values = np.random.default_rng(int(place[0]) + 1).normal(-13, 3, (8, side, side)).astype(np.float32)
    bands = MMEarth.all_modality_bands["sentinel1_asc"]
    held = [band in (image or ()) for image in place[5:] for band in bands]
    return np.where(np.array(held)[:, None, None], values, -np.inf)
