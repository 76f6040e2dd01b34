"""``terrafm inspect``: what a path holds, how its pixels are read and why, and whether it can be trained on."""

import json as jsonlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from terrafm_tg.datasets.scenes.remote import reading_with
from terrafm_tg.datasets.scenes.stac.catalog import sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.inspection import Inspection, Look, combinations, describe_images, images_of, percent_of
from terrafm_tg.evaluation.inspection_figure import write_inspection_figure
from terrafm_tg.evaluation.inspection_sources import inspect_source
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.remote import RemoteReader

from .options import AMBIGUOUS_OFFSET, MASK_CLOUDS, READING, pop_search, read_options

#: Settings that sentences name, which are options of this command.
_SETTINGS = {*READING, "ambiguous_offset", "mask_clouds", "remote", "tile_size"}
_KINDS = {
    "SentinelFolder": "a folder of scenes", "MajorTOM": "Major-TOM", "SSL4EOS12Tiles": "SSL4EO-S12",
    "MMEarthTiles": "MMEarth", "PackedTiles": "a packed store",
}  # fmt: skip
#: Edge of the paper's larger crops, in pixels.
CROP = 224

_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    **READING,
    "ambiguous_offset": AMBIGUOUS_OFFSET,
    "mask_clouds": MASK_CLOUDS,
    "remote": (bool | str | list[str] | None, None, "Read what is not on disk, as `terrafm index` does."),
    "max_gb": (float, 1.0, "The most that may be fetched of a STAC catalog's images, in GB."),
    "figure": (bool | str, True, "Draw a tile, missing pixels and values of each sensor: false, or the PNG to write."),
    "json": (bool, False, "Print what was understood as JSON instead of text."),
}


def run(command: str, words: Sequence[str]) -> None:
    """Inspects a path.

    Raises:
        TerraFMError: Where it cannot be trained on, after what was understood is printed.
    """
    options = read_options(command, words, inspect_source, StacSearch, skip={"settings", "search"}, **_OPTIONS)
    figure, as_json = options.pop("figure"), options.pop("json")
    try:
        with reading_with(RemoteReader(budget=options.pop("max_gb") * 1e9, sign=sign_blob)):
            found = inspect_source(search=pop_search(options), **options)
    except TerraFMError as error:
        raise TerraFMError(f"It was not inspected: {as_typed(str(error))}") from error
    picture = None
    if figure and found.looks:
        name = re.sub(r"\W+", "_", Path(found.root).resolve().name).strip("_")
        picture = Path(figure) if isinstance(figure, str) else Path(f"inspect_{name}.png")
        write_inspection_figure(found.looks, f"{found.root}: {_number(found.tiles, 'tile')}", picture)
    if as_json:
        print(jsonlib.dumps(found.to_dict() | {"figure": picture and str(picture)}, indent=2, ensure_ascii=False))
    else:
        print_inspection(found, picture)
    if found.problem:
        raise TerraFMError(as_typed(found.problem))


def as_typed(text: str) -> str:
    """Writes settings in a sentence as they are typed on this command: `offset` to 0 as `--offset 0`."""

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in _SETTINGS:
            return match[0]
        quoted = value if value is None or re.fullmatch(r"[\w.-]+", value.strip("'")) is None else value.strip("'")
        quoted = f"'{quoted}'" if quoted and quoted[0] in "[{" else quoted
        return f"`--{name}`" if quoted is None else f"`--{name} {quoted}`"

    return re.sub(r"`(?P<name>\w+)`(?: to (?P<value>'[^']*'|\[[^]]*\]|\{[^}]*\}|\d[\d.e-]*(?<!\.)))?", option, text)


def print_table(table: pd.DataFrame) -> None:
    """Prints in a few lines what a tile table says of each sensor, and which stand together."""
    console = Console(highlight=False)
    for name, sensor in describe_images(images_of(table)).items():
        bands = {_bands(text, get_modality(name).bands): count for text, count in sensor["bands"].items()}
        dates = " to ".join(dict.fromkeys(sensor["dates"])) or "without dates"
        facts = [
            _counted({f"{text} bands": n for text, n in bands.items()}),
            _counted(sensor["units"]),
            _counted(sensor["offsets"]),
            dates,
        ]
        words = ", ".join(filter(None, [_number(sensor["images"], "image"), *facts]))
        console.print(f"{_title(name)}: {words}", markup=False, soft_wrap=True)
    smallest = int(table[["height", "width"]].min(axis=None)) if "height" in table else CROP
    crops = f"; the smallest has {smallest} px: {_enlarged(smallest)}" * (smallest < CROP)
    console.print(f"Tiles: {_counted(combinations(table), 'tile', alone=True)}{crops}", soft_wrap=True)


