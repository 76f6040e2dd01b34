"""``python -m benchmarks.feeding``: how far an embedding moves when TerraFM is fed as seven public projects feed it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rasterio.crs import CRS
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from terrafm_tg.datamodules import SimulatedDataModule
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pixels import read_tile
from terrafm_tg.datasets.tiles.pixels import to_ten_meters
from terrafm_tg.evaluation.held_out import held_out_loaders
from terrafm_tg.evaluation.knn import accuracy, knn_predict
from terrafm_tg.modalities import get_modality
from terrafm_tg.models import TerraFMViT, build_encoder
from terrafm_tg.models.sizes import split_name
from terrafm_tg.radiometry import Settings
from terrafm_tg.transforms import MultiCrop, Normalize
from terrafm_tg.transforms.normalize import affine
from terrafm_tg.utils.files import atomic_write, write_json
from terrafm_tg.utils.progress import with_bar

from . import command

L1C, L2A, S1 = "s2l1c", "s2l2a", "s1rtc"
RGB, RGBN = ("B04", "B03", "B02"), ("B04", "B03", "B02", "B08")
#: Of pixels (n, C, H, W) in the sensor's unit, and the data set's mean and deviation of each band, what goes in.
type Feed = Callable[[Tensor, Tensor, Tensor], Tensor]


def trained(x: Tensor, mean: Tensor, std: Tensor, name: str = L2A) -> Tensor:
    """Normalizes by the statistics of the training, as the encoder expects it."""
    return Normalize(name)(x)


def reflectance(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Divides digital numbers by 10,000, and cuts them to 0 to 1."""
    return (x / 10_000).clamp(0, 1)


