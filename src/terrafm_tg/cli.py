"""The ``terrafm`` command: LightningCLI for training and one short function per tool.

Nothing heavy is imported before a command is chosen, so that ``terrafm --help`` answers at once.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .errors import TerraFMError

#: Tools besides the trainer's own commands: where the function lives, and what it does.
TOOLS = {
    "simulate": ("terrafm_tg.commands:simulate", "write a simulated world in Major-TOM's and WorldCover's file formats"),
    "index": ("terrafm_tg.commands:index", "build the tile index: where each modality lies, land cover, climate, region"),
    "export": ("terrafm_tg.commands:export", "write the teacher encoder of a checkpoint for other projects"),
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
    if words[0] not in TOOLS | TRAINER:
        print(f"terrafm: error: {words[0]!r} is not a command: use one of {', '.join(TRAINER | TOOLS)}.", file=sys.stderr)
        raise SystemExit(2)
    try:
        if words[0] in TRAINER:
            from .training_cli import run_trainer

            run_trainer(words)
        else:
            from jsonargparse import auto_cli

            auto_cli(_tool(words[0]), args=words[1:], prog=f"terrafm {words[0]}", as_positional=True)
    except _expected_errors() as error:
        print(f"terrafm: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("terrafm: stopped. What was written before is whole; run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


def _tool(name: str) -> Callable[..., None]:
    module, function = TOOLS[name][0].split(":")
    return getattr(import_module(module), function)


def _expected_errors() -> tuple[type[BaseException], ...]:
    """Errors whose message is meant for the user; TorchGeo's is looked up only where TorchGeo is loaded already."""
    datasets = sys.modules.get("torchgeo.datasets")
    return (TerraFMError, datasets.DatasetNotFoundError) if datasets else (TerraFMError,)


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
            "  terrafm export runs/pretrain/checkpoints/last.ckpt encoder",
            "",
            "terrafm COMMAND --help lists a command's options.",
        ]
    )
