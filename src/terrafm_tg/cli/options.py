"""Options of a command: taken from the library's functions, and what to say of one that is mistyped."""

import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from .main import SENTENCES

if TYPE_CHECKING:
    from terrafm_tg.datasets.scenes.stac.search import StacSearch

#: Settings of a folder of scenes (:class:`~terrafm_tg.datasets.SentinelFolder`), for commands that read one.
READING: dict[str, tuple[Any, Any, str]] = {
    "folders": (
        dict[str, str] | None,
        None,
        "Folders to read, by modality (s1rtc, s2l1c, s2l2a), such as {s2l2a: optical}; by default all.",
    ),
    "bands": (
        list[str] | dict[str, list[str]] | None,
        None,
        "Bands of files in their order, such as [B02, B03, B04, B08]: for all modalities or by modality.",
    ),
    "unit": (
        str | dict[str, str] | None,
        None,
        "dB, linear or amplitude (radar), DN or reflectance (optics), for all or by modality; by default as files and "
        "pixels tell.",
    ),
    "scale": (
        float | dict[str, float] | None,
        None,
        "Digital numbers, or the radar's unit, per stored number, for all or by modality; by default as files and "
        "pixels tell.",
    ),
    "offset": (
        int | str | dict[str, int | str] | None,
        None,
        "The +1000 of baseline 04.00 in optical files: 0, 1000 or detect (by default), for all or by modality.",
    ),
    "nodata": (
        float | dict[str, float] | None,
        None,
        "A stored value that is missing, for all or by modality; beside what files declare.",
    ),
    "max_days": (float | None, None, "Do not join images that are more days apart; by default any are."),
    "join": (
        str | None,
        None,
        "Radar images within max_days that a tile is joined with: nearest (by default), or all (a sample each).",
    ),
    "small_images": (
        str | None,
        None,
        "Images smaller than a tile, where others are not: drop (by default) leaves them out, pad fills them up.",
    ),
}
#: Further settings that some datasets and commands have.
AMBIGUOUS_OFFSET = (
    str | None,
    None,
    "Where nothing tells whether files hold the +1000 of baseline 04.00: error (by default), present, absent or drop.",
)
MASK_CLOUDS = (bool | None, None, "Count pixels as missing that the product's own mask calls cloud or its shadow.")
#: Configurations that come with the package, in a wheel and in a checkout.
_CONF = (Path(__file__).parents[1] / "conf", Path(__file__).parents[3] / "conf")


def read_options(
    command: str,
    words: Sequence[str],
    *functions: Callable[..., Any],
    skip: Iterable[str] = (),
    **more: tuple[Any, object, str],
) -> dict[str, Any]:
    """Reads the options of a command that is no trainer, by name or from a configuration file.

    Args:
        command: Name of the command, whose sentence is the description.
        words: Behind it; a switch that is off by default may stand without a value.
        functions: Whose parameters, described as in the docstring, are the options; those without a default are
            positional. Classes, too.
        skip: Parameters that are no options.
        more: Options of the command itself: type, default and meaning.

    Returns:
        The options by name.

    Raises:
        ArgumentError: If an option is unknown or has a wrong value.
    """
    text = f"{SENTENCES[command][0].upper()}{SENTENCES[command][1:]}."
    parser = ArgumentParser(
        prog=f"terrafm {command}", description=text, exit_on_error=False, formatter_class=_HelpFormatter
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Configuration file of these options.")
    for function in functions:
        add = parser.add_class_arguments if isinstance(function, type) else parser.add_function_arguments
        add(function, as_group=False, as_positional=True, skip=set(skip))
    for action in parser._actions:
        action.help = _for_a_shell(action.help or "")
        if any(name.endswith(".help") for name in action.option_strings):  # of classes, which no shell passes
            action.help = SUPPRESS
    for name, (kind, default, meaning) in more.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)
    switches = {f"--{name}" for name, default in parser.get_defaults().items() if default is False}
    options = [
        f"{word}=true" if word in switches and after.startswith("--") else word
        for word, after in pairwise([*words, "--"])
    ]
    try:
        found = parser.instantiate_classes(parser.parse_args(options))
    except ArgumentError as error:
        refuse(error, [name for action in parser._actions for name in action.option_strings])
    return {name: value for name, value in vars(found).items() if name != "config"}