def print_inspection(found: Inspection, picture: Path | None = None) -> None:
    """Prints what was understood, sensor by sensor, and the verdict."""
    console = Console(highlight=False)
    unused, images = (sum(sensor.get(what, 0) for sensor in found.sensors.values()) for what in ("unused", "images"))
    left = f"{unused:,} of {_number(images, 'image')} {'is' if unused == 1 else 'are'} in no tile" if unused else ""
    notes = f"{_number(len(found.said), 'note')} below" if found.kind and found.said else ""
    tiles = f"{_number(found.tiles, 'tile')}, read as {_KINDS.get(found.kind, found.kind)}" if found.kind else ""
    first = "; ".join(filter(None, (tiles, left, notes)))
    console.print(f"[bold]{escape(found.root)}[/]{': ' * bool(first)}{first}")
    looks = {look.modality: look for look in found.looks}
    for name, sensor in found.sensors.items():
        console.print(f"\n[bold]{_title(name)}[/] ({name})")
        _print_lines(console, sensor_lines(name, sensor, looks.get(name)))
    if lines := tile_lines(found):
        console.print("\n[bold]Together[/]")
        _print_lines(console, lines)
    left_out = found.refused if found.kind or len(found.refused) > 1 else []  # else the error says it
    contradictions = found.contradictions if len(found.contradictions) > 1 else []  # likewise
    for title, pairs in (("Contradictions", contradictions), ("Left out", left_out)):
        if pairs:
            reasons: dict[str, list[str]] = {}
            for path, reason in pairs:
                reasons.setdefault(reason, []).append(path)
            words = [f"{_some(paths, len(paths))}: {reason}" for reason, paths in reasons.items()]
            words = words[:5] + [f"and {len(words) - 5:,} more reasons, which --json lists"] * (len(words) > 5)
            console.print(f"\n[bold]{title}[/]")
            for word in words:
                console.print(_wrapped(as_typed(word), console, 2), soft_wrap=True)
    if picture is not None:
        console.print(f"\nPicture: {escape(str(picture))}")
    if found.problem:
        console.print("[bold red]It cannot be trained on as it is.[/]")
    else:
        doubts = f" But see above: {'; '.join(found.doubts)}." if found.doubts else ""
        console.print(f"[bold]It can be trained on.[/]{escape(doubts)}", soft_wrap=True)
        console.print("Train with `terrafm fit --config pretrain`; `terrafm index` first, for land cover and speed.")


def _print_lines(console: Console, lines: Mapping[str, str]) -> None:
    for label, text in lines.items():
        if text:
            console.print(f"  [dim]{label:<10}[/]  {_wrapped(as_typed(text), console, 14)[14:]}", soft_wrap=True)


def _wrapped(text: str, console: Console, indent: int) -> str:
    """Breaks lines at spaces only, so that names of files can be copied."""
    width = max(console.width - indent, 20)
    lines = [
        part for line in text.splitlines() for part in wrap(line, width, break_long_words=False, break_on_hyphens=False)
    ]
    return escape("\n".join(" " * indent + line for line in lines))


def _title(name: str) -> str:
    """Names a sensor; radar without its correction for terrain, which nothing tells."""
    return get_modality(name).title.removesuffix(" RTC")


