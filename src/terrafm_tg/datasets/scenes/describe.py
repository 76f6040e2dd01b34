"""One scene of files that belong together: opened, their bands told apart, their claims gathered."""

import re
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds
from rasterio.warp import transform

from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import OFFSET, Claims, Settings

from .names import OPTICAL, RADAR, band_set, crossed, read_name, read_order
from .rasters import CubeRaster, Raster, open_raster, steps
from .said import Said, by_folder, by_metadata, by_names, find_date, other_sensor
from .scene import BandSource, Scene

#: Bands of files that do not name them, by how many they hold.
_ORDERS = {2: RADAR, 12: MODALITIES["s2l2a"].bands, 13: OPTICAL}
_SUCH_AS = " to their order, such as [B02,B03,B04,B08]"
_PASS = re.compile(r"(?i)(asc|desc)ending")


@dataclass
class Layout:
    """Files that belong together, before they are opened.

    Args:
        path: Of one of them, or their pattern, for messages.
        name: Of the product, where no metadata tells it.
        bands: Sources by band.
        masks: Sources by mask.
        stack: All bands are in one file or variable, whose own names or order tell them.
        named: Whether the bands were known by their names.
        units: Units that names say.
        cube: It is a cube, whose variables and dates are yet to be told apart.
        says: Statements of its metadata, where they came with it.
        said: Conclusions that a person should know.
    """

    path: str
    name: str
    bands: dict[str, BandSource] = field(default_factory=dict)
    masks: dict[str, BandSource] = field(default_factory=dict)
    stack: BandSource | None = None
    named: bool = True
    units: set[str] = field(default_factory=set)
    cube: bool = False
    says: Said = field(default_factory=Said)
    said: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """A reason not to take files as a scene, as the end of a sentence that begins with a name.

    Args:
        reason: The reason.
        minor: Nothing says that the file is of these sensors: it is named only where nothing else is found.
    """

    def __init__(self, reason: str, minor: bool = False) -> None:
        super().__init__(reason)
        self.minor = minor


class StacksError(Exception):
    """Files that are named after one band each hold several."""


def describe(root: Path, settings: Settings, modality: str | None, layout: Layout) -> Scene:
    """Opens files that belong together and makes a scene of them.

    Args:
        root: Of the paths.
        settings: The user's word.
        modality: That of the folder, where the user said so.
        layout: The files.

    Raises:
        RefusedError: If they are no scene that can be used.
        StacksError: If they are several scenes.
        TerraFMError: If one cannot be opened.
        ValueError: Likewise.
        rasterio.errors.RasterioError: Likewise.
    """
    if other_sensor(layout.path):
        raise RefusedError("its name is that of another sensor (such as Landsat), not of Sentinel-1 or Sentinel-2")
    said = by_names(layout.path)
    if said.modality is None and layout.bands:  # the resolution in it tells the level
        said = said.join(by_names(next(iter(layout.bands.values())).path))
    hint, folder, sure = by_folder(layout.path)
    if layout.stack is not None and not layout.bands:
        with open_raster(root, layout.stack) as raster:
            if raster.problem and raster.count < 3:
                raise RefusedError(raster.problem)
            _bands_of_stack(layout, raster, settings, modality or said.modality or hint)
    with ExitStack() as stack:
        opened: dict[tuple[str, str, int | None], Raster] = {}
        for source in layout.bands.values():
            key = source.path, source.variable, source.time
            if key not in opened:
                opened[key] = stack.enter_context(open_raster(root, source))
        rasters = {band: opened[s.path, s.variable, s.time] for band, s in layout.bands.items()}
        if problem := next((raster.problem for raster in rasters.values() if raster.problem), ""):
            raise RefusedError(problem)
        if layout.stack is None and any(r.count > 1 and not isinstance(r, CubeRaster) for r in rasters.values()):
            raise StacksError
        first = next(iter(layout.bands.values())).path
        said = by_metadata(root, first, said.join(layout.says))
        said = said.add("its tags", time=find_date(str(next(iter(rasters.values())).tags.get("datetime", ""))))
        return _assemble(layout, rasters, said, (modality, hint, folder, sure), settings)


