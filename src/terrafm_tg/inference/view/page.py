"""One HTML file that shows maps and searches in them, with nothing else needed: no server, no network, no library."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from pyproj import CRS, Transformer

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.use.vectors import MADE_BY
from terrafm_tg.utils.arguments import POSITIVE, checked
from terrafm_tg.utils.files import write_text

from .layers import class_layer, fit_basis, picture_layer, score_layer, vector_layer
from .map_file import PREVIEW, MapFile

#: Bytes of the page besides its maps: styles, script, and per scene the table of longitudes and latitudes.
_PAGE, _PER_SCENE = 60_000, 60_000
#: Points along an edge of a scene at which longitude and latitude are known.
_POINTS = 49
#: What a map says of itself that the page shows.
_SAID = ("model", "weights", "pooling", "modalities", "dates", "cloud", "source", "license")
#: Bottom to top.
_ORDER = ("picture", "embeddings", "classes", "scores")


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Args:
        path: Of the page.
        size: Of it, in bytes.
        scenes: Names of the scenes that can be chosen.
        notes: Sentences on what was left out or reduced.
    """

    path: Path
    size: int
    scenes: tuple[str, ...]
    notes: tuple[str, ...]


@checked(limit_mb=POSITIVE, dimensions=(2, 256))
def write_page(
    out: str | PathLike[str],
    page: str | PathLike[str] | None = None,
    layers: Sequence[str | PathLike[str]] = (),
    scene: Sequence[str] = (),
    limit_mb: float = 20.0,
    dimensions: int = 16,
) -> Written:
    """Writes one HTML page that shows a map, or all maps of a folder, and searches in embeddings by a click.

    The page holds all that it needs. Maps that would make it larger than the limit are averaged over cells of several
    pixels, which the page says.

    Args:
        out: A map of embeddings, of classes or of scores, or a folder of such maps.
        page: The file to write; ``OUT.html``, or ``index.html`` in a folder, by default.
        layers: Further maps and pictures to lay over the same place.
        scene: Names of the scenes of a folder that the page shows; all of them by default.
        limit_mb: The most that the page may take, in MB.
        dimensions: Numbers of a vector in the page, each of 8 bits.

    Raises:
        TerraFMError: If there is nothing to show, a file is no map, or the limit is too low.
    """
    out = Path(out)
    rasters = [MapFile.open(path) for path in [*_maps(out), *map(Path, layers)]]
    scenes = _scenes(rasters)
    if unknown := [name for name in scene if name not in scenes]:
        raise TerraFMError(f"{unknown[0]} is no scene of {out}: it has {', '.join(sorted(scenes)[:20])}.")
    scenes = {name: members for name, members in scenes.items() if not scene or name in scene}
    used = list(dict.fromkeys(raster for members in scenes.values() for raster in members))
    limit = int(limit_mb * 1e6) - _PAGE - _PER_SCENE * len(scenes)
    if limit < 20_000 * len(used):
        raise TerraFMError(
            f"limit_mb is {limit_mb:g}, too little for {len(used)} maps: give more, or fewer with scene."
        )
    path = Path(page) if page else (out / "index.html" if _is_folder(out) else out.with_suffix(".html"))
    content = _content(out, scenes, used, limit, dimensions)
    write_text(path, render_page(content))
    return Written(path, path.stat().st_size, tuple(scenes), tuple(content["notes"]))


def render_page(content: dict[str, Any]) -> str:
    """Returns the page of some content, whose policy admits its own script and style and nothing else."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files(__package__)
    script = "\n".join((folder / name).read_text() for name in ("map.js", "page.js"))
    style = (folder / "page.css").read_text()
    template = environment.from_string((folder / "page.html.j2").read_text())
    sums = {"script_sum": _sum(script), "style_sum": _sum(style)}
    return template.render(content=content, script=script, style=style, **sums)


def _sum(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _maps(out: Path) -> list[Path]:
    """Finds the maps that a name stands for, each with the preview beside it."""
    if not out.exists():
        raise TerraFMError(f"{out} does not exist: give a map or a folder that terrafm embed, map or classify wrote.")
    if _is_folder(out):
        if maps := sorted(path for path in out.iterdir() if path.suffix in (".tif", ".tiff", ".zarr")):
            return maps
        raise TerraFMError(
            f"{out} holds no .tif and no .zarr: give a map or a folder that terrafm embed, map or classify wrote."
        )
    stems = [out.stem.rsplit(".", cut)[0] for cut in range(out.stem.count(".") + 1)]  # scene.classes has scene's
    beside = (out.with_name(stem + PREVIEW) for stem in stems)
    return [out, *[path for path in beside if path.is_file() and path != out][:1]]


def _is_folder(out: Path) -> bool:
    return out.is_dir() and out.suffix != ".zarr"


def _stem(raster: MapFile) -> str:
    return raster.path.stem.removesuffix(".preview")


def _scenes(rasters: Sequence[MapFile]) -> dict[str, list[MapFile]]:
    """Groups maps by place: each map of embeddings is a scene, and the others lie over those that they overlap.

    A map whose name begins with that of one or more scenes belongs to the one of the longest name alone.
    """
    leads: list[MapFile] = []
    for kind in ("embeddings", "classes", "scores", "picture"):
        some = [raster for raster in rasters if raster.kind == kind]
        leads += [x for x in some if kind == "embeddings" or not any(x.overlaps(lead) for lead in leads)]
    found: dict[str, list[MapFile]] = {}
    for lead in leads:
        name = _stem(lead) if _stem(lead) not in found else str(lead.path)
        found[name] = [lead]
        for other in (x for x in rasters if x not in leads and x.overlaps(lead)):
            if _tie(other, lead) == max(_tie(other, x) for x in leads if x.overlaps(other)):
                found[name].append(other)
        found[name].sort(key=lambda raster: _ORDER.index(raster.kind))
    return found


def _tie(raster: MapFile, lead: MapFile) -> int:
    """Tells how well a name fits a scene's: by the letters that one begins with of the other, best if they are all."""
    short, long = sorted((_stem(raster), _stem(lead)), key=len)
    fits = long.startswith(short) and long[len(short) :][:1] in ("", ".", "_")
    return fits * (2 * len(short) + (short == long))


