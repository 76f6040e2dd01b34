"""Pairs: scenes cut to tiles, and joined with those of other sensors that show the same place."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from terrafm_tg.datasets.tiles.bands import band_text
from terrafm_tg.datasets.tiles.outlines import BOX, boxes, edges, from_zones, is_geographic, to_zones
from terrafm_tg.datasets.tiles.table import ALIGNMENT, times
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality
from terrafm_tg.radiometry import Verdict

from .scene import Scene, files_to_columns

#: Modalities in the order in which they give a tile its grid.
ANCHORS = ("s2l2a", "s2l1c", "s1rtc")
#: Columns of a scene that its tiles have by modality.
HELD = ("path", "files", "bands", "verdict", "offset", "product", "date", "steps")
#: Share of a tile that another sensor's scene must cover to be joined.
OVERLAP = 0.5
#: Choices of the S1 scenes within ``max_days`` that a tile is joined with.
JOINS = ("nearest", "all")
#: Choices for images that are smaller than a tile where others are not.
SMALL = ("drop", "pad")
_GRID = ["epsg", "x", "y", "xres", "yres", "height", "width"]
_COARSE = 15.0  # meters of a pixel from which on a tile has 10 m pixels all the same
_LATTICE = 16  # places along each side of a tile by which its cover by a scene of another CRS is measured
_CHUNK = 1 << 13  # pairs of tiles and scenes that are measured at once
_ALIGNED = 1e-3  # of a pixel
_REASONS = {
    1: "no image of {} covers half of the tile",
    2: "the nearest image of {} is more than {:g} days (`max_days`) away",
}
_PAPERS = 534  # pixels of a tile where nobody says another size


@dataclass
class Pairing:
    """Numbers of a join, and sentences on it.

    Args:
        tiles: All tiles.
        joined: Tiles that show a sensor besides the one that gives the grid, by modality.
        warped: Those of them whose pixels lie on another grid (CRS, resolution or alignment) and are warped to the
            tile's, by modality.
        apart: Tiles without a sensor because of a reason, by modality and reason.
        enlarged: Images of 20 or 60 m pixels that are put on a grid of 10 m.
        said: Sentences for people.
    """

    tiles: int = 0
    joined: dict[str, int] = field(default_factory=dict)
    warped: dict[str, int] = field(default_factory=dict)
    apart: dict[str, dict[str, int]] = field(default_factory=dict)
    enlarged: int = 0
    said: list[str] = field(default_factory=list)


def products_table(scenes: Sequence[tuple[Scene, Verdict]]) -> pd.DataFrame:
    """Lists judged scenes, one a row: ``modality``, :data:`HELD`, and the grid of the finest band."""
    rows = []
    for scene, verdict in scenes:
        pattern, files = files_to_columns(scene)
        assert scene.transform is not None
        modality, t = MODALITIES[verdict.modality], scene.transform
        rows.append({
            "modality": modality.name, "path": pattern, "files": files, "bands": band_text(modality, scene.bands),
            "verdict": verdict.to_json(), "offset": verdict.offset, "product": scene.product, "date": scene.time,
            "epsg": scene.epsg, "x": t.c, "y": t.f, "xres": t.a, "yres": -t.e, "height": scene.height,
            "width": scene.width, "steps": _steps(scene, modality), "number": scene.number,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table["date"] = pd.to_datetime(table["date"]).astype("datetime64[us]")
    return table.sort_values(["date", "path", "files"], ignore_index=True)


def _steps(scene: Scene, modality: Modality) -> str:
    """Writes how many pixels of its tiles the stored pixels of each resolution are wide: 1 2 6, or 1 1 1 of a stack."""
    assert scene.transform is not None
    coarse = scene.transform.a > _COARSE and not is_geographic(scene.epsg or 4326)
    enlarged = round(scene.transform.a / 10) if coarse else 1
    held = {band: step * enlarged for band, step in scene.steps.items()}
    return " ".join(
        str(min([res // 10, *(held[band] for band in bands if band in held)])) for res, bands in modality.native.items()
    )


def join_products(
    products: pd.DataFrame,
    tile_size: int,
    max_days: float | None = None,
    join: str = JOINS[0],
    small_images: str = SMALL[0],
) -> pd.DataFrame:
    """Cuts scenes into tiles and joins those of several sensors that show the same place.

    L2A scenes are cut first, then L1C and then S1 scenes that no tile shows yet. A tile is on the grid of its first
    scene. Of each other modality it gets the scene nearest in time that covers half of it at least, whatever CRS,
    resolution or alignment that has. With ``join="all"`` it is listed once per S1 scene in the time window instead, a
    sample each. An S1 or L1C scene that is nearest to no tile makes samples of its own all the same, with the nearest
    optical tile under it, so that each scene is in one sample at least.

    Args:
        products: As from :func:`products_table`.
        tile_size: Scenes are cut into tiles of so many pixels from the upper left corner, without overlap; what is left
            at the edges is not used. Where all are smaller and of one size, they are used whole.
        max_days: Do not join scenes that are further apart in time; any where None. Scenes without a date are joined.
        join: ``"nearest"`` or ``"all"``: the S1 scenes that a tile is joined with.
        small_images: ``"drop"`` cuts no scenes that are smaller than a tile where others are not; ``"pad"`` does,
            missing beyond their edges. They are joined to others' tiles all the same.

    Returns:
        The tile table without names of cells; its ``attrs`` have the numbers (:class:`Pairing`), which warnings say in
        words.

    Raises:
        TerraFMError: If a setting is unknown, or all scenes are smaller than a tile and of several sizes.
    """
    for name, value, choices in (("join", join, JOINS), ("small_images", small_images, SMALL)):
        if value not in choices:
            raise TerraFMError(f"`{name}` must be {' or '.join(map(repr, choices))}, got {value!r}.")
    pairing = Pairing()
    products = _ten_meters(products, pairing)
    samples = _Samples(products, tile_size, np.inf if max_days is None else max_days, join, small_images, pairing.said)
    table = samples.make()
    tiles = _tiles(products, table)
    _tell(products, table, pairing, max_days)
    for sentence in pairing.said:
        warnings.warn(sentence, stacklevel=2)
    tiles.attrs["pairing"] = asdict(pairing)
    return tiles


def _ten_meters(products: pd.DataFrame, pairing: Pairing) -> pd.DataFrame:
    """Puts scenes of 20 or 60 m pixels alone on a grid of 10 m, as the encoder sees them, and says so."""
    degrees = np.array([is_geographic(code) for code in products["epsg"].tolist()])
    coarse = (products["xres"] > _COARSE).to_numpy() & ~degrees
    if coarse.any():
        count, sizes = int(coarse.sum()), sorted({*products["xres"][coarse].tolist()})
        sensors = products["modality"][coarse].value_counts(sort=False)
        each = f" ({', '.join(f'{n:,} of {name}' for name, n in sensors.items())})" if len(sensors) > 1 else ""
        pairing.enlarged = count
        pairing.said.append(
            f"{count:,} {'image has' if count == 1 else f'images{each} have'} pixels of "
            f"{' or '.join(f'{x:g}' for x in sizes)} m "
            f"(first {products['path'].iloc[int(coarse.argmax())].replace('{}', '*')}), enlarged to 10 m: correct the "
            "georeference if it is wrong."
        )
    finer = products.copy()
    for side, res in (("width", "xres"), ("height", "yres")):
        length = (products[side] * products[res] / 10).to_numpy()
        finer[side] = np.where(coarse, np.floor(length + 1e-6), products[side]).astype(np.int64)
        finer[res] = np.where(coarse, 10.0, products[res])
    return finer


class _Samples:
    """Samples of judged scenes: the grid of each, and the row of ``products`` by modality, -1 where it has none."""

    def __init__(
        self, products: pd.DataFrame, tile_size: int, max_days: float, join: str, small_images: str, said: list[str]
    ) -> None:
        self.products, self.max_days, self.join = products, max_days, join
        self.tile_size, self.small_images, self.said = tile_size, small_images, said
        self.size = (0, 0)  # height and width of all tiles, as the first scenes have it
        modality = products["modality"].to_numpy()
        self.scenes = {name: np.flatnonzero(modality == name) for name in ANCHORS if (modality == name).any()}
        bounds = boxes(products.astype({"epsg": np.int32}))
        west, south, east, north = (np.tile(bounds[side], 3) for side in BOX)
        turn = np.repeat([0, -360, 360], len(products))
        near = (turn == 0) | ((east + turn >= -180) & (west + turn <= max(east.max(), 180)))
        self.owners = np.flatnonzero(near) % len(products)
        self.tree = shapely.STRtree(shapely.box(west + turn, south, east + turn, north)[near])

    def make(self) -> pd.DataFrame:
        """Makes them, modality by modality; see :func:`join_products`."""
        parts, used = list[pd.DataFrame](), np.zeros(len(self.products), bool)
        for name, scenes in self.scenes.items():
            left = scenes[~used[scenes]]
            if parts and len(left):
                places = pd.concat(parts)[_GRID].drop_duplicates(ignore_index=True)
                pairs = self._pairs(places, left)
                again = places.loc[pairs["tile"]].reset_index(drop=True).assign(**{name: pairs["scene"].to_numpy()})
                again = self._join(again, name, False)
                parts.append(again[(again[[other for other in self.scenes if other != name]] >= 0).any(axis=1)])
                left = np.setdiff1d(left, parts[-1][name])
            if len(left := self._large(left)):
                tiles = _cut(self.products.iloc[left], self.size).rename(columns={"scene": name})
                parts.append(self._join(tiles, name, True))
            taken = np.concatenate([part[[*self.scenes]].to_numpy().ravel() for part in parts])
            used[taken[taken >= 0]] = True
        return pd.concat(parts, ignore_index=True)

    def _large(self, scenes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Decides the size of tiles, and returns the scenes that are cut into some; see :func:`join_products`.

        Raises:
            TerraFMError: If all are smaller than a tile and of several sizes.
        """
        sizes = self.products[["height", "width"]].to_numpy()[scenes]
        first = self.size == (0, 0)
        if first and len(sizes) and (sizes < self.tile_size).any(axis=1).all() and (sizes == sizes[0]).all():
            self.size = int(min(sizes[0, 0], self.tile_size)), int(min(sizes[0, 1], self.tile_size))
        elif first and len(sizes):
            self.size = self.tile_size, self.tile_size
        little = (sizes < self.size).any(axis=1)
        if not little.any():
            return scenes
        least, at = int(sizes[little].min()), int(little.argmax())
        fitting = least // ALIGNMENT * ALIGNMENT
        name, count = self.products["modality"].iloc[scenes[0]], int(little.sum())
        alone = "" if first else " and in no tile of another sensor"
        tile = "the default tile" if max(self.size) == _PAPERS else "a tile"
        what = (
            f"{count:,} of {len(self.scenes[name]):,} {name} images {'is' if count == 1 else 'are'} smaller than "
            f"{tile} of {max(self.size)} pixels{alone} (down to {least}; first "
            f"{self.products['path'].iloc[scenes[at]].replace('{}', '*')}, {sizes[at, 1]} x {sizes[at, 0]})"
        )
        takes_all = f"set `tile_size` to {fitting}, which all hold" if fitting >= ALIGNMENT else "get larger images"
        if self.small_images == "drop" and first and little.all():
            raise TerraFMError(f"{what}: {takes_all}, or `small_images` to 'pad'.")
        they = "it is" if count == 1 else "they are"
        if self.small_images == "pad":
            self.said.append(f"{what}: {they} filled up with missing pixels.")
            return scenes
        self.said.append(f"{what}: {they} left out; to use all, {takes_all}, or `small_images` to 'pad'.")
        return scenes[~little]

    def _join(self, tiles: pd.DataFrame, name: str, first: bool) -> pd.DataFrame:
        """Adds the scenes of the other modalities to tiles that have one."""
        for other in (other for other in self.scenes if other != name):
            pairs = self._pairs(tiles, self.scenes[other])
            dates, numbers = (self.products[column].to_numpy() for column in ("date", "number"))
            own = tiles[name].to_numpy()[pairs["tile"]]
            pairs["days"] = np.abs((dates[own] - dates[pairs["scene"]]) / np.timedelta64(1, "D"))
            # Images without a date, such as means over months, are told apart by the numbers in names: t1, imgs_1.
            pairs["other"] = numbers[own] != numbers[pairs["scene"]]
            fits = pairs[~(pairs["days"] > self.max_days)].sort_values(["tile", "days", "other", "apart", "scene"])
            if not (first and self.join == "all" and other == "s1rtc"):
                fits = fits.drop_duplicates("tile")
            why = np.ones(len(tiles), np.int8)
            why[pairs["tile"]] = 2
            why[fits["tile"]] = 0
            nearest = pairs.groupby("tile")["days"].min().reindex(range(len(tiles)))
            tiles[f"why_{other}"], tiles[f"days_{other}"] = why, nearest.to_numpy()
            rows = tiles.reset_index(drop=True).join(fits.set_index("tile")["scene"].rename(other))
            tiles = rows.assign(**{other: rows[other].fillna(-1).astype(np.int64)}).reset_index(drop=True)
        return tiles

    def _pairs(self, tiles: pd.DataFrame, scenes: NDArray[np.int64]) -> pd.DataFrame:
        """Lists tiles (by place in the table) with the scenes that cover half of them at least, and how much not."""
        bounds = boxes(tiles.astype({"epsg": np.int32}))
        tile, scene = self.tree.query(shapely.box(*(bounds[side] for side in BOX)), predicate="intersects")
        scene = self.owners[scene]
        pairs = np.unique(np.stack([tile, scene])[:, np.isin(scene, scenes)], axis=1)
        shares = [
            cover(tiles.iloc[t], self.products.iloc[s])
            for t, s in zip(*(np.split(part, range(_CHUNK, pairs.shape[1], _CHUNK)) for part in pairs), strict=True)
        ]
        found = pd.DataFrame({"tile": pairs[0], "scene": pairs[1], "apart": 1 - np.concatenate(shares)})
        return found[found["apart"] <= 1 - OVERLAP].reset_index(drop=True)