def _assemble(
    layout: Layout, rasters: dict[str, Raster], said: Said, hints: tuple[str | None, str | None, str, bool],
    settings: Settings,
) -> Scene:  # fmt: skip
    """Makes the scene of opened files."""
    given, hint, folder, sure = hints
    if (
        codes := {raster.epsg for raster in rasters.values()} - {None}
        if any(r.crs for r in rasters.values())
        else set()
    ):
        if len(codes) > 1 or any(raster.crs is None for raster in rasters.values()):
            raise RefusedError("its bands have different CRS")
    elif any(raster.crs for raster in rasters.values()):
        raise RefusedError("its CRS has no EPSG code: warp it to one that has (gdalwarp -t_srs EPSG:32633)")
    finest = min(rasters.values(), key=lambda r: (r.transform.a if r.transform else 0, -r.shape[0]))
    if problem := _misplaced(finest):
        raise RefusedError(problem)
    modality, claimed = _modality(layout, said, given, hint, folder, sure)
    decided = "`offset`" in said.conflict and settings.of("offset", modality) in (0, OFFSET)
    if said.conflict and not given and not decided and modality != "s1rtc":
        raise RefusedError(said.conflict)
    tags = {band: raster.declared(layout.bands[band].index) for band, raster in rasters.items()}
    scales = {(tag.scale, tag.offset) for tag in tags.values()}
    if len(scales) > 1:
        raise RefusedError(f"its bands declare different scales, such as {sorted(scales)[:2]}: write it with one")
    if len(layout.units) > 1:
        raise RefusedError(f"its bands are named as {' and '.join(sorted(layout.units))}: give them one unit")
    (scale, offset), source = scales.pop(), dict(said.source)
    if (scale, offset) == (1.0, 0.0):
        scales_said = said.scale, said.offset
    else:
        scales_said = scale, offset
        source |= dict.fromkeys(("scale", "offset"), "its tags")
    unit = next(iter(layout.units), said.unit)
    if layout.units:
        source["unit"] = "the names of its bands"
    if layout.named:
        source["bands"] = "their names"
    nodata = next((tag.nodata for tag in tags.values() if tag.nodata is not None), None)
    orbit = _PASS.search(str(finest.tags.get("ORBIT_PASS_DIRECTION", finest.tags.get("sat:orbit_state", ""))))
    return Scene(
        modality, said.product or layout.name, said.time,
        {band: layout.bands[band] for band in band_set(layout.bands)},
        Claims(
            claimed, said.product or layout.name, said.baseline, said.offset_applied, *scales_said,
            unit if modality == "s1rtc" else None, nodata, source,
        ),
        dict(layout.masks), finest.epsg, finest.transform, *finest.shape, said.cloud_cover,
        orbit[0].lower() if orbit else said.orbit, said.platform, steps=steps(rasters, finest),
        number=said.number,
    )  # fmt: skip


def _misplaced(raster: Raster) -> str:
    """Tells why coordinates cannot be of their CRS; empty where they can."""
    if raster.crs is None or raster.transform is None:
        return ""
    left, bottom, right, top = array_bounds(*raster.shape, raster.transform)
    where = f"its coordinates ({left:g} to {right:g}, {bottom:g} to {top:g}) are not those of its CRS"
    fix = "name the right one (gdal_edit.py -a_srs EPSG:32633)"
    if raster.crs.is_geographic:
        return f"{where}, in degrees: {fix}" if max(abs(bottom), abs(top)) > 90.01 or right - left > 361 else ""
    x, y = (left + right) / 2, (bottom + top) / 2
    try:
        (lon,), (lat,) = transform(raster.crs, CRS.from_epsg(4326), [x], [y])
        (back_x,), (back_y,) = transform(CRS.from_epsg(4326), raster.crs, [lon], [lat])
    except RasterioError:
        return f"{where}: {fix}"
    near = abs(back_x - x) + abs(back_y - y) < 1000  # not where a projection folds over
    if raster.transform.a < 0.01 and raster.crs.linear_units_factor[1] == 1:
        return f"its pixels are {raster.transform.a:g} m wide, as degrees under a CRS in meters: {fix}"
    return "" if near else f"{where}: {fix}"