def _content(
    out: Path, scenes: dict[str, list[MapFile]], used: Sequence[MapFile], limit: int, dimensions: int
) -> dict[str, Any]:
    """Makes what the page shows, as plain values."""
    comparable: dict[tuple, list[MapFile]] = {}
    for raster in used:
        if raster.kind == "embeddings":
            key = raster.depth, *(str(raster.about.get(name)) for name in MADE_BY)
            comparable.setdefault(key, []).append(raster)
    bases = [(same, *fit_basis(same, min(dimensions, same[0].depth))) for same in comparable.values()]
    of = {raster: number for number, (same, _, _) in enumerate(bases) for raster in same}
    # A map of embeddings gets as much as four others.
    shares = [4 if raster.kind == "embeddings" else 1 for raster in used]
    layers = []
    for raster, share in zip(used, shares, strict=True):
        most = limit * share // sum(shares)
        if raster.kind == "embeddings":
            layers.append(vector_layer(raster, bases[of[raster]][1], most) | {"basis": of[raster]})
        elif raster.kind == "classes":
            layers.append(class_layer(raster, most))
        else:
            layers.append((picture_layer if raster.kind == "picture" else score_layer)(raster, most))
    notes = [
        f"{layer['name']} is shown in cells of {layer['factor']:.3g} × {layer['factor']:.3g} of its pixels."
        for layer in layers
        if layer["factor"] > 1 and layer["kind"] != "picture"
    ]
    notes += [
        f"Embeddings of {same[0].depth} dimensions are shown in {basis.shape[1]} of 8 bits, which keep {kept:.1%} of "
        "their variance."
        for same, basis, kept in bases
    ]
    return {
        "title": out.stem,
        "notes": notes,
        "heat": [_ramp("inferno"), _ramp("viridis")],
        "layers": layers,
        "scenes": [
            _scene(name, members) | {"layers": [used.index(raster) for raster in members]}
            for name, members in scenes.items()
        ],
    }


def _scene(name: str, members: Sequence[MapFile]) -> dict[str, Any]:
    """Describes a scene: its CRS, extent, and longitude and latitude on a lattice over it."""
    crs, lead = members[0].crs, next((x for x in members if x.kind != "picture"), members[0])
    ends = np.array([raster.bounds for raster in members])
    west, south, east, north = *ends[:, :2].min(0), *ends[:, 2:].max(0)
    meters = 111_320.0 if crs.is_geographic else crs.axis_info[0].unit_conversion_factor
    short = ":".join(crs.to_authority() or ()) or crs.name
    unit = "°" if crs.is_geographic else " m" if meters == 1 else f" {crs.axis_info[0].unit_name}"
    facts = [[name.capitalize(), _said(lead.about[name])] for name in _SAID if lead.about.get(name)]
    for raster in members:
        what = "Composite" if raster.kind == "picture" else raster.kind.capitalize()
        facts.append([what, f"{raster.width} × {raster.height} pixels of {raster.place[2]:.6g}{unit}"])
    return {
        "name": name,
        "crs": short,
        "facts": [["CRS", crs.name if short == crs.name else f"{short}, {crs.name}"], *facts],
        "geographic": crs.is_geographic,
        "bounds": [float(end) for end in (west, south, east, north)],
        "meters": meters,
        # Degrees of longitude are shorter than those of latitude.
        "aspect": float(np.cos(np.radians((south + north) / 2))) if crs.is_geographic else 1.0,
        "pixel": lead.place[2],
    } | lonlat_lattice(crs, (west, south, east, north))


def _said(value: Any) -> str:
    """Says a plain value in words."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_said(part)}" for name, part in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, list) else str(value)


def lonlat_lattice(crs: CRS, bounds: Sequence[float]) -> dict[str, Any]:
    """Returns longitude and latitude at points of a lattice over an extent, row by row from the north-west.

    Bilinear in between they are exact to less than 1 m over 110 km, and no projection is needed in the page.

    Args:
        crs: Of the extent.
        bounds: West, south, east and north.

    Returns:
        ``points``, the number along an edge, ``lon`` (continuous, beyond 180 too) and ``lat``, which are None where the
        CRS does not reach.
    """
    west, south, east, north = bounds
    x, y = np.meshgrid(np.linspace(west, east, _POINTS), np.linspace(north, south, _POINTS))
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    if not np.isfinite([lon, lat]).all():
        return {"points": _POINTS, "lon": None, "lat": None}
    lon = np.unwrap(np.unwrap(lon, period=360, axis=0), period=360, axis=1)
    return {"points": _POINTS, "lon": np.round(lon, 6).ravel().tolist(), "lat": np.round(lat, 6).ravel().tolist()}


def _ramp(name: str) -> str:
    """Returns 256 colors, three bytes each, in base64."""
    colors = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(colors.tobytes()).decode()