class _HelpFormatter(DefaultHelpFormatter):
    """Says what an option means and its default, without Python's type."""

    def _get_help_string(self, action: Action) -> str:
        meaning, _, facts = (super()._get_help_string(action) or "").rpartition(" (")
        if "%(type)s" not in facts:
            return super()._get_help_string(action) or ""
        kept = [f for f in facts.rstrip(")").split(", ") if f == "required" or f == "default: %(default)s"]
        kept = [f for f in kept if action.default is not None or f == "required"]
        return meaning + (f" ({', '.join(kept)})" if kept else "")


def _for_a_shell(text: str) -> str:
    """Takes marks for Sphinx and words of Python out of what a docstring says of a parameter."""
    text = re.sub(r"\s\(:\w+:`[^`]*`\)", "", text)
    text = re.sub(r":\w+:`(?:~?[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    return text.replace("where None", "by default").replace("None", "null")


def pop_search(options: dict[str, Any]) -> "StacSearch | None":
    """Takes the conditions of a STAC search out of a command's options; None where none is given."""
    from terrafm_tg.datasets.scenes.stac.search import StacSearch

    search = StacSearch(**{field.name: options.pop(field.name) for field in fields(StacSearch)})
    return None if search == StacSearch() else search


def find_configs(words: Sequence[str]) -> list[str]:
    """Returns the command with the path of each ``--config`` that names one of the package's.

    ``pretrain``, ``size/nano`` and ``conf/pretrain.yaml`` name files of the package; a file of that path wins.

    Raises:
        ArgumentError: If there is no such configuration.
    """
    found, path_next = [], False
    for word in words:
        if path_next:
            word = _find_config(word)
        elif word.startswith("--config="):
            word = f"--config={_find_config(word.partition('=')[2])}"
        path_next = not path_next and word in ("--config", "-c")
        found.append(word)
    return found


def _find_config(name: str) -> str:
    if Path(name).is_file() or urlsplit(name).scheme or name in ("-", "null") or name.startswith("{"):
        return name
    stem = name.removesuffix(".yaml").removeprefix("conf/")
    folder = next((folder for folder in _CONF if folder.is_dir()), None)
    if folder is not None and ".." not in stem and (path := folder / f"{stem}.yaml").is_file():
        return str(path)
    known = [] if folder is None else [f"conf/{x.relative_to(folder)}" for x in folder.rglob("*.yaml")]
    raise ArgumentError(
        None, f"There is no configuration {name!r}{nearest(f'conf/{stem}.yaml', known)}: give the path of a file."
    )


def refuse(error: ArgumentError, known: Iterable[str]) -> NoReturn:
    """Raises what is wrong with the options again, with the nearest name where one is unknown.

    Args:
        error: From the parser.
        known: Options that there are.
    """
    text, names = str(error), [name for name in known if not name.endswith("+")]
    unknown = re.match(r"unrecognized arguments: (\S+)|ambiguous option: (\S+)", text)
    if unknown is None:
        raise error
    word = (unknown[1] or unknown[2]).partition("=")[0]
    if not word.startswith("-"):
        advice = f": a configuration is given as `--config {word}`" if word.endswith((".yaml", ".yml")) else ""
        raise ArgumentError(None, f"{word!r} is not expected here{advice}.") from None
    raise ArgumentError(None, f"`{word}` is no option{nearest(word, names)}.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ", did you mean `...`?" in words, empty where nothing is near."""
    known = list(known)
    found = get_close_matches(name, known, n=1) or [x for x in known if x.startswith(name)][:1]
    return f" (did you mean `{found[0]}`?)" if found else ""
