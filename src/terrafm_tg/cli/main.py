"""The ``terrafm`` command: LightningCLI for training, and one short file per tool.

Nothing heavy is imported before a command is chosen, so that ``terrafm --help`` answers at once.
"""

import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from errno import EDQUOT, ENOSPC
from importlib import import_module

from terrafm_tg import __version__
from terrafm_tg.errors import TerraFMError

#: Errors of the system that name no file: a disk, or a user's share of it, is full.
_FULL = (ENOSPC, EDQUOT)
#: The commands by group: what each does, in the module of its first word or the one that is named.
COMMANDS = {
    "data": {
        "inspect": "say what a path holds, how its pixels are read and why, and whether it can be trained on",
        "simulate": "write a simulated world in Major-TOM's and WorldCover's formats",
        "download": "fetch a subset of Major-TOM: by box, land cover, cells or share",
        "grid": "cut your own Sentinel-1 and Sentinel-2 scenes into Major-TOM's cells",
        "index": "build the tile index: files, dates, baseline, land cover, climate, region",
        "stats": "compute the mean and standard deviation of each band of an archive, for runs to normalize with",
        "pack": "turn tiles into a store that feeds GPUs: fast to read, checked, appendable",
    },
    "training": {
        "fit": "pretrain or fine-tune; stack configurations with further --config",
        "real": "pretrain on real places, such as cities, and report on places that it never saw",
        "validate": "run over the validation data",
        "test": "run over the test data",
    },
    "products": {
        "embed": "turn scenes, a STAC search or an archive into maps or tables of embeddings",
        "map": "map scenes with a fine-tuned head: classes, probabilities, polygons, a picture",
        "search": "find the places whose embeddings are nearest to those at some points",
        "classify": "make a map from a few labeled points, with its score by cross-validation in space",
        "change": "score the change between two dates by their embeddings, as a map and polygons",
        "view": "write one HTML page that shows maps and searches in embeddings by a click",
        "predict": "compute embeddings or predictions of every tile; the callback PredictionWriter writes them",
        "export": "write the teacher encoder of a checkpoint for other projects, also as ONNX",
    },
    "measuring": {
        "bench": "score any encoder on GEO-Bench, Copernicus-Bench and Landslide4Sense, beside the published scores",
        "ablate": "train the rows of the paper's ablation over seeds, and compare them seed by seed",
        "profile": "measure where a training step's time goes",
        "profile memory": "compute what a training step needs on a GPU, and the largest batch that fits",
        "profile scaling": "predict speed and efficiency on many GPUs from the profile of one",
    },
}
#: What each command does.
SENTENCES = {name: text for group in COMMANDS.values() for name, text in group.items()}
_MODULES = {"validate": "fit", "test": "fit", "predict": "fit"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``terrafm COMMAND ...``.

    Args:
        argv: The words after ``terrafm``; those of the process where None.

    Raises:
        SystemExit: With status 1 and one sentence on standard error for a mistake that a person can mend, 2 for a wrong
            command line.
    """
    try:
        try:
            _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # such as `terrafm --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _main(words: list[str]) -> None:
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"terrafm-tg {__version__}")
        return
    command = " ".join(words[:2]) if " ".join(words[:2]) in SENTENCES else words[0]
    try:
        if command not in SENTENCES:
            raise ArgumentError(None, _unknown(command))
        module = _MODULES.get(command, command.partition(" ")[0])
        import_module(f"{__package__}.{module}").run(command, words[len(command.split()) :])
    except ArgumentError as error:
        where = f"{command} --help lists the options" if command in SENTENCES else "--help lists the commands"
        print(f"terrafm: error: {_in_short(str(error))}\nterrafm {where}.", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if (needed := _extra(error)) is None:
            raise
        package, extra = needed
        advice = f"`terrafm {command}` needs {package}: run pip install 'terrafm-tg[{extra}]'."
        print(f"terrafm: error: {advice}", file=sys.stderr)
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:  # TerraFMError and TorchGeo's DatasetNotFoundError are such
        known = _for_people(error) or _of_the_system(error)
        if known is None:
            raise
        print(f"terrafm: error: {known}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("terrafm: stopped. What was written before is whole.", file=sys.stderr)
        raise SystemExit(130) from None


#: Lines of the parser around its reasons.
_NO_REASONS = ("Parser", "Problem", "Does", "Errors", "Subtypes", "Given")


def _in_short(text: str) -> str:
    """Shortens what the parser says of each type that a value might have had to the inmost option, types and value."""
    import re

    inmost, found, rest = text.partition("Given value: ")
    if not found:
        return text
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', inmost))
    lines = dict.fromkeys(line.strip(" -") for line in inmost.splitlines() if "NoneType" not in line)
    reasons = [line for line in lines if line and not line.startswith(_NO_REASONS)]
    value = re.sub(r"^NestedArg\(key=.*?, val=(.*)\)$", r"\1", rest.partition("\n")[0])
    return f'Parser key "{key}": {"; ".join(reasons)}. Given value: {value[:200]}'


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(command, SENTENCES, n=1)
    return f"{command!r} is not a command{f': did you mean `terrafm {near[0]}`?' if near else '.'}"


def _extra(error: ModuleNotFoundError) -> tuple[str, str] | None:
    """Returns a missing package and the extra that installs it; None for a module of no extra."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    module = (error.name or "").partition(".")[0]
    package = (
        {"sklearn": "scikit-learn", "faiss": "faiss-cpu", "PIL": "pillow"}.get(module, module).replace("_", "-").lower()
    )
    try:
        needed = requires("terrafm-tg") or []
    except PackageNotFoundError:
        return None
    found = (re.match(r"""([\w-]+)[^;]*; extra == ["'](?!all|test)([\w-]+)""", line) for line in needed)
    return next(((package, match[2]) for match in found if match and match[1].lower() == package), None)


def _for_people(error: BaseException | None) -> BaseException | None:
    """Returns the error whose message is meant for the user, among this one and those that it was raised from.

    jsonargparse wraps what a class raises when it is instantiated. TorchGeo's error is looked up only where TorchGeo is
    loaded already.
    """
    datasets = sys.modules.get("torchgeo.datasets")
    known = (TerraFMError, datasets.DatasetNotFoundError) if datasets else TerraFMError
    while error is not None and not isinstance(error, known):
        error = error.__cause__
    return error


def _of_the_system(error: Exception) -> str | None:
    """Returns what the system says of a file; None where it is not about one."""
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in _FULL):
        return None
    return (
        f"{error.filename or 'A file'} cannot be read or written ({error.strerror}): give a path that can be used, on "
        "a disk with space."
    )


def _help() -> str:
    width = max(map(len, SENTENCES)) + 2
    groups = [
        line
        for title, commands in COMMANDS.items()
        for line in (f"{title}:", *(f"  {name:<{width}}{text}" for name, text in commands.items()), "")
    ]
    return "\n".join(
        [
            "usage: terrafm COMMAND [options]",
            "",
            "TerraFM: multisensor pretraining on Sentinel-1 and Sentinel-2, with TorchGeo and Lightning.",
            "",
            *groups,
            "examples:",
            "  terrafm fit --config pretrain --config data/simulated",
            "  terrafm fit --config pretrain --print_config",
            "  terrafm export runs/pretrain/lightning_logs/version_0/checkpoints/last.ckpt encoder --onnx s2l2a",
            "",
            "terrafm COMMAND --help lists a command's options.",
        ]
    )
