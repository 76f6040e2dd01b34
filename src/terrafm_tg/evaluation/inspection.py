"""A dataset of tiles in words and numbers: sensors, products, bands, units, offsets, places, dates, pairs, values."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrafm_tg.datasets import TileDataset
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality, get_modality
from terrafm_tg.radiometry import OFFSET, UNKNOWN, Verdict

#: Edges of the bins of a histogram, on the scale of the encoder's normalization: 0 and 1 are mean - 2 and + 2 std.
EDGES = np.linspace(-0.5, 1.5, 81)
_TILES, _SIDE = 16, 128  # tiles that are looked at, and pixels along each side of them


@dataclass(frozen=True)
class Look:
    """The pixels of some tiles of one sensor, in numbers.

    Args:
        modality: Which.
        tiles: Number of tiles that were read.
        row: The tile in ``image``.
        image: The one of them that lacks most pixels but has half of them, float32 (C, H, W) in the modality's unit,
            NaN where missing.
        held: The bands that it has, bool (C,).
        missing: Share of the pixels of present bands that are missing.
        histogram: Pixels by band and bin of :data:`EDGES`, int64 (C, bins); beyond the ends in the last ones.
        quantiles: By band that is there: 1st percentile, median, 99th.
        outside: Share of the valid pixels of each band that lie beyond two standard deviations of the encoder's mean.
        damaged: Tiles that could not be read, in words.
    """

    modality: str
    tiles: int
    row: int
    image: NDArray[np.float32]
    held: NDArray[np.bool_]
    missing: float
    histogram: NDArray[np.int64]
    quantiles: dict[str, tuple[float, float, float]]
    outside: dict[str, float]
    damaged: tuple[str, ...] = ()

    @property
    def beyond(self) -> float:
        """Share of all valid pixels that lie beyond two standard deviations."""
        counts = self.histogram.sum(axis=1).tolist()
        shares = [self.outside.get(band, 0.0) for band in get_modality(self.modality).bands]
        return sum(share * count for share, count in zip(shares, counts, strict=True)) / max(sum(counts), 1)

    def scaled(self, band: str) -> float:
        """Returns the median of a band on the scale of the normalization."""
        modality = get_modality(self.modality)
        place = modality.bands.index(band)
        return 0.5 + (self.quantiles[band][1] - modality.mean[place]) / (4 * modality.std[place])

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers, in values that JSON can hold."""
        names = ("1 %", "50 %", "99 %")
        values = {band: dict(zip(names, found, strict=True)) for band, found in self.quantiles.items()}
        shares = {"missing": self.missing, "beyond_two_deviations": self.beyond}
        return (
            {"tiles_read": self.tiles, "damaged": list(self.damaged)}
            | shares
            | {"bands": {band: found | {"beyond": self.outside[band]} for band, found in values.items()}}
        )