def z_scores(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalizes by the data set's own statistics."""
    return (x - mean[:, None, None]) / std[:, None, None]


def compressed(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Takes decibels to linear power, its ``log1p``, and divides by the 99th percentile of the image."""
    x = (10 ** (x / 10)).log1p()
    top = x.flatten(1).quantile(0.99, dim=1)
    return (x / top[:, None, None, None]).clamp(0, 1)


def zero_filled(feed: Feed, bands: tuple[str, ...]) -> Feed:
    """Returns a feed in which all but ``bands`` of the twelve are 0."""
    absent = [i for i, band in enumerate(get_modality(L2A).bands) if band not in bands]
    return lambda x, mean, std: feed(x, mean, std).index_fill(1, torch.tensor(absent), 0.0)


@dataclass(frozen=True)
class Way:
    """One way of feeding the encoder.

    Args:
        title: What is done.
        by: Who does it; empty for one fault of the way above, alone.
        feed: What goes into the stem.
        sensor: Of the images.
        stem: That they are sent through.
        bands: Of the images that are used; all where None. The right embedding is of these.
        fresh: Whether the patch embedding has random weights.
    """

    title: str
    by: str
    feed: Feed = trained
    sensor: str = L2A
    stem: str = L2A
    bands: tuple[str, ...] | None = None
    fresh: bool = False


#: The seven ways, as read in the code of the projects, and single faults of those that have several.
WAYS = (
    Way("L2A through the L1C stem", "AiTLAS, and the published `forward`", stem=L1C),
    Way("reflectance cut to 0–1, L1C stem", "rs-embed, optical", reflectance, stem=L1C),
    Way("the cut alone", "", reflectance),
    Way("`log1p` of power over its 99th percentile", "rs-embed, radar", compressed, S1, S1),
    Way("RGB, nine bands 0, L1C stem", "GeoCrossBench, DEO", zero_filled(trained, RGB), stem=L1C, bands=RGB),
    Way("the zeros alone", "", zero_filled(trained, RGB), bands=RGB),
    Way("RGB and NIR over 3000, eight bands 0", "Fields of the World",
        zero_filled(lambda x, mean, std: x / 3000, RGBN), bands=RGBN),
    Way("the zeros alone", "", zero_filled(trained, RGBN), bands=RGBN),
    Way("z-scores of the data set", "torchgeo-bench", z_scores),
    Way("the same, L1C through the L2A stem", "", z_scores, L1C),
    Way("digital numbers as they are", "DEO", lambda x, mean, std: x),
    Way("patch embedding left random", "a user's training script", fresh=True),
)  # fmt: skip


class Chips(NamedTuple):
    """Images of one sensor in its unit, float32 (n, C, H, W), NaN where missing, and an int64 label (n,) of each."""

    x: Tensor
    label: Tensor


class Moved(NamedTuple):
    """The effect of a way of feeding on the embeddings of one set of images.

    Args:
        level: Mean of what goes into the stem, over all pixels and bands; about 0.5 in training.
        spread: Its standard deviation; about 0.25 in training.
        cosine: Of each embedding to the right one of the same image, mean.
        apart: Of the right embeddings of two different images, mean.
        right: k-NN accuracy of the right embeddings.
        alike: Of embeddings that are all fed this way.
        mixed: Of queries that are fed this way among right ones, as under a head that was fitted to those.
        n: Queries.
    """

    level: float
    spread: float
    cosine: float
    apart: float
    right: float
    alike: float
    mixed: float
    n: int


def embed(model: TerraFMViT, x: Tensor, stem: str) -> Tensor:
    """Returns class tokens, (n, D)."""
    with torch.inference_mode():
        return torch.cat([model(part, modality=stem) for part in x.split(64)])


def as_right(way: Way, x: Tensor) -> Tensor:
    """Feeds a way's images rightly: absent bands at their training mean, which normalizes to 0.5."""
    bands = get_modality(way.sensor).bands
    absent = [i for i, band in enumerate(bands) if band not in (way.bands or bands)]
    return Normalize(way.sensor)(x).index_fill(1, torch.tensor(absent, dtype=torch.long), 0.5)


def moved(
    model: TerraFMViT, fresh: TerraFMViT, way: Way, bank: Chips, query: Chips | None, known: dict[Any, list[Tensor]]
) -> Moved:
    """Measures a way of feeding.

    Args:
        model: The encoder.
        fresh: The same with a random patch embedding.
        way: The way.
        bank: Images whose labels vote.
        query: Images to classify; where None, each of the bank by the nearest other one.
        known: Right embeddings of these images by sensor and bands, to which new ones are added.
    """
    mean = bank.x.transpose(0, 1).flatten(1).nanmean(1)
    std = (bank.x - mean[:, None, None]).square().transpose(0, 1).flatten(1).nanmean(1).sqrt()
    sides = [bank] if query is None else [bank, query]
    if (right := known.get((way.sensor, way.bands))) is None:
        right = known[way.sensor, way.bands] = [embed(model, as_right(way, side.x), way.sensor) for side in sides]
    encoder = fresh if way.fresh else model
    inputs = [way.feed(side.x.nan_to_num(0.0), mean, std) for side in sides]
    wrong = [embed(encoder, x, way.stem) for x in inputs]
    unit = normalize(right[-1], dim=1)
    apart = (unit.sum(0).square().sum() - len(unit)) / (len(unit) * (len(unit) - 1))
    scores = []
    for banked, asked in ((right, right), (wrong, wrong), (right, wrong)):
        if query is not None:
            scores.append(accuracy(knn_predict(asked[1], banked[0], bank.label), query.label))
            continue
        near = normalize(asked[0], dim=1) @ normalize(banked[0], dim=1).T
        scores.append(accuracy(bank.label[near.fill_diagonal_(-2).argmax(1)], bank.label))
    level, spread = inputs[-1].mean().item(), inputs[-1].std().item()
    cosine = cosine_similarity(wrong[-1], right[-1]).mean().item()
    return Moved(level, spread, cosine, apart.item(), *scores, len(unit))


def simulated_chips(root: str, bank: int, size: int) -> dict[str, tuple[Chips, Chips]]:
    """Reads the simulated world's training tiles (the bank) and held-out ones (the queries), with land cover."""
    data = SimulatedDataModule(root, batch_size=32, num_workers=0, val_bank=bank)
    data.prepare_data()
    data.setup("fit")
    crop, found = MultiCrop(), {}
    for place, loader in enumerate(held_out_loaders(data)):
        for batch in with_bar(loader, "Reading tiles"):
            tiles = crop.whole(batch, size)
            for name, image in tiles.images.items():
                scale, shift = (part.float()[:, None, None] for part in affine(get_modality(name)))
                at = tiles.idx(name)
                known = batch["land_cover"][at] >= 0
                part = Chips((image[known] - shift) / scale, batch["land_cover"][at][known])
                found.setdefault(name, ([], []))[place].append(part)
    return {name: (_join(bank), _join(query)) for name, (bank, query) in found.items()}


#: Folders of real chips.
REAL = ("bigearthnet_v2", "bigearthnet", "terramesh")
#: Edge of a corner of a real chip in pixels: four do not overlap, and patches fit into it.
CORNER = 48


def real_chips(root: Path) -> dict[str, tuple[Chips, None]]:
    """Reads the four corners of real chips, each labelled by its chip: the nearest should be of the same place.

    Chips are read in their own pixels, whatever size their georeference gives these: some of BigEarthNet say 60 m.
    """
    found: dict[str, list[Chips]] = {}
    scenes = [(root / folder, *pair) for folder in REAL for pair in find_judged(root / folder, Settings())[1]]
    for place, (folder, scene, verdict) in enumerate(scenes):
        grid = CRS.from_epsg(scene.epsg), scene.transform, (scene.height, scene.width)
        groups = read_tile(folder, scene, verdict, *grid, harmonize=True)
        x = to_ten_meters({r: torch.from_numpy(group) for r, group in groups.items()}, get_modality(scene.modality))
        ends = slice(CORNER), slice(-CORNER, None)
        corners = [x[:, i, j] for i in ends for j in ends]
        found.setdefault(scene.modality, []).append(Chips(torch.stack(corners), torch.full((4,), place)))
    return {name: (_join(parts), None) for name, parts in found.items()}


def _join(parts: list[Chips]) -> Chips:
    return Chips(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def measure(
    weights: str,
    model: str = "terrafm_nano",
    world: str = "data/simulated",
    real: str | None = None,
    bank: int = 800,
    size: int = 96,
    figure: Path | None = None,
    json: Path | None = None,
) -> None:
    """Feeds an encoder as seven public projects feed TerraFM, and measures how far its embeddings move.

    Args:
        weights: Checkpoint of `make pretrain`, or an encoder that `terrafm export` wrote.
        model: Its name.
        world: The simulated world, whose held-out tiles are classified by land cover.
        real: Folder with real chips: bigearthnet_v2, bigearthnet and terramesh; none by default.
        bank: Tiles of the simulated world whose land cover votes.
        size: Pixels to which a tile of it is resized.
        figure: Picture to write.
        json: File to write the numbers to.
    """
    encoder = build_encoder(model, weights).eval()
    torch.manual_seed(0)
    fresh = copy.deepcopy(encoder)
    fresh.patch_embed = build_encoder(split_name(model)[0], depth=1).patch_embed.eval()
    sources: dict[str, Mapping[str, tuple[Chips, Chips | None]]] = {"simulated": simulated_chips(world, bank, size)}
    if real is not None:
        sources["real"] = real_chips(Path(real))
    known: dict[str, dict[Any, list[Tensor]]] = {source: {} for source in sources}
    found = [
        {source: moved(encoder, fresh, way, *chips[way.sensor], known[source]) for source, chips in sources.items()}
        for way in with_bar(WAYS, "Feeding")
    ]
    print_table(found)
    if figure is not None:
        draw(found, figure)
    if json is not None:
        ways = [{"title": way.title, "by": way.by} for way in WAYS]
        write_json(json, [way | {k: v._asdict() for k, v in row.items()} for way, row in zip(ways, found, strict=True)])


def print_table(found: list[dict[str, Moved]]) -> None:
    """Prints the numbers as a table that Markdown reads."""
    table = Table(box=box.MARKDOWN)
    table.add_column("fed")
    table.add_column("by")
    for source in found[0]:
        for column in (f"{source}: goes in", "cosine", "k-NN (fed rightly)", "among right ones"):
            table.add_column(column, justify="right")
    for way, row in zip(WAYS, found, strict=True):
        cells = []
        for m in row.values():
            cells += [f"{m.level:.2f} ± {m.spread:.2f}", f"{m.cosine:.2f}"]
            cells += [f"{m.alike:.2f} ({m.right:.2f})", f"{m.mixed:.2f}"]
        table.add_row(way.title if way.by else f"– {way.title}", way.by, *cells)
    console = Console(width=240)
    console.print(table)
    for source in found[0]:
        for sensor in dict.fromkeys(way.sensor for way in WAYS):
            m = next(row[source] for way, row in zip(WAYS, found, strict=True) if way.sensor == sensor)
            console.print(f"{source}, {sensor}: {m.n} queries; two images of different places: cosine {m.apart:.2f}.")


def draw(found: list[dict[str, Moved]], path: Path) -> None:
    """Draws cosines, and the change of k-NN accuracy, with a line per way."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = chart.subplots(1, 2, sharey=True)
    places = range(len(WAYS))
    colors: dict[str, Any] = {"simulated": "#0072b2", "real": "#d55e00"}
    for shift, source in enumerate(found[0]):
        rows = [row[source] for row in found]
        y = [place + 0.16 * (2 * shift - len(found[0]) + 1) for place in places]
        kind = {"color": colors[source], "zorder": 3}
        left.barh(y, [m.cosine for m in rows], 0.3, label=f"{source} images", **kind)
        left.plot([m.apart for m in rows], y, "|", color="black", ms=9, mew=1.5, zorder=4,
                  label=None if shift else "images of two places, fed rightly")  # fmt: skip
        right.plot(
            [m.right for m in rows], y, "|", color="black", ms=9, mew=1.5, label=None if shift else "fed rightly"
        )
        right.plot([m.alike for m in rows], y, "o", label=f"all fed so, {source}", **kind)
        right.plot([m.mixed for m in rows], y, "o", mfc="white", label=f"among right ones, {source}", **kind)
    left.set(yticks=places, xlabel="cosine to the right embedding", xlim=(min(0, left.get_xlim()[0]), 1))
    titles = [way.title.replace("`", "") for way in WAYS]
    left.set_yticklabels([t if way.by else f"– {t}" for t, way in zip(titles, WAYS, strict=True)])
    left.invert_yaxis()
    right.set(xlabel="k-NN accuracy", xlim=(0, 1))
    for ax in (left, right):
        ax.grid(axis="x", color="#dddddd", zorder=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, ncols=2, fontsize=8)
    with atomic_write(path) as part:
        chart.savefig(part, format="png", dpi=110)


if __name__ == "__main__":
    command(measure)