def _cut(scenes: pd.DataFrame, size: tuple[int, int]) -> pd.DataFrame:
    """Cuts scenes into tiles of a height and width: the grid of each, and its ``scene``."""
    high, wide = size
    down, across = (np.maximum(scenes[side].to_numpy() // n, 1) for side, n in (("height", high), ("width", wide)))
    repeats = np.repeat(np.arange(len(scenes)), down * across)
    number = np.arange(len(repeats)) - np.repeat(np.cumsum(down * across) - down * across, down * across)
    tiles = scenes.iloc[repeats][_GRID].assign(scene=scenes.index.to_numpy()[repeats]).reset_index(drop=True)
    tiles["x"] += number % across[repeats] * wide * tiles["xres"]
    tiles["y"] -= number // across[repeats] * high * tiles["yres"]
    return tiles.assign(height=np.int32(high), width=np.int32(wide))


def cover(tiles: pd.DataFrame, scenes: pd.DataFrame) -> NDArray[np.float64]:
    """Measures the share of each tile that its scene covers: on the ground, wherever 180 degrees or a pole lies."""
    left, top, right, bottom = edges(tiles, None)
    west, north, east, south = edges(scenes, None)
    codes, others = tiles["epsg"].to_numpy(), scenes["epsg"].to_numpy()
    degrees = np.array([is_geographic(code) for code in others.tolist()], bool)
    same, result = codes == others, np.zeros(len(tiles))
    turn = np.where(degrees & same, 360 * np.rint((left + right - west - east) / 720), 0)
    wide = np.minimum(right, east + turn) - np.maximum(left, west + turn)
    high = np.minimum(top, north) - np.maximum(bottom, south)
    result[same] = (wide.clip(0) * high.clip(0) / (right - left) / (top - bottom))[same]
    if not same.all():
        there = ~same
        steps = (np.arange(_LATTICE) + 0.5) / _LATTICE
        across, down = (part.ravel() for part in np.meshgrid(steps, steps))
        x = left[there, None] + across * (right - left)[there, None]
        y = top[there, None] - down * (top - bottom)[there, None]
        x, y = to_zones(*from_zones(x, y, codes[there]), others[there])
        west, north, east, south = (side[there, None] for side in (west, north, east, south))
        x = x + np.where(degrees[there, None], 360 * np.rint((west + east - 2 * x) / 720), 0)
        result[there] = (_between(x, west, east) * _between(y, south, north)).mean(axis=1)
    return result


def _between(places: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how much of the cell around each place of a lattice, (n, k), lies between two coordinates (n, 1)."""
    lattice = places.reshape(-1, _LATTICE, _LATTICE)
    size = np.abs(np.gradient(lattice, axis=(1, 2))).sum(axis=0).reshape(places.shape)
    size = np.maximum(size, 1e-9)  # 0 at a pole, where latitude turns
    above, below = ((apart / size + 0.5).clip(0, 1) for apart in (places - low, high - places))
    return (above + below - 1).clip(0)


def _tiles(products: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Makes the tile table of samples."""
    tiles = samples[_GRID].astype({"epsg": np.int32, "height": np.int32, "width": np.int32})
    for name in (name for name in ANCHORS if name in samples):
        held = products[list(HELD)].reindex(samples[name]).reset_index(drop=True)  # -1 is none
        for column in HELD:
            tiles[f"{column}_{name}"] = (
                held[column] if column in ("offset", "date") else held[column].astype("category")
            )
        tiles[f"has_{name}"] = samples[name].to_numpy() >= 0
        tiles[f"offset_{name}"] = tiles[f"offset_{name}"].fillna(0).astype(np.int16)
        if not len(tiles[f"bands_{name}"].cat.categories):
            tiles = tiles.drop(columns=f"bands_{name}")  # all tiles have all
        if len(tiles[f"steps_{name}"].cat.categories) < 2:
            tiles = tiles.drop(columns=f"steps_{name}")  # all are stored alike
    dates = tiles.filter(like="date_")
    return tiles.assign(**boxes(tiles), **times(dates.min(axis=1), dates.max(axis=1)))


def _tell(products: pd.DataFrame, samples: pd.DataFrame, pairing: Pairing, max_days: float | None) -> None:
    """Counts what was joined, and says it."""
    pairing.tiles = len(samples)
    names = [name for name in ANCHORS if name in samples]
    paired = bool((samples[names] >= 0).sum(axis=1).gt(1).any())
    for name in names if len(names) > 1 else ():
        has = samples[samples[name] >= 0]
        images = products.iloc[has[name].to_numpy()]
        own = images["epsg"].to_numpy() == has["epsg"].to_numpy()
        for side, res in (("x", "xres"), ("y", "yres")):
            step = (has[side].to_numpy() - images[side].to_numpy()) / has[res].to_numpy()
            own &= np.isclose(images[res], has[res], rtol=1e-6) & (np.abs(step - np.rint(step)) < _ALIGNED)
        pairing.joined[name] = len(has)
        pairing.warped[name] = int((~own).sum())
        reasons = samples.get(f"why_{name}", pd.Series(0, samples.index)).value_counts()
        texts = {i: text.format("it", max_days) for i, text in _REASONS.items() if i in reasons}
        pairing.apart[name] = {text: int(reasons[i]) for i, text in texts.items()}
        lost = [f"; not in {reasons[i]:,} where {text}{_nearest(samples, i, name)}" for i, text in texts.items()]
        if paired and (lost or pairing.warped[name]):
            count = "in all of them " if pairing.warped[name] == len(has) else f"in {pairing.warped[name]:,} of them "
            warped = f", {count * (len(has) > 1)}warped to the tile's grid" if pairing.warped[name] else ""
            pairing.said.append(f"{name} is in {_of(len(has), len(samples))}{warped}{''.join(lost)}.")
    if len(names) > 1 and not paired:  # sentences on each would mirror one another
        reasons = samples.filter(like="why_").max(axis=1).value_counts()
        lost = [
            f"in {_of(int(reasons[i]), len(samples))} {text.format('another sensor', max_days)}"
            f"{_nearest(samples, i, *names)}"
            for i, text in _REASONS.items()
            if i in reasons
        ]
        pairing.said.append(f"No tile shows two sensors: {', and '.join(lost)}.")


def _of(count: int, total: int) -> str:
    """Says how many of all tiles."""
    return f"{count:,} of {total:,} tiles" if total > 1 else "the tile"


def _nearest(samples: pd.DataFrame, reason: int, *names: str) -> str:
    """Says how far away the nearest image of sensors is where that is the reason."""
    days = [samples[f"days_{n}"][samples[f"why_{n}"] == 2].min() for n in names if f"days_{n}" in samples]
    return f", {np.nanmin(days):.0f} at the least" if reason == 2 else ""
