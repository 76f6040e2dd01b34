"""Embeddings of whatever a source holds: maps of tokens, or a vector per tile, point or polygon."""

import math
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import geopandas as gpd
from rich.console import Console

from terrafm_tg import __version__
from terrafm_tg.datasets.scenes.remote import reading_with
from terrafm_tg.datasets.scenes.stac.catalog import sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SHARE, checked
from terrafm_tg.utils.remote import RemoteReader

from .engine import Spent, WindowSettings
from .images import Image
from .predictor import POOLINGS, Encoder
from .products import Reduction
from .run import plan_maps, run_maps
from .sources import find_images
from .table.rows import embed_table
from .written import write_maps, write_rows

#: Endings of files by format.
FORMATS = {"cog": ".tif", "zarr": ".zarr", "parquet": ".parquet"}


@dataclass(frozen=True)
class EmbedOutcome:
    """The outcome of :func:`embed`.

    Args:
        paths: Files and folders that were written, the products first.
        images: Number of images.
        area: Square kilometers that were looked at now; what was there before is not counted.
        seconds: That it took.
        spent: Where they went.
    """

    paths: list[Path]
    images: int
    area: float
    seconds: float
    spent: Spent


@checked(window=COUNT, overlap=(0, 0.9), stride=COUNT, pca=COUNT, min_valid=SHARE, max_damaged=SHARE,
         batch_size=COUNT, max_days=NOT_NEGATIVE, workers=NOT_NEGATIVE, max_gb=NOT_NEGATIVE)  # fmt: skip
def embed(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] = "terrafm_base",
    format: str | None = None,
    points: str | os.PathLike[str] | gpd.GeoDataFrame | None = None,
    modalities: Sequence[str] | None = None,
    pooling: str = "class",
    stride: int = 16,
    window: int = 224,
    overlap: float = 0.5,
    dtype: str = "float32",
    pca: int | str | os.PathLike[str] | None = None,
    search: StacSearch | None = None,
    max_days: float | None = None,
    mask_clouds: bool = False,
    min_valid: float = 0.5,
    max_damaged: float = 0.1,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    max_gb: float | None = None,
    progress: bool = True,
    **settings: Any,
) -> EmbedOutcome:
    """Embeds scenes, a folder of them, a STAC search or the tiles of an archive.

    Work that was stopped goes on where it was, to the same bytes.

    Args:
        source: Scene (file, SAFE, zipped or not), folder of scenes, archive of tiles, packed store; or a STAC item,
            item collection, catalog or API, by path, address or name.
        out: File that ends in .tif (COG), .zarr or .parquet, for a single image or a table; or a folder.
        model: A registered name, a checkpoint, an export or the folder of a run.
        format: Of a folder's products: cog (a band per dimension; by default), zarr, or parquet (a vector per tile or
            place; by default with points).
        points: Points and polygons to embed instead of tiles: GeoJSON, GeoParquet, or a CSV table with lon and lat.
        modalities: Sensors to use, such as [s1rtc,s2l2a]; by default all that an image has.
        pooling: Vector of a tile or place: class (the class token), mean (of the tokens there), or both.
        stride: Pixels of 10 m between the vectors of a map: 16, or 8, 4 or 2 for a denser one, with 4, 16 or 64 times
            the work.
        window: Edge of what the model sees at once, in pixels of 10 m; also of a tile.
        overlap: Share of a window that the next one covers in a map, where both are blended.
        dtype: Type of the stored numbers: float32, float16, or int8 with a scale per dimension.
        pca: Number of principal components to keep, fitted to all images; or the pca.json of an earlier run.
        search: Conditions for items of a STAC catalog.
        max_days: Do not join images of several sensors that are further apart in time.
        mask_clouds: Count pixels as missing that the product's own mask calls cloud or its shadow.
        min_valid: Least share of a token's pixels that a sensor must show to be used there.
        max_damaged: Share of an image that may be unreadable before the work stops.
        device: cpu, cuda or cuda:1; a GPU where there is one.
        batch_size: Windows at once; 8 on a processor, 64 on a GPU.
        workers: Processes of this machine (a GPU each where there are several); 0 for this one alone.
        scheduler: Address of a Dask cluster that does the work, instead of processes of this machine.
        max_gb: The most that may be fetched from servers, in GB.
        progress: Show how far it is.
        settings: The user's word on pixels, as for :class:`~terrafm_tg.datasets.SentinelFolder`.

    Returns:
        The products, how much was looked at, and where the time went. A run that is there already is left as it is.

    Raises:
        TerraFMError: If the source holds nothing that can be read, a setting is wrong, or the output is something else.
    """
    out, begin = Path(out), time.perf_counter()
    kind = _kind(out, format, points is not None)
    if pooling not in POOLINGS:
        raise TerraFMError(f"`pooling` is {pooling!r}: give one of {', '.join(POOLINGS)}.")
    if window % PATCH_SIZE:
        raise TerraFMError(f"`window` is {window}: give a multiple of {PATCH_SIZE} pixels.")
    kept = Reduction.load(Path(pca)) if isinstance(pca, str | os.PathLike) else pca
    how = WindowSettings(window, overlap, stride, min_valid, max_damaged)
    console = Console(stderr=True, quiet=not progress)
    with reading_with(RemoteReader(budget=math.inf if max_gb is None else max_gb * 1e9, sign=sign_blob)):
        images = find_images(source, modalities, search, max_days, mask_clouds, **settings)
        if kind != "parquet" and out.suffix and len(images) > 1:
            raise TerraFMError(
                f"{source} holds {len(images):,} images, first {images[0].name} and {images[1].name}: give a folder "
                f"instead of {out.name}, choose one by its file, or write a table ({out.stem}.parquet)."
            )
        encoder = Encoder(model, modalities, device, batch_size)
        common = encoder.about() | {
            "pooling": "token" if kind != "parquet" else pooling, "patch": encoder.cell, "stride": stride,
            "window": window, "overlap": overlap, "min_valid": min_valid, "masked_clouds": mask_clouds,
            "source": without_secrets(source), "software": f"terrafm-tg {__version__}",
        }  # fmt: skip
        common["run"] = _digest(common, images, dtype, pca, points)
        work = _work_folder(out)
        if not work.exists() and (there := _made_before(out, common["run"])):
            return EmbedOutcome(there, len(images), 0.0, time.perf_counter() - begin, Spent())
        work.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            rows, spent = embed_table(
                images, encoder, how, points, pooling, work, console, workers, scheduler, common["run"]
            )
            paths = write_rows(rows, out, common, dtype, kept)
        else:
            works = plan_maps(images, encoder, how, work, lambda image: common | about_image(image))
            spent = run_maps(works, encoder, how, console, workers, scheduler)
            paths = write_maps(works, out, kind, common, dtype, kept, console)
    shutil.rmtree(work)
    return EmbedOutcome(paths, len(images), spent.pixels / 1e4, time.perf_counter() - begin, spent)


