"""``terrafm real``: pretraining on real places, and its score on places that it never saw."""

import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from terrafm_tg import datamodules
from terrafm_tg.datasets import MajorTOM, PackedTiles, SentinelFolder
from terrafm_tg.datasets.source import find_kind
from terrafm_tg.datasets.store.folder import MARKER
from terrafm_tg.datasets.tiles.index_file import NAME, read_made_for
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.places.report import differences, places_table
from terrafm_tg.evaluation.places.windows import open_places
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked

from .fit import TerraFMCLI, prepare
from .options import read_options

#: Edge of a tile in training, in pixels of 10 m.
TILE = 96


@checked(folds=COUNT, seed=NOT_NEGATIVE)
def real(
    root: Path,
    train: Path | None = None,
    folds: int | None = None,
    config: list[str] | None = None,
    out: Path = Path("runs/real"),
    seed: int = 0,
) -> pd.DataFrame:
    """Pretrains on some places of a folder and scores the encoder on the others, fold by fold.

    Args:
        root: Anything that `terrafm inspect` accepts and can be trained on, with radar and optical imagery of the same
            places.
        train: File with the name of a place in each line: training takes these, the report is on all others. By default
            train.txt in the folder, where it leaves any out.
        folds: Leave places out in so many parts instead, each once; 3 where there is no list.
        config: Configurations of a run, each stacked on those before it.
        out: Folder of the results; places.csv has every score.
        seed: Of the runs, and of which places are in which fold.

    Returns:
        The scores of all folds.

    Raises:
        TerraFMError: If there are no two places that both sensors show, or the list leaves none or all of them.
    """
    kind = PackedTiles if (root / MARKER).is_file() else find_kind(root)
    name = next(n for n in datamodules.__all__ if getattr(getattr(datamodules, n), "kind", None) is kind)
    sized = {"tile_size": TILE} if kind is SentinelFolder else {}
    if kind is MajorTOM:
        sized = {"tile_size": read_made_for(root / NAME).get("tile_size") or MajorTOM.find_tile_size(root)}
    places = sorted({*open_places(getattr(datamodules, name)(root=root, **sized))[1].tolist()})
    parts, console = held_out_parts(places, root, train, folds, seed), Console()
    options = [
        f"--config={stack}" for stack in config or ["pretrain", "size/nano", "hardware/cpu", "small_scale", "real"]
    ]
    options += [f"--data={name}", f"--data.root={root}", *(f"--data.{n}={x}" for n, x in sized.items())]
    options += [f"--seed_everything={seed}", f"--model.seed={seed}", f"--data.seed={seed}"]
    options, frames = prepare(options), []
    for number, held_out in enumerate(parts):
        console.print(f"Run {number + 1} of {len(parts)}: holds out {', '.join(held_out)}", soft_wrap=True)
        own = [f"--data.val_places={json.dumps(held_out)}", f"--trainer.logger.init_args.save_dir={out}/{number}"]
        trainer = TerraFMCLI(args=["fit", *options, *own], parser_kwargs={"prog": "terrafm"}).trainer
        frames.append(pd.read_csv(Path(trainer.log_dir or out) / "places.csv").assign(fold=number))
    frame = pd.concat(frames, ignore_index=True).fillna({"features": "", "place": ""})
    frame.to_csv(out / "places.csv", index=False, float_format="%.6g")
    if len(parts) > 1:
        console.print(places_table(frame, f"Each of {len(places)} places held out once, in {len(parts)} runs"))
        console.print(*differences(frame), sep="\n", soft_wrap=True, highlight=False)
    console.print(f"Written: {out / 'places.csv'}", soft_wrap=True)
    return frame


def held_out_parts(
    places: Sequence[str], root: Path, train: Path | None, folds: int | None, seed: int
) -> list[list[str]]:
    """Chooses the places that each run holds out.

    Args:
        places: Those that radar and optical imagery show.
        root: Of the data; see :func:`real` for the others.
        train: Likewise.
        folds: Likewise.
        seed: Likewise.

    Raises:
        TerraFMError: If a run would have none to train on, or none to report on.
    """
    if train is not None and folds is not None:
        raise TerraFMError(f"`train` is {train} and `folds` is {folds}: a list has one part only, so give one of them.")
    listed = train or (root / "train.txt" if folds is None and (root / "train.txt").is_file() else None)
    if listed is not None:
        if not listed.is_file():
            raise TerraFMError(f"There is no list {listed}: give a file with the name of a place in each line.")
        known = {line.strip() for line in listed.read_text().replace(",", "\n").splitlines()}
        rest = [place for place in places if place not in known]
        if 0 < len(rest) < len(places):
            return [rest]
        if train is not None:
            raise TerraFMError(
                f"{train} names {'none' if rest else 'all'} of the places that both sensors show "
                f"({', '.join(places)}): leave some out of it, or give `folds`."
            )
    count = folds or 3
    if not 1 < count <= len(places):
        raise TerraFMError(
            f"`folds` is {count}, and both sensors show {len(places)} places ({', '.join(places)}): set it from 2 to "
            f"{len(places)}, or give more places."
        )
    order = np.random.default_rng(seed).permutation(len(places))
    return [sorted(places[i] for i in order[number::count]) for number in range(count)]


def run(command: str, words: Sequence[str]) -> None:
    """Pretrains and reports."""
    given = read_options(command, words, real, skip={"config"}, configs=_CONFIGS)
    if not given["root"].is_dir():
        raise ArgumentError(None, f"There is no folder {given['root']}: give one that `terrafm inspect` accepts.")
    real(config=given.pop("configs"), **given)


_CONFIGS = (list[str] | None, None, "Configurations of a run, each stacked on those before it, instead of [pretrain, "
            "size/nano, hardware/cpu, small_scale, real].")  # fmt: skip
