"""From scenes to maps of a fine-tuned head: everything that ``terrafm map`` does."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from terrafm_tg import __version__
from terrafm_tg.datasets.scenes.remote import reading_with
from terrafm_tg.datasets.scenes.stac.catalog import sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.embed import about_image, without_secrets
from terrafm_tg.inference.engine import Spent, WindowSettings
from terrafm_tg.inference.images import Image, SceneImage
from terrafm_tg.inference.preview import write_preview
from terrafm_tg.inference.products.layers import count_classes, write_layer
from terrafm_tg.inference.products.legend import Legend, make_legend
from terrafm_tg.inference.products.picture import write_picture
from terrafm_tg.inference.products.polygons import FORMATS, check_format, write_polygons
from terrafm_tg.inference.run import MapWork, plan_maps, run_maps
from terrafm_tg.inference.sources import find_images
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, POSITIVE, checked
from terrafm_tg.utils.files import content
from terrafm_tg.utils.progress import with_bar
from terrafm_tg.utils.remote import RemoteReader

from .head import find_run
from .pairs import pair
from .predictor import HeadPredictor, Probabilities, layers_of


@dataclass
class MapResult:
    """Files and areas of one image's map.

    Args:
        name: Of the image.
        files: That were written, the map first.
        area: Square kilometers of each class; empty for numbers.
        names: Of the classes.
        missing: Square kilometers without a value.
        vector: The file of polygons.
        polygons: How many are in it.
    """

    name: str
    files: list[Path]
    area: dict[int, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    missing: float = 0.0
    vector: Path | None = None
    polygons: int = 0


class MapRun(NamedTuple):
    """The outcome of :func:`make_maps`.

    Args:
        maps: One per image.
        spent: Seconds, and what was done in them.
    """

    maps: list[MapResult]
    spent: Spent


@checked(window=COUNT, stride=COUNT, batch_size=COUNT, overlap=(0, 0.9), simplify=POSITIVE,
         min_area=NOT_NEGATIVE, max_days=NOT_NEGATIVE, workers=NOT_NEGATIVE, max_gb=NOT_NEGATIVE)  # fmt: skip
def make_maps(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ckpt_path: str | os.PathLike[str] | None = None,
    before: str | os.PathLike[str] | None = None,
    probabilities: Probabilities = "uint8",
    polygons: str | os.PathLike[str] | None = None,
    simplify: float | None = None,
    min_area: float | None = None,
    picture: bool = True,
    labels: list[str] | None = None,
    colors: list[str] | dict[str, str] | None = None,
    value_unit: str = "",
    window: int | None = None,
    overlap: float = 0.5,
    stride: int | None = None,
    task: str | None = None,
    model_modality: str | None = None,
    model_bands: list[str] | None = None,
    model_mean: float | list[float] | None = None,
    model_std: float | list[float] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    max_days: float | None = None,
    mask_clouds: bool = False,
    search: StacSearch | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    max_gb: float | None = None,
    progress: bool = True,
    **settings: Any,
) -> MapRun:
    """Maps scenes with a fine-tuned head.

    Windows overlap, and where they do their probabilities are blended by smooth weights. A map that was stopped goes on
    where it was.

    Args:
        source: Scene (file, SAFE, zipped or not), folder of scenes, archive of tiles, store, or a STAC item, collection
            or API.
        out: The map of one image, which ends with ``.tif``; or a folder, for a map of each image.
        ckpt_path: Lightning checkpoint of a task with a head, or the folder of its run.
        before: The earlier scene of a head that compares two dates; it is put on the grid of ``source``.
        probabilities: Keep those of each class as ``uint8`` (of 254) or ``float32``, or ``none`` of them.
        polygons: Write polygons of the classes, too: a file that ends with .gpkg, .geojson or .parquet; of several
            images a format, such as gpkg.
        simplify: Meters to which borders of polygons are simplified, without gaps between them.
        min_area: Square meters below which an area becomes part of its largest neighbor, in the polygons.
        picture: Write a quick look with the legend, too.
        labels: Names of the classes, where the checkpoint has none or others are wished.
        colors: ``#rrggbb`` of the classes, in order or by name.
        value_unit: Unit of a regression's numbers, such as Mg/ha.
        window: Edge of a window in pixels of 10 m; that of the training images by default, else 224.
        overlap: Share of a window that the next one covers.
        stride: Of a head with one class per image: pixels of a cell of the map, the window by default.
        task: Class of the task where it is one of your own: package.module.Class.
        model_modality: What a model reads that is no TerraFM: s1rtc, s2l1c or s2l2a.
        model_bands: The bands that it reads, in order; all of the modality's by default.
        model_mean: Mean of each band, or one for all, with which it was trained.
        model_std: Standard deviation likewise: it reads (x - mean) / std.
        batch_size: Windows at once; 8 on a processor and 64 on a GPU by default.
        device: Such as cpu or cuda:1; a GPU where there is one.
        max_days: Do not join images of two sensors that are further apart in time.
        mask_clouds: Count pixels as missing that the product's own mask calls cloud or its shadow.
        search: Conditions for items of a STAC catalog.
        workers: Processes of this machine (a GPU each where there are several); 0 for this one alone.
        scheduler: Address of a Dask cluster that does the work, instead of processes of this machine.
        max_gb: The most that may be fetched from servers, in GB.
        progress: Show on standard error how far the work is.
        settings: The user's word on pixels, as for :func:`~terrafm_tg.inference.sources.find_images`.

    Returns:
        What was made of each image, and the time that it took.

    Raises:
        TerraFMError: If the checkpoint, the source or a setting cannot be used, or a file is there already.
    """
    if ckpt_path is None:
        raise TerraFMError("There is no `ckpt_path`: give the checkpoint of a fine-tuned task, or its run's folder.")
    predictor = HeadPredictor(
        find_run(ckpt_path), window, probabilities, model_mean, model_std, device, batch_size,
        task=task, modality=model_modality, bands=model_bands, labels=labels,
    )  # fmt: skip
    head = predictor.head
    if (before is None) == (head.dates == 2):
        raise TerraFMError(
            f"{ckpt_path} compares two dates: give the earlier scene as `before`."
            if before is None
            else f"{ckpt_path} reads one date: leave `before` out, or give the checkpoint of a change detection."
        )
    if polygons is not None and head.kind == "regression":
        raise TerraFMError(f"{ckpt_path} predicts numbers, which have no polygons: leave `polygons` out.")
    if stride is not None and not head.tile:
        raise TerraFMError(f"{ckpt_path} predicts every pixel: leave `stride` out.")
    legend = None
    if head.kind != "regression":
        more = "none of the labels" if head.kind == "multilabel" else None
        legend = make_legend(head.names, head.classes - (more is not None), colors, more)
    with reading_with(RemoteReader(budget=math.inf if max_gb is None else max_gb * 1e9, sign=sign_blob)):
        find = {"search": search, "max_days": max_days, "mask_clouds": mask_clouds, **settings}
        images = _usable(find_images(source, **find), predictor, os.fspath(source))
        if before is not None:
            images = _paired(_usable(find_images(before, **find), predictor, os.fspath(before)), images)
        plan = WindowSettings(predictor.window, _aligned(overlap, predictor), stride)
        out = Path(out)
        about = {
            "source": without_secrets(source), "model": type(head.task).__name__,
            "weights": Path(predictor.checkpoint).name, "checkpoint": content(Path(predictor.checkpoint)),
            "window": plan.window, "overlap": plan.overlap, "stride": stride or predictor.cell,
            "masked_clouds": mask_clouds, "software": f"terrafm-tg {__version__}",
        }  # fmt: skip
        places = _places(out, images, None if polygons is None else Path(polygons))
        work = out.with_name(f".{out.name}.unfinished") if _is_file(out) else out / ".unfinished"
        if not work.exists() and (there := next((path for path, _ in places if path.exists()), None)):
            raise TerraFMError(f"{there} is there already: remove it, or give another `out`.")
        console = Console(stderr=True, quiet=not progress)
        works = plan_maps(
            images,
            predictor,
            plan,
            work,
            lambda image: about | _about(image, predictor),
            predictor.bands,
            predictor.dtype,
        )
        spent = run_maps(works, predictor, plan, console, workers, scheduler, "Mapping")
    extras = _Extras(legend, value_unit, simplify, min_area, picture)
    start = time.perf_counter()
    results = [
        _write(one, path, vector, predictor, extras)
        for one, (path, vector) in zip(with_bar(works, "Writing", shown=progress), places, strict=True)
    ]
    spent.writing += time.perf_counter() - start
    shutil.rmtree(work)
    return MapRun(results, spent)


def _aligned(overlap: float, predictor: HeadPredictor) -> float:
    """Returns the nearest overlap by which the tokens of one window lie on those of the next."""
    head, window = predictor.head, predictor.window
    if head.tile or head.input_size is not None:
        return overlap
    tokens = window // head.divisor
    return min(round(overlap * tokens), tokens - 1) / tokens


class _Extras(NamedTuple):
    """Choices for what is written: the legend of classes, the unit of numbers, how polygons are made simpler."""

    legend: Legend | None
    unit: str
    simplify: float | None
    min_area: float | None
    picture: bool


def _usable(images: Sequence[Image], predictor: HeadPredictor, source: str) -> list[Image]:
    """Returns the images that show what the head reads.

    Raises:
        TerraFMError: If none does.
    """
    bands = predictor.head.bands
    found, reason = [], ""
    for image in images:
        shared = [name for name in bands if name in image.products]
        if not shared:
            reason = reason or (
                f"{image.name} holds {', '.join(image.products)}, and the head reads {' or '.join(bands)}"
            )
            continue
        lacking = {name: _lacking(image, name, bands[name]) for name in shared}
        if all(lacking.values()):
            name = shared[0]
            reason = reason or (
                f"{image.name} lacks {', '.join(lacking[name])} of {name}, and the head reads {', '.join(bands[name])}"
            )
            continue
        found.append(image)
    if not found:
        raise TerraFMError(f"{source} cannot be mapped with this head: {reason}.")
    return found


def _lacking(image: Image, name: str, bands: Sequence[str]) -> list[str]:
    """Names the bands that none of an image's scenes has; of tiles all are there."""
    if not isinstance(image, SceneImage):
        return []
    held = {band for scene, _ in image.scenes[name] for one in scene.images for band in one.bands}
    return [band for band in bands if band not in held and band != "B10"]  # which no stem reads


