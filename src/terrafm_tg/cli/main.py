"""The ``terrafm`` command: LightningCLI for training and one short function per tool.

Nothing heavy is imported before a command is chosen, so that ``terrafm --help`` answers at once.
"""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from errno import EDQUOT, ENOSPC
from importlib import import_module
from inspect import signature
from itertools import pairwise

from terrafm_tg.errors import TerraFMError

#: What the system says where a disk, or a user's share of it, is full: of no file by name.
_FULL = (ENOSPC, EDQUOT)
#: Tools besides the trainer's own commands: where the function lives, and what it does.
TOOLS = {
    "simulate": (
        "terrafm_tg.cli.commands:simulate",
        "write a simulated world in Major-TOM's and WorldCover's formats",
    ),
    "download": (
        "terrafm_tg.cli.commands:download",
        "fetch a subset of Major-TOM: by box, land cover, cells or share",
    ),
    "grid": (
        "terrafm_tg.cli.commands:grid",
        "cut own Sentinel-1 and Sentinel-2 scenes into Major-TOM's cells",
    ),
    "index": (
        "terrafm_tg.cli.commands:index",
        "build the tile index: files, dates, baseline, land cover, climate, region",
    ),
    "pack": (
        "terrafm_tg.cli.commands:pack",
        "turn tiles into a store that feeds GPUs: fast to read, checked, appendable",
    ),
    "export": (
        "terrafm_tg.cli.commands:export",
        "write the teacher encoder of a checkpoint for other projects, also as ONNX",
    ),
    "bench": (
        "terrafm_tg.cli.commands:bench",
        "GEO-Bench and Copernicus-Bench for any encoder, with the published scores beside",
    ),
    "profile store": (
        "benchmarks.store:profile_store",
        "measure packed tiles against their source, other containers and codecs",
    ),
    "profile encoder": (
        "terrafm_tg.cli.commands:profile_encoder",
        "measure the encoder's forward against a plain implementation",
    ),
    "profile bench": (
        "benchmarks.bench:profile_bench",
        "measure what a k-NN on a benchmark costs beside its forward passes",
    ),
    "profile memory": (
        "terrafm_tg.profiling.memory:profile_memory",
        "compute what a training step needs on a GPU, and the largest batch that fits",
    ),
    "profile scaling": (
        "terrafm_tg.profiling.scaling:profile_scaling",
        "predict speed and efficiency on many GPUs from the profile of one",
    ),
    "profile views": (
        "benchmarks.views:profile_views",
        "measure the views of a batch against kornia's random crops",
    ),
    "profile index": (
        "terrafm_tg.cli.commands:profile_index",
        "measure what a tile index costs before the first batch: seconds and memory",
    ),
    "profile loader": (
        "benchmarks.loader:profile_loader",
        "measure how fast tiles reach the training process: DataLoader and ring",
    ),
}
#: Commands that take the trainer's configurations.
TRAINER = {
    "fit": "pretrain or fine-tune; stack configurations with further --config",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "embeddings or predictions for every tile",
    "profile": "measure where a training step's time goes",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``terrafm COMMAND ...``.

    Args:
        argv: The words after ``terrafm``; those of the process where None.

    Raises:
        SystemExit: With status 1 and one sentence on standard error for a mistake that a person can mend, 2 for a wrong
            command line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"terrafm-tg {version('terrafm-tg')}")
        return
    command = " ".join(words[:2]) if " ".join(words[:2]) in TOOLS | TRAINER else words[0]
    if command not in TOOLS | TRAINER:
        print(
            f"terrafm: error: {command!r} is not a command: use one of {', '.join(TRAINER | TOOLS)}.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        if command in TRAINER:
            from .fit import run_trainer

            run_trainer(words)
        else:
            from jsonargparse import auto_cli

            tool = _tool(command)
            options = _bare_switches(tool, words[len(command.split()) :])
            auto_cli(tool, args=options, prog=f"terrafm {command}", as_positional=True, exit_on_error=False)
    except ArgumentError as error:
        print(f"terrafm: error: {error}\nterrafm {command} --help lists the options.", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, OSError) as error:  # TerraFMError and TorchGeo's DatasetNotFoundError are such
        known = _for_people(error) or _of_the_system(error)
        if known is None:
            raise
        print(f"terrafm: error: {known}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("terrafm: stopped. What was written before is whole.", file=sys.stderr)
        raise SystemExit(130) from None


def _tool(name: str) -> Callable[..., None]:
    module, function = TOOLS[name][0].split(":")
    return getattr(import_module(module), function)


def _bare_switches(tool: Callable[..., None], options: list[str]) -> list[str]:
    """``--dry_run`` without a value as ``--dry_run=true``, for options that are off by default."""
    switches = {f"--{name}" for name, x in signature(tool).parameters.items() if x.default is False}
    return [
        f"{word}=true" if word in switches and after.startswith("--") else word
        for word, after in pairwise([*options, "--"])
    ]


def _for_people(error: BaseException | None) -> BaseException | None:
    """The error whose message is meant for the user, among this one and those that it was raised from.

    jsonargparse wraps what a class raises when it is instantiated. TorchGeo's error is looked up only where TorchGeo is
    loaded already.
    """
    datasets = sys.modules.get("torchgeo.datasets")
    known = (TerraFMError, datasets.DatasetNotFoundError) if datasets else TerraFMError
    while error is not None and not isinstance(error, known):
        error = error.__cause__
    return error


def _of_the_system(error: Exception) -> str | None:
    """What the system says of a file; None where it is not about one."""
    if not isinstance(error, OSError) or (error.filename is None and error.errno not in _FULL):
        return None
    return (
        f"{error.filename or 'A file'} cannot be read or written ({error.strerror}): give a path that can be used, on "
        "a disk with space."
    )


def _help() -> str:
    width = max(map(len, TRAINER | TOOLS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in TRAINER.items()]
    lines += [f"  {name:<{width}}{text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(
        [
            "usage: terrafm COMMAND [options]",
            "",
            "TerraFM: multisensor pretraining on Sentinel-1 and Sentinel-2, with TorchGeo and Lightning.",
            "",
            "commands:",
            *lines,
            "",
            "examples:",
            "  terrafm fit --config conf/pretrain.yaml --config conf/data/simulated.yaml",
            "  terrafm fit --config conf/pretrain.yaml --print_config",
            "  terrafm export runs/pretrain/lightning_logs/version_0/checkpoints/last.ckpt encoder --onnx s2l2a",
            "",
            "terrafm COMMAND --help lists a command's options.",
        ]
    )