def sensor_lines(name: str, sensor: Mapping[str, Any], look: Look | None) -> dict[str, str]:
    """Says what was understood of one sensor, by label."""
    modality = get_modality(name)
    bands = {_bands(text, modality.bands): count for text, count in sensor["bands"].items()}
    dates = " to ".join(dict.fromkeys(sensor["dates"]))
    undated = f"{sensor['undated']:,} without a date" if sensor["undated"] else ""
    proofs, count = sensor["proofs"], sensor["images"] - sensor.get("unused", 0)
    together = f", which holds {count:,} images" if sensor["of_files"] == 1 < count else ""
    lines = {
        "images": f"{sensor['images']:,}" + _tiles_of(sensor),
        "files": _some(sensor["files"], sensor["of_files"]) + together,
        "products": _some(sensor["products"], sensor["of_products"]),
        "bands": "; by ".join(filter(None, (_counted(bands), _counted(sensor["bands_by"])))),
        "masks": f"{_counted(sensor['masks'])}; clouds in them count as missing with `mask_clouds` only"
        if sensor["masks"]
        else "",
        "unit": _counted(sensor["units"]),
        "offset": _counted(sensor["offsets"]),
        "because": _counted(proofs, "such image", 3, sum(proofs.values()) < count, "\n", "the first of "),
        "pixel size": _counted(sensor["pixel_sizes"]),
        "CRS": _counted(sensor["crs"]),
        "dates": "; ".join(filter(None, (dates, undated))),
        "clouds": ""
        if sensor["cloud"] is None
        else f"{sensor['cloud']:.0f} %{' on average' * (count > 1)}, as the metadata say",
    }
    if look is not None:
        digits = 0 if modality.unit == "DN" else 1
        medians = ", ".join(f"{band} {middle:.{digits}f}" for band, (_, middle, _) in look.quantiles.items())
        stored = ""
        if any("taken off" in text for text in sensor["offsets"]):
            stored = ", the +1000 taken off (numbers under `because` are as stored)"
        elif modality.unit == "dB" and not all(text.startswith("dB") for text in sensor["units"]):
            stored = ", to which it is converted"
        usual = "as usual" if look.beyond <= 0.1 else "more than usual, as of snow, cloud or desert, or a wrong unit"
        why = "; such as are 0, NaN, a fill value like -9999, or masked in the file" if look.missing >= 0.0005 else ""
        of = f" of {sensor['tiles']:,}" if sensor.get("tiles", 0) > look.tiles else ""
        lines |= {
            "missing": f"{percent_of(look.missing)} of the pixels ({look.tiles}{of} "
            f"tile{'s' * (sensor.get('tiles', look.tiles) != 1)} read){why}",
            "medians": f"{medians} {modality.unit}{stored}",
            "unusual": f"{look.beyond:.0%} of the values are more than 2 standard deviations from the encoder's mean: "
            f"{usual}",
            "damaged": _some(look.damaged, len(look.damaged)),
        }
    return lines


def _tiles_of(sensor: Mapping[str, Any]) -> str:
    """Says in how many tiles the images of a sensor are, and how many of them are in none."""
    if "tiles" not in sensor:
        return ""
    used = sensor["images"] - sensor["unused"]
    share = f", of which {used:,} {'is' if used == 1 else 'are'}" if sensor["unused"] else ""
    return f"{share} in {_number(sensor['tiles'], 'tile')}" + "; what follows is of these" * bool(share and used)


def tile_lines(found: Inspection) -> dict[str, str]:
    """Says which sensors stand together, and how the tiles fit the crops, by label."""
    if not found.kind:
        return {}
    sizes = " to ".join(map("{:,}".format, found.tile_sizes))
    crops = _enlarged(found.tile_sizes[0]) or f"the paper's crops of {CROP} px are cut from them"
    days = found.days or {}
    span = " to ".join(dict.fromkeys(str(days[name]) for name in ("least", "most") if name in days))
    apart = f"days between the images of a tile: {span}" if span else ""
    undated = f"joined without a date of an image: {_number(days['undated'], 'tile')}" if days.get("undated") else ""
    together = _counted(found.together, "tile", alone=len(found.sensors) > 1)
    return {
        "sensors": "; ".join(filter(None, (together, apart, undated))),
        "tile size": f"{sizes} px; {crops}",
        **{"note" + " " * i: sentence for i, sentence in enumerate(found.said)},
    }


def _enlarged(size: int) -> str:
    """Says that crops are larger than tiles of that size; empty where they are not."""
    if size < 16:
        return (
            "smaller than one patch of the encoder (16 px), to which tiles would be enlarged: set a larger `tile_size`"
        )
    crops = (
        f"crops of {CROP} px, the paper's, would be enlarged from them: train with "
        f"`terrafm fit ... --model.crops.global_size {size // 16 * 16}`"
    )
    return crops if size < CROP else ""


def _bands(text: str, all_bands: Sequence[str]) -> str:
    names = [band for band in text.split() if band in all_bands]
    if names == list(all_bands):
        return f"all {len(names)}" + f" of the encoder, and {text.split()[-1]}, which it does not take" * (
            names != text.split()
        )
    absent = [band for band in all_bands if band not in names]
    counts = "for which the encoder takes its own mean"
    return f"{len(names)} of {len(all_bands)}, without {', '.join(absent)}, {counts}"


def _some(names: Sequence[str], count: int) -> str:
    """Shows the first name, and how many more there are."""
    return (names[0] + (f" and {count - 1:,} more" if count > 1 else "")) if names else ""


def _counted(
    counts: Mapping[str, int],
    unit: str = "image",
    most: int = 5,
    alone: bool = False,
    between: str = "; ",
    of: str = "",
) -> str:
    """Shows values with their counts, the most frequent first; a single value without."""
    if len(counts) == 1 and not alone:
        return next(iter(counts))
    shown = [
        f"{text} ({of * (count > 1)}{_number(count, unit) if count > 1 or not of else '1 image'})"
        for text, count in list(counts.items())[:most]
    ]
    return between.join([*shown, *([f"{len(counts) - most:,} others"] if len(counts) > most else [])])


def _number(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'s' * (count != 1)}"