def _modality(
    layout: Layout, said: Said, given: str | None, hint: str | None, folder: str, sure: bool
) -> tuple[str, str | None]:
    """Tells the sensor and level by bands, names and folders: the likely one, and the one that is claimed."""
    radar = {*layout.bands} <= {*RADAR}
    if given and (given == "s1rtc") != radar:
        raise RefusedError(f"it holds {', '.join(layout.bands)}, and `folders` says {given}: correct `folders`")
    if sure and hint and not given and (hint == "s1rtc") != radar:
        raise RefusedError(f"it holds {', '.join(layout.bands)}, and its folder is named {folder}: set `folders`")
    if radar:
        return "s1rtc", "s1rtc"
    if given:
        return given, given
    hint = None if hint == "s1rtc" else hint
    if sure and hint and said.modality and said.modality != hint:
        raise RefusedError(
            f"its folder {folder} says {hint} and {said.source.get('modality')} says {said.modality}: set `folders`, "
            f"such as {{{said.modality!r}: {folder!r}}}"
        )
    if level := said.modality or (hint if sure else None):
        return level, level
    if "B10" in layout.bands:
        return "s2l1c", "s2l1c" if layout.named else None
    if hint == "s2l1c":
        return hint, hint
    claimed = "SCL" in layout.masks or folder.lower() == "s2a"  # SSL4EO-S12's name
    return "s2l2a", "s2l2a" if claimed else None  # its pixels tell, or the user is asked


def _bands_of_stack(layout: Layout, raster: Raster, settings: Settings, hint: str | None) -> None:
    """Finds the bands of a file by the user's word, by their names, or by their number.

    Raises:
        RefusedError: If none tells.
    """
    source = layout.stack
    assert source is not None
    if raster.alpha:
        layout.masks["alpha"] = replace(source, index=raster.alpha)
    places = [i for i in range(1, raster.count + 1) if i != raster.alpha]
    texts = [raster.names[i - 1] or "" for i in places]
    if len(texts) > 1 and len({*texts}) == 1 and not read_name(texts[0]).band:
        texts = [""] * len(texts)  # one word for all of them names none
    order = read_order(texts)
    unfit = ""
    for name in [hint] if hint else MODALITIES:
        given = settings.of("bands", name or "")
        if given is not None and len(given) != len(places):
            meant = read_order(list(given)).bands
            if not order.bands and (name == "s1rtc") == ({*meant} <= {*RADAR}):
                unfit = f"it has {len(places)} bands, and `bands` names {len(given)}: correct it"
            elif {*meant} & {*order.bands}:
                layout.said.append(
                    f"The bands of {layout.path} are read by their names, as `bands` has another number."
                )
        if given is not None and len(given) == len(places):
            told = read_order(list(given))
            if told.problem or not told.bands:
                raise RefusedError(f"{told.problem or 'its bands are not told'} by `bands`: correct it")
            if order.bands and not order.problem and order.bands != told.bands:
                layout.said.append(
                    f"The bands of {layout.path} are named {', '.join(texts)}, and read as `bands` says."
                )
            order, layout.named = told, True
            break
    else:
        layout.named = bool(order.bands)
        if order.problem:
            raise RefusedError(f"{order.problem}: set `bands`{_SUCH_AS}")
        if not order.bands:
            if unfit:
                raise RefusedError(unfit)
            if other := next(filter(None, map(crossed, [*texts, *[layout.path] * (not any(texts))])), ""):
                raise RefusedError(f"it is of polarization {other}: the radar stem knows VV and VH")
            if any(texts):
                raise RefusedError(
                    f"its bands are named {', '.join(texts)[:120]}, which names no band: set `bands`{_SUCH_AS}",
                    raster.count == 1 and not hint,
                )
            if raster.odd:
                raise RefusedError(
                    f"of its {len(texts)} bands one in the middle is declared an alpha channel: set `bands`"
                )
            if len(texts) not in _ORDERS or (len(texts) == 2 and hint not in (None, "s1rtc")):
                count = f"{len(texts)} bands have" if len(texts) > 1 else "one band has"
                known = "names and are not in a known order" if len(texts) > 1 else "name"
                raise RefusedError(f"its {count} no {known}: set `bands`{_SUCH_AS}", raster.count == 1 and not hint)
            order = replace(order, bands={band: i for i, band in enumerate(_ORDERS[len(texts)])}, masks={})
    layout.units = {*order.units.values()}
    layout.bands = {band: replace(source, index=places[place]) for band, place in order.bands.items()}
    layout.masks |= {mask: replace(source, index=places[place]) for mask, place in order.masks.items()}