def percent_of(share: float) -> str:
    """Writes a share in percent, in which little is not nothing."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def look_at(dataset: TileDataset, modality: Modality, count: int = _TILES, beside: int | None = None) -> Look:
    """Reads some tiles, evenly from all that have the sensor.

    Args:
        dataset: Opened with ``native=False``.
        modality: The sensor.
        count: Tiles at most.
        beside: The tile that is shown of another sensor, which is then shown of this one, too, where it has it.

    Raises:
        TerraFMError: If none of them can be read.
    """
    rows = np.flatnonzero(dataset.table[f"has_{modality.name}"].to_numpy())
    images, damaged = {}, []
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    if beside in rows.tolist():
        chosen[np.abs(chosen - beside).argmin()] = beside
    for row in chosen.tolist():
        try:
            images[row] = dataset[dataset.tile_slice(row)][modality.key].numpy()
        except DamagedTileError as error:
            damaged.append(str(error))
    if not images:
        raise TerraFMError(f"None of {len(damaged)} tiles of {modality.title} can be used, first: {damaged[0]}")
    steps = {row: [max(side // _SIDE, 1) for side in image.shape[1:]] for row, image in images.items()}
    thin = [image[:, :: steps[row][0], :: steps[row][1]] for row, image in images.items()]
    bands = zip(*thin, strict=True)  # one that a tile does not have is no missing pixel
    values = [np.concatenate([x.ravel() for x in band if np.isfinite(x).any()] or [np.empty(0)]) for band in bands]
    valid = {band: x[np.isfinite(x)] for band, x in zip(modality.bands, values, strict=True)}
    scaled = {
        band: 0.5 + (valid[band] - mean) / (4 * std)
        for band, mean, std in zip(modality.bands, modality.mean, modality.std, strict=True)
    }
    there = {row: float(np.isfinite(image).mean()) for row, image in images.items()}
    row = min((r for r in there if there[r] >= max(there.values()) / 2), key=lambda r: there[r])  # shows its mask
    row = beside if beside is not None and beside in images else row
    return Look(
        modality.name,
        len(images),
        row,
        images[row],
        np.isfinite(images[row]).any(axis=(1, 2)),
        1 - sum(map(len, valid.values())) / max(sum(map(len, values)), 1),
        np.stack([np.histogram(x.clip(EDGES[0], EDGES[-1]), EDGES)[0] for x in scaled.values()]),
        {band: tuple(np.percentile(x, (1, 50, 99)).tolist()) for band, x in valid.items() if len(x)},
        {band: float(((x < 0) | (x > 1)).mean()) for band, x in scaled.items() if len(x)},
        tuple(damaged),
    )


def images_of(table: pd.DataFrame) -> pd.DataFrame:
    """Lists the images that a tile table names, each once.

    Returns:
        ``modality``, ``epsg``, and where the table has them ``path``, ``product``, ``date``, ``bands``, ``verdict``,
        ``offset``, ``cloud``.
    """
    parts = []
    for modality in (m for m in MODALITIES.values() if _has(table, m)):
        tiles, ending = table[table[f"has_{modality.name}"]], f"_{modality.name}"
        own = [name for name in tiles if name.endswith(ending)]
        keys = [f"{name}{ending}" for name in ("path", "files", "part", "group", "product", "date")]
        images = tiles.drop_duplicates([key for key in keys if key in own] or ["cell"])[["epsg", *own]]
        images = images.rename(columns=lambda name, ending=ending: name.removesuffix(ending))
        text = {
            name: images[name].astype(object)
            for name in ("path", "product", "bands", "verdict", "proof")
            if name in images
        }
        parts.append(images.assign(modality=modality.name, **text))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"modality": []})


def describe_images(images: pd.DataFrame, kind: str = "") -> dict[str, dict[str, Any]]:
    """Describes the images of each sensor, in values that JSON can hold.

    Args:
        images: As from :func:`images_of`; ``bands_by``, ``masks`` and ``pixel``, in words, may be there.
        kind: Name of the class that reads them.

    Returns:
        By modality: ``images``, their number; the first ``products`` and ``files`` (below the root), and how many
        ``of_products`` and ``of_files`` there are; counts of images
        by value: ``bands``, ``bands_by``, ``masks``, ``units``, ``offsets``, ``proofs``, ``pixel_sizes``, ``crs``;
        ``dates``, the first and the last, and ``undated`` images; ``cloud``, the mean cover in percent, None where it
        is not told.
    """
    modalities = (m for m in MODALITIES.values() if (images["modality"] == m.name).any())
    return {m.name: _describe(images[images["modality"] == m.name], m, kind) for m in modalities}


def _has(table: pd.DataFrame, modality: Modality) -> bool:
    return f"has_{modality.name}" in table and bool(table[f"has_{modality.name}"].any())


_OFFSETS = {0: "no +1000 DN in them", OFFSET: "+1000 DN, taken off", UNKNOWN: "not known"}
#: Unit of radar in archives that all hold the same, by class.
_RADAR = {"MajorTOM": "linear power", "SSL4EOS12Tiles": "dB", "MMEarthTiles": "dB", "PackedTiles": "as it was packed"}


def _describe(images: pd.DataFrame, modality: Modality, kind: str) -> dict[str, Any]:
    def column(name: str) -> pd.Series:
        return images[name].dropna() if name in images else pd.Series(dtype=object)

    optical, everything = modality.unit == "DN", " ".join(modality.bands)
    verdicts = {text: Verdict.from_json(text) for text in column("verdict").unique()}
    units = column("verdict").map(lambda text: unit_in_words(verdicts[text]))
    usual = _RADAR.get(kind, "") if not optical else "digital numbers" if "verdict" not in images else ""
    dates, cloud = pd.to_datetime(column("date")), column("cloud")
    return {
        "images": len(images),
        "of_products": int(column("product").nunique()),
        "of_files": int(column("path").nunique()),
        "products": _first(column("product")),
        "files": [path.replace("{}", "*") for path in _first(column("path"))],
        "bands": _counts(images["bands"].fillna(everything)) if "bands" in images else {everything: len(images)},
        "bands_by": _counts(column("bands_by")),
        "masks": _counts(column("masks")),
        "units": _counts(units) or ({usual: len(images)} if usual else {}),
        "offsets": _counts(column("offset").map(_OFFSETS)) if optical else {},
        "proofs": _alike(column("verdict").map(lambda text: verdicts[text].proof) if verdicts else _reasons(images)),
        "pixel_sizes": _counts(column("pixel")),
        "crs": _counts(column("epsg").map(lambda code: f"EPSG:{code:.0f}")),
        "dates": [str(day.date()) for day in (dates.min(), dates.max()) if not pd.isna(day)],
        "undated": len(images) - len(dates),
        "cloud": float(cloud.mean()) if len(cloud) else None,
    }


def unit_in_words(verdict: Verdict) -> str:
    """Says in what unit numbers are stored, such as "DN = stored x 10000"."""
    name = {"DN": "digital numbers", "linear": "linear power"}.get(verdict.unit, verdict.unit)
    if (verdict.scale, verdict.add) == (1, 0):
        return name
    return f"{verdict.unit} = stored x {verdict.scale:g}" + (f" + {verdict.add:g}" if verdict.add else "")


def _reasons(images: pd.DataFrame) -> pd.Series:
    """Lists reasons of offsets, of which names of products give those that no pixels were asked for."""
    if "proof" not in images:
        return pd.Series(dtype=object)
    named = "offset " + images["offset"].astype(int).astype(str) + " by the baseline in the product's name"
    return images["proof"].where(images["proof"].notna(), named)


def days_apart(table: pd.DataFrame) -> dict[str, int] | None:
    """Finds how many days lie between the images of a tile, of tiles with several sensors.

    Returns:
        ``least``, ``most``, and ``undated``, tiles of which an image has no date; None where no tile has several
        sensors, or the table has no dates.
    """
    names = [m.name for m in MODALITIES.values() if _has(table, m) and f"date_{m.name}" in table]
    held = table[[f"has_{name}" for name in names]].astype(bool).set_axis(names, axis=1)
    dates = pd.DataFrame({name: pd.to_datetime(table[f"date_{name}"]) for name in names})
    paired = held.sum(axis=1) > 1
    if not paired.any():
        return None
    held, dates = held[paired], dates[paired]
    undated = (dates.isna() & held).any(axis=1)
    dates = dates[~undated].where(held[~undated])
    days = (dates.max(axis=1) - dates.min(axis=1)).dt.days
    span = {"least": int(days.min()), "most": int(days.max())} if len(days) else {}
    return span | {"undated": int(undated.sum())}


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().items() if count}


def _alike(sentences: pd.Series) -> dict[str, int]:
    """Counts sentences that differ in their numbers only by the first of them."""
    groups = sentences.groupby(sentences.map(lambda text: re.sub(r"[\d.]+", "#", text)), sort=False)
    found = {group.iloc[0]: len(group) for _, group in groups}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _first(values: pd.Series, count: int = 3) -> list[str]:
    return [str(value) for value in values.unique()[:count]]


def combinations(table: pd.DataFrame) -> dict[str, int]:
    """Counts the tiles by the sensors that they have together, such as ``"s1rtc + s2l2a"``."""
    names = [m.name for m in MODALITIES.values() if _has(table, m)]
    held = table[[f"has_{name}" for name in names]].astype(bool).set_axis(names, axis=1)
    counts = held.value_counts()
    return {" + ".join(n for n, has in zip(names, key, strict=True) if has): int(c) for key, c in counts.items()}


@dataclass(frozen=True)
class Inspection:
    """A dataset as it was understood.

    Args:
        root: Its path or address, as it was named.
        kind: Name of the class that reads it; empty where none does.
        tiles: Number of tiles.
        tile_sizes: The shortest and the longest edge of a tile, in pixels.
        sensors: By modality, as :func:`describe_images` says it, with ``tiles``.
        together: Tiles by the sensors that they have, as :func:`combinations` counts them.
        days: Between the images of a tile, as :func:`days_apart` finds them.
        looks: Of each sensor.
        contradictions: Images whose evidence excludes itself: path, and the sentence that says so.
        refused: Files that are left out: path and reason.
        said: Further conclusions.
        doubts: What a person should look at first although it can be trained on, in words.
        problem: Why it cannot be trained on, one sentence; empty where it can.
    """

    root: str
    kind: str = ""
    tiles: int = 0
    tile_sizes: tuple[int, ...] = ()
    sensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    together: dict[str, int] = field(default_factory=dict)
    days: dict[str, int] | None = None
    looks: list[Look] = field(default_factory=list)
    contradictions: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pixels, in values that JSON can hold."""
        names = ("root", "kind", "tiles", "tile_sizes", "together", "days", "said", "doubts")
        plain = {name: getattr(self, name) for name in names}
        looks = {look.modality: look for look in self.looks}
        sensors = {
            name: sensor | {"pixels": looks[name].to_dict() if name in looks else None}
            for name, sensor in self.sensors.items()
        }
        lists = {
            name: [{"path": path, "reason": reason} for path, reason in getattr(self, name)]
            for name in ("contradictions", "refused")
        }
        trainable = {"trainable": not self.problem, "problem": self.problem or None}
        return trainable | plain | {"sensors": sensors} | lists