def _paired(earlier: Sequence[Image], images: Sequence[Image]) -> list[Image]:
    """Joins two dates.

    Raises:
        TerraFMError: If there is not one image of each.
    """
    if len(earlier) != 1 or len(images) != 1:
        raise TerraFMError(
            f"`before` holds {len(earlier)} images and the other source {len(images)}: give one scene of each date."
        )
    return [pair(earlier[0], images[0])]


def _places(out: Path, images: Sequence[Image], polygons: Path | None) -> list[tuple[Path, Path | None]]:
    """Returns the path of each image's map, and of its polygons.

    Raises:
        TerraFMError: If one file is asked for and there are several images, or an ending is of no format.
    """
    if _is_file(out) and len(images) > 1:
        raise TerraFMError(f"The source holds {len(images)} images, and `out` is one file, {out}: give a folder.")
    if polygons is not None and polygons.suffix and len(images) > 1:
        raise TerraFMError(
            f"The source holds {len(images)} images, and `polygons` is one file, {polygons}: give a format, such as "
            "gpkg."
        )
    ending = None
    if polygons is not None and not polygons.suffix:
        ending = f".{str(polygons).lower()}"
        if ending not in FORMATS:
            raise TerraFMError(f"`polygons` is {polygons}: give a file or a format, {', '.join(FORMATS)}.")
    elif polygons is not None:
        check_format(polygons)
    paths = [out if _is_file(out) else out / f"{image.name}.tif" for image in images]
    return [(path, path.with_suffix(ending) if ending else polygons) for path in paths]


