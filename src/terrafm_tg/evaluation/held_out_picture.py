"""A picture of what training has changed: what a search by radar finds, and which parts of a tile look alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, normalize

from terrafm_tg.datasets.tiles.collate import collate_tiles
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.plot import tile_channels, tile_image, tile_picture
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.transforms import MultiCrop
from terrafm_tg.transforms.statistics import Statistics
from terrafm_tg.utils.files import atomic_write

from .held_out import HeldOutFeatures
from .held_out_report import TRAINED, UNTRAINED
from .scores import TOP, TileFeatures, own_ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_TITLES = {UNTRAINED: "before training", TRAINED: "after training"}
_QUERIES, _NEAREST = 6, 3
#: Sign, color (of Okabe and Ito, whose colors color-blind people tell apart) and meaning of a tile that was found.
_SAME_PLACE = ("★", "#d55e00", "the very same place")
_SAME_COVER = ("✓", "#0072b2", "another place of the same land cover")
_OTHER = ("✗", "#aab1b8", "another land cover")
_WHITE = 3500  # digital number that is shown as white
_MIXED = 20  # tiles of the most mixed land cover, of which one's maps are drawn
_BRIGHT, _CLOUD = 0.95, 0.02  # as bright as a cloud; share of such pixels from which on a tile is cloudy


class _Search(NamedTuple):
    """The tiles of one sensor that an encoder finds for queries of another."""

    found: Tensor  # (n, _NEAREST) positions in the bank, nearest first
    place: Tensor  # (n,) of the query's own tile in the list, from 1


def draw_queries(query: TileFeatures, count: int = _QUERIES, seed: int = 0) -> list[int]:
    """Draws queries by lot, one for each of the commonest land covers; more of these where there are fewer covers.

    Args:
        query: Tiles to draw from.
        count: How many.
        seed: Of the draw.

    Returns:
        Positions in ``query``, those of the commonest land cover first.
    """
    tiles = pd.DataFrame({"cover": query.land_cover.numpy()}).sample(frac=1, random_state=seed)
    groups = tiles.groupby("cover")["cover"]
    tiles = tiles.assign(number=groups.cumcount(), size=groups.transform("size"), cover=tiles["cover"])
    return tiles.sort_values(["number", "size", "cover"], ascending=[True, False, True]).index[:count].tolist()


def draw_picture(
    features: Mapping[str, HeldOutFeatures],
    encoders: Mapping[str, nn.Module],
    tiles: TileDataset,
    size: int,
    statistics: Statistics | None = None,
    seed: int = 0,
) -> "Figure | None":
    """Draws what the untrained and the trained encoder find for a few radar images, and their maps of one tile.

    Args:
        features: From :func:`~terrafm_tg.evaluation.held_out.embed_held_out`, of both encoders.
        encoders: The encoders.
        tiles: The dataset that the features' rows belong to.
        size: Height and width in pixels that the features were made with.
        statistics: Those that images are normalized with; the published ones where None.
        seed: Of the draw of the queries.

    Returns:
        The figure; None where no tile was seen by two sensors.
    """
    from matplotlib.figure import Figure

    sides = {name: features[name].query for name in _TITLES}
    sensors = [name for name in MODALITIES if name in sides[TRAINED]]
    if len(sensors) < 2:
        return None
    asked, searched = sensors[0], sensors[-1]  # radar and L2A, where both are there
    queries = sides[TRAINED][asked]
    queries = queries.select(torch.isin(queries.row, sides[TRAINED][searched].row))
    if not len(queries.row):
        return None
    searches = {name: _search(side[asked], side[searched], queries.row) for name, side in sides.items()}
    drawn = draw_queries(queries, seed=seed)
    heights = [1.4 * len(drawn) + 0.9, 1.0, 2.3]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    upper, middle, lower = cast("list[SubFigure]", figure.subfigures(3, 1, height_ratios=heights))
    _draw_search(upper, drawn, queries, sides[TRAINED][searched], searches, tiles, (asked, searched))
    _explain(middle, queries, sides[TRAINED][searched], searches, (asked, searched), seed)
    row = _choose_mixed(tiles, sides[TRAINED], sensors)
    if row is not None:
        _draw_maps(lower, encoders, tiles, row, sensors, size, statistics)
    return figure


def write_nearest(figure: "Figure", folder: Path | str) -> Path:
    """Writes ``nearest_tiles.png`` into ``folder``; returns its path."""
    path = Path(folder) / "nearest_tiles.png"
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _search(query: TileFeatures, bank: TileFeatures, rows: Tensor) -> _Search:
    query = query.select(torch.isin(query.row, rows))
    similarity = normalize(query.x, dim=1) @ normalize(bank.x, dim=1).T
    return _Search(similarity.topk(min(_NEAREST, len(bank.row)), dim=1).indices, own_ranks(query, bank))


def _draw_search(
    part: "SubFigure",
    drawn: Sequence[int],
    queries: TileFeatures,
    bank: TileFeatures,
    searches: Mapping[str, _Search],
    tiles: TileDataset,
    sensors: tuple[str, str],
) -> None:
    """Draws a line per query: the image that is asked with, that of its own place, and what each encoder finds."""
    own = torch.searchsorted(bank.row, queries.row)  # rows ascend
    shown = [[int(own[i]), *(int(j) for search in searches.values() for j in search.found[i])] for i in drawn]
    asked = dict(zip(drawn, _pictures(tiles, queries.row[drawn].tolist(), sensors[0]), strict=True))
    wanted = sorted({j for line in shown for j in line})
    found = dict(zip(wanted, _pictures(tiles, bank.row[wanted].tolist(), sensors[1]), strict=True))
    count = searches[TRAINED].found.shape[1]
    middles = [2 + number * count + count // 2 for number in range(len(searches))]
    lines = _panels(part, len(drawn), [2, *(count for _ in searches)])
    for panels, query, positions in zip(lines, drawn, shown, strict=True):
        cover = int(queries.land_cover[query])
        panels[0].imshow(asked[query])
        name = CLASS_NAMES[cover].split(" / ")[0] if cover >= 0 else "unknown"
        panels[0].set_ylabel(fill(name, 16), fontsize=9)
        for place, (ax, position) in enumerate(zip(panels[1:], positions, strict=True)):
            ax.imshow(found[position])
            if place and position == own[query]:
                _mark(ax, _SAME_PLACE)
            elif place and cover >= 0:
                _mark(ax, _SAME_COVER if bank.land_cover[position] == cover else _OTHER)
        for middle, search in zip(middles, searches.values(), strict=True):
            panels[middle].set_xlabel(f"its own place is number {int(search.place[query])}", fontsize=9)
    lines[0][0].set_title("asked with:\n" + _kind(sensors[0]), fontsize=9.5)
    lines[0][1].set_title("the same place:\n" + _kind(sensors[1]), fontsize=9.5)
    for middle, name in zip(middles, searches, strict=True):
        lines[0][middle].set_title(f"{_TITLES[name]}\nmost alike, second, third", fontsize=9.5)
    part.suptitle(
        f"Which of {len(bank.row)} {_kind(sensors[1])} images shows what a {_kind(sensors[0])} image saw?", fontsize=12
    )


def _explain(
    part: "SubFigure",
    queries: TileFeatures,
    bank: TileFeatures,
    searches: Mapping[str, _Search],
    sensors: tuple[str, str],
    seed: int,
) -> None:
    """Writes what the frames mean, how the queries were drawn, and the shares over all queries."""
    from matplotlib.patches import Patch

    kinds = [
        Patch(color=color, label=f"{sign}  {meaning}") for sign, color, meaning in (_SAME_PLACE, _SAME_COVER, _OTHER)
    ]
    part.legend(handles=kinds, loc="upper center", ncols=3, frameon=False, fontsize=9.5)
    first = {name: (search.place <= TOP).double().mean() for name, search in searches.items()}
    known = queries.land_cover >= 0
    same = bank.land_cover == queries.land_cover[known, None]  # (n, tiles)
    alike = {name: same.gather(1, search.found[known]).double().mean() for name, search in searches.items()}
    said = [
        f"The encoder sees the {_kind(sensors[0])} image alone. Places that training never saw, drawn by lot (seed "
        f"{seed}), one for each of the commonest land covers.",
        f"Over all {len(queries.row)} {_kind(sensors[0])} images: own place among the first {TOP}: "
        f"{_shares(first)}, by chance {min(1.0, TOP / len(bank.row)):.0%}.",
    ]
    if known.any():
        said.append(
            f"The {_NEAREST} most alike of the same land cover: {_shares(alike)}, by chance {same.double().mean():.0%}."
        )
    part.text(0.5, 0.62, "\n".join(said), ha="center", va="top", fontsize=9)


def _shares(values: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{float(value):.0%} {_TITLES[name]}" for name, value in values.items())


def _kind(sensor: str) -> str:
    """Names a sensor for people who have not met it."""
    modality = get_modality(sensor)
    return "radar" if modality.unit == "dB" else f"optical {modality.title.removeprefix('Sentinel-2 ')}"


def _choose_mixed(tiles: TileDataset, side: Mapping[str, TileFeatures], sensors: Sequence[str]) -> int | None:
    """Returns the row of the tile whose maps are drawn: of mixed land cover, and of contrast in the last sensor.

    It is one that all sensors saw; None where there is none.
    """
    rows = side[sensors[0]].row
    for name in sensors[1:]:
        rows = rows[torch.isin(rows, side[name].row)]
    if not len(rows):
        return None
    if "land_cover_share" in tiles.table:
        shares = np.stack(tiles.table["land_cover_share"].iloc[rows.numpy()].to_list())
        rows = rows[np.square(shares).sum(axis=1).argsort(kind="stable")[:_MIXED].copy()]
    pictures = _pictures(tiles, rows[:_MIXED].tolist(), sensors[-1])
    contrast = [x.std() if (x > _BRIGHT).mean() < _CLOUD else 0.0 for x in pictures]
    return int(rows[int(np.argmax(contrast))])


def _draw_maps(
    part: "SubFigure",
    encoders: Mapping[str, nn.Module],
    tiles: TileDataset,
    row: int,
    sensors: list[str],
    size: int,
    statistics: Statistics | None,
) -> None:
    """Draws one tile in each sensor, and the main components of each encoder's patch tokens as colors."""
    count = len(sensors)
    panels = _panels(part, 1, [count] * 3)[0]
    for ax, name in zip(panels, sensors * 3, strict=True):
        ax.set_xlabel(_kind(name), fontsize=9)
    for ax, name in zip(panels, sensors, strict=False):
        ax.imshow(_pictures(tiles, [row], name)[0])
    batch = collate_tiles([tiles[tiles.tile_slice(row)]])
    for number, name in enumerate(_TITLES, start=1):
        maps = token_maps(encoders[name], batch, size, sensors, statistics)
        for ax, colors in zip(panels[number * count :], token_colors(maps), strict=False):
            ax.imshow(colors, interpolation="nearest")
    titles = ("one place in each sensor", *(f"what the encoder tells apart {title}" for title in _TITLES.values()))
    for number, title in enumerate(titles):
        panels[number * count + count // 2].set_title(title, fontsize=9.5)
    part.supxlabel(
        "Colors: the three main components of the patch tokens, of all sensors together, each sensor's mean and spread "
        "taken off. Where two maps\nshare a color, the encoder sees the same. The place: of the "
        f"{_MIXED} held-out ones whose land cover is most mixed, the one of most contrast without clouds.",
        fontsize=9,
    )


@torch.inference_mode()
def token_maps(
    encoder: nn.Module, batch: Mapping[str, Tensor], size: int, sensors: Sequence[str], statistics: Statistics | None
) -> list[NDArray[np.float32]]:
    """Computes a map of patch tokens of the first tile of a batch, a quarter of a patch fine where views are small.

    Windows of ``size`` pixels move over the tile, which is resized to half as much again; a cell has the mean of the
    tokens of all patches over it.

    Args:
        encoder: The encoder.
        batch: Native tiles.
        size: Edge of a window in pixels, divisible by 16.
        sensors: Names of modalities that the tile has.
        statistics: Those that images are normalized with; the published ones where None.

    Returns:
        For each sensor (h, w, D), float32.
    """
    device = next(encoder.parameters()).device
    step = PATCH_SIZE // 4 if size < 112 else PATCH_SIZE  # larger views have patches enough
    cells, edge = PATCH_SIZE // step, size + size // (2 * PATCH_SIZE) * PATCH_SIZE
    views = MultiCrop(list(sensors), statistics=statistics).whole(batch, edge, sensors)
    kernel = torch.ones(1, 1, cells, cells)
    maps = []
    for name in sensors:
        windows = views.images[name][0].unfold(1, size, step).unfold(2, size, step)  # (C, n, n, size, size)
        n = windows.shape[1]
        inputs = windows.permute(1, 2, 0, 3, 4).flatten(0, 1).to(device)
        tokens = torch.cat([cast(Any, encoder).forward_features(x, modality=name)[:, 1:] for x in inputs.split(64)])
        tokens = tokens.float().cpu().view(n, n, size // PATCH_SIZE, size // PATCH_SIZE, -1)
        sums = torch.zeros(tokens.shape[-1] + 1, 1, *(2 * [(edge - PATCH_SIZE) // step + 1]))  # by the patch's corner
        for a in range(tokens.shape[2]):
            for b in range(tokens.shape[3]):
                here = sums[:, 0, a * cells : a * cells + n, b * cells : b * cells + n]
                here[:-1] += tokens[:, :, a, b].permute(2, 0, 1)
                here[-1] += 1
        spread = conv_transpose2d(sums, kernel)[:, 0]
        maps.append((spread[:-1] / spread[-1]).permute(1, 2, 0).numpy())
    return maps


def token_colors(maps: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Returns main components as colors (h, w, 3) in [0, 1], of all maps (h, w, D) or lists of patches together.

    Each map's own mean and total standard deviation are taken off first: what is constant to a sensor tells no place.
    """
    apart = [x.reshape(-1, x.shape[-1]) - x.mean(axis=(0, 1)) for x in maps]
    tokens = torch.from_numpy(np.concatenate([x / max(np.linalg.norm(x), 1e-12) for x in apart]))
    directions = torch.linalg.eigh((tokens.T @ tokens).double())[1].flip(1)[:, :3]
    colors = (tokens.double() @ directions).numpy()
    low, high = np.percentile(colors, (2, 98), axis=0)
    colors = np.clip((colors - low) / np.maximum(high - low, 1e-12), 0, 1).astype(np.float32)
    ends = np.cumsum([len(x) for x in apart])[:-1]
    return [part.reshape(*x.shape[:2], 3) for part, x in zip(np.split(colors, ends), maps, strict=True)]


def _pictures(tiles: TileDataset, rows: Sequence[int], sensor: str) -> list[NDArray[np.float32]]:
    """Returns tiles as RGB (h, w, 3) in one stretch of brightness: that of all, and for optical imagery a fixed one."""
    modality = get_modality(sensor)
    images = [tile_image(tiles[tiles.tile_slice(row)], modality) for row in rows]
    whole = np.concatenate([image for image in images if image is not None], axis=2)
    if modality.unit == "DN":
        channels = [*tile_channels(whole, modality).values()]
        bright = np.clip(np.stack(channels if len(channels) == 3 else channels[:1] * 3, axis=-1) / _WHITE, 0, 1)
        whole = np.nan_to_num(bright**0.6, nan=1.0)  # so that forests are not black
    else:
        whole = tile_picture(whole, modality)
    return np.split(whole, np.cumsum([image.shape[2] for image in images if image is not None])[:-1], axis=1)


def _panels(part: "SubFigure", lines: int, groups: Sequence[int]) -> list[list["Axes"]]:
    """Returns the bare axes of each line, in groups with gaps between them."""
    gap = 0.12
    widths = [width for count in groups for width in (*([1.0] * count), gap)][:-1]
    found = []
    for line in part.subplots(lines, len(widths), width_ratios=widths, squeeze=False):
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        found.append([ax for ax, width in zip(line, widths, strict=True) if width != gap])
    return found


def _mark(ax: "Axes", kind: tuple[str, str, str]) -> None:
    sign, color, _ = kind
    ax.spines[:].set(visible=True, color=color, linewidth=3)
    ax.text(0.04, 0.95, sign, ha="left", va="top", color="white", fontsize=9, transform=ax.transAxes,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