def without_secrets(source: str | os.PathLike[str]) -> str:
    """Returns a source as products name it: of an address without user, password, query and signature."""
    text = os.fspath(source)
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def about_image(image: Image) -> dict[str, Any]:
    """Tells what an image is made of, for the metadata of its map."""
    return {
        "modalities": list(image.products),
        "products": {name: list(names) for name, names in image.products.items()},
        "dates": {name: list(dates) for name, dates in image.dates.items()},
        "cloud": image.cloud,
    }


def _kind(out: Path, format: str | None, places: bool) -> str:
    """Returns the format that an output has by its ending, or as it is given.

    Raises:
        TerraFMError: If they differ, or places are asked for as a map.
    """
    ending = next((name for name, ending in FORMATS.items() if out.suffix.lower() == ending), None)
    if format is not None and format not in FORMATS:
        raise TerraFMError(f"`format` is {format!r}: give one of {', '.join(FORMATS)}.")
    if out.suffix and ending is None and not out.is_dir():
        raise TerraFMError(f"{out} ends in {out.suffix}: give a name in {', '.join(FORMATS.values())}, or a folder.")
    kind = ending or format or ("parquet" if places else "cog")
    if format not in (None, kind):
        raise TerraFMError(f"{out} is a name for {kind}, and `format` is {format}: leave one of them out.")
    if places and kind != "parquet":
        raise TerraFMError(f"Points and polygons make a table: give a name in .parquet instead of {out.name}.")
    return kind


def _work_folder(out: Path) -> Path:
    """Returns the folder of unfinished work, beside a file and in a folder."""
    return out.with_name(f".{out.name}.unfinished") if out.suffix else out / ".unfinished"


def _digest(common: Mapping[str, Any], images: Sequence[Image], *more: Any) -> str:
    """Names a run: by its settings and its images."""
    which = [(i.name, i.crs, tuple(i.transform)[:6], i.shape, sorted(i.products.items())) for i in images]
    return sha256(repr((sorted(common.items()), which, [str(one) for one in more])).encode()).hexdigest()[:16]


def _made_before(out: Path, run: str) -> list[Path]:
    """Returns the products that an earlier run like this one has written.

    Raises:
        TerraFMError: If the output is there, of another run or of something else.
    """
    item = out.with_suffix(".json") if out.suffix else out / "collection.json"
    if not out.exists() or (out.is_dir() and not out.suffix and not any(out.iterdir())):
        return []
    if item.is_file() and f'"{run}"' in item.read_text():
        warnings.warn(f"{out} is there already, made with the same settings: nothing is done.", stacklevel=3)
        return [out]
    raise TerraFMError(f"{out} is there already, and not of this run: remove it, or give another name.")