def _is_file(out: Path) -> bool:
    return out.suffix.lower() in (".tif", ".tiff")


def _about(image: Image, predictor: HeadPredictor) -> dict[str, Any]:
    """Tells what an image is made of, as far as the head reads it."""
    told = about_image(image)
    used = [name for name in predictor.names if name in image.products]
    return (
        told
        | {key: {n: told[key][n] for n in used if n in told[key]} for key in ("products", "dates")}
        | {"modalities": used}
    )


def _write(work: MapWork, path: Path, vector: Path | None, predictor: HeadPredictor, extras: _Extras) -> MapResult:
    """Writes the files of one map."""
    parts, result, legend, shares = work.parts, MapResult(work.image.name, [path]), extras.legend, list[float]()
    if legend is not None:
        pixel = abs(parts.affine.a * parts.affine.e) / 1e6
        counts, missing = count_classes(parts, len(legend.names))
        result.names, result.missing = legend.names, missing * pixel
        result.area = {number: float(count * pixel) for number, count in enumerate(counts)}
        shares = (counts / max(int(counts.sum()), 1)).tolist()
    # The map itself takes its name last: where it is there, all is.
    draft = path.with_name(f".{path.stem}.draft.tif")
    for layer in layers_of(predictor, legend, _band_names(predictor), extras.unit):
        own = path.with_name(f"{path.stem}{layer.ending}{path.suffix}")
        write_layer(draft if own == path else own, parts, layer)
        result.files += [] if own == path else [own]
    if vector is not None and legend is not None:
        result.vector, result.polygons = vector, write_polygons(vector, draft, legend, extras.simplify, extras.min_area)
        result.files.append(vector)
    if extras.picture:
        write_picture(path.with_suffix(".png"), draft, work.image.name, legend, shares, extras.unit)
        result.files.append(path.with_suffix(".png"))
    write_preview(work.preview, path.with_suffix(".preview.tif"))
    result.files.append(path.with_suffix(".preview.tif"))
    if legend is not None:
        draft.with_name(f"{draft.name}.aux.xml").replace(path.with_name(f"{path.name}.aux.xml"))
    draft.replace(path)
    return result


def _band_names(predictor: HeadPredictor) -> list[str]:
    """Names of the probabilities' or numbers' bands."""
    head = predictor.head
    names = list(head.names[-1:] if head.kind == "binary" else head.names)
    what = "value" if head.kind == "regression" else "class"
    return names or ([f"{what} 1"] if head.kind == "binary" else [f"{what} {n}" for n in range(head.outputs)])
