"""Bad input to every command and every public function: one sentence each, no traceback, nothing taken in silence."""

import contextlib
import importlib
import inspect
import io
import logging
import math
import os
import random
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torchgeo.datasets import DatasetNotFoundError

import terrafm_tg.datasets as datasets
from refusals import IN_MEMORY
from terrafm_tg.cli.export import export
from terrafm_tg.cli.main import main
from terrafm_tg.datamodules import MajorTOMDataModule
from terrafm_tg.datasets.majortom.download import Selection, download
from terrafm_tg.datasets.majortom.gridding import grid_scenes
from terrafm_tg.datasets.source import open_source
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import TileFeatures
from terrafm_tg.evaluation.bench.command import run_bench
from terrafm_tg.models import terrafm_nano
from terrafm_tg.profiling.memory import memory_table
from terrafm_tg.profiling.scaling import scaling_table
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.simulation import simulate

#: Public names that carry values, are a base, or run for each batch; commands that take seconds each.
NOT_CALLED, SLOW = (
    {"collate_tiles", "TileDataset", "TileFeatures", "TileSlice", "SensorBatch", "TerraFM_Base_Weights"},
    {"export_onnx"},
)
ODD = "no such ☃ \n"
# fmt: off
PACKAGES = ("datasets", "datamodules", "transforms", "models", "samplers", "tasks", "evaluation", "callbacks", "losses",
            "simulation")
#: Commands, and the functions whose parameters are their options; options of the trainer's commands.
COMMANDS: dict[str, list[Callable[..., Any]]] = {
    "simulate": [simulate], "download": [download, Selection], "grid": [grid_scenes, datasets.StacSearch],
    "index": [datasets.build_index],
    "pack": [open_source, pack], "export": [export], "bench": [run_bench], "profile memory": [memory_table],
    "profile scaling": [scaling_table]}
TRAINER = ("fit", "validate", "test", "predict", "profile")
OPTIONS = {
    **dict.fromkeys(("trainer.max_steps", "trainer.devices", "trainer.max_epochs", "model.drop_path", "seed_everything",
                     "model.optimizer.lr", "model.schedule.warmup_epochs"), "float"),
    **dict.fromkeys(("trainer.accumulate_grad_batches", "data.batch_size", "data.tile_size", "model.depth",
                     "model.crops.global_size", "model.head.prototypes"), "int"),
    **dict.fromkeys(("trainer.accelerator", "trainer.strategy", "trainer.precision", "model", "model.model"), "str"),
    **dict.fromkeys(("model.weights", "ckpt_path", "config"), "Path"),
    "model.crops.local_scale": "tuple float", "model.compile": "bool"}
#: Numbers that may be negative, and those that may be 0; texts that may be any; paths that are written, where any new
#: name is good; and names that are looked up only when a run begins.
SIGNED = {"power", "offsets", "haze", "devices", "max_steps", "max_epochs"}
ZERO = {
    *SIGNED, "seed", "world_seed", "workers", "world_workers", "num_workers", "val_share", "val_block", "val_gap",
    "val_bank", "val_queries", "ocean_keep", "size", "max_damaged_share", "probability", "illumination", "gap",
    "calibration", "band_shift", "blur_probability", "local_crops", "count", "num_classes", "alpha", "momentum",
    "band_gain", "max_cloud", "reserve", "warmup_epochs", "weight_decay", "min_lr", "layer_decay", "dropout", "mixup",
    "cutmix", "koleo", "drop_path", "grace_steps", "val_split_pct", "max_days", "seeds",
    "rank", "prefetch_factor", "max_share", "max_damaged", "every", "land_cover", "max_gb", "bbox", "seed_everything",
}
FREE = {"title", "option", "source", "scheduler", "compile", "HeldOutReport.folder"}
WRITTEN = {"out", "path", "folder", "simulate.root", "grid_scenes.root", "download.root", "SimulatedWorld.root",
           "SimulatedDataModule.root"}
LATER = {"BenchKNN.root", "BenchKNN.encoder", "BenchKNN.model", "ContactSheet.path", "PredictionWriter.folder"}
# fmt: on


class Case(NamedTuple):
    """One bad value in a call that is good without it."""

    what: str
    name: str
    value: Any
    call: Callable[[], Any]


def bad_values(kind: str, key: str, base: Path, words: bool = False) -> list[Any]:
    """Values that a parameter of an annotation cannot take; as words of a command on demand."""
    name, has = key.rpartition(".")[2], set(re.findall(r"\w+", kind.replace("Weights", "PathLike None")))
    later, values = key in LATER, list[Any]()
    values += [] if words else [object(), {7: 7}] + [None] * ("None" not in has)
    if is_path := bool(has & {"PathLike", "Path"}):
        values += ["", "a\0b", "n" * 300, f"{base}/loop", f"{base}/fifo", f"{base}/file/x", "/dev/full"]
        values += [] if later else ["/proc/no/x"]
        values += (
            [] if later or {name, key} & WRITTEN else [ODD, *(f"{base}/{x}" for x in ("dangling", "file", "empty"))]
        )
        values += [] if words else [7, math.nan, b"\xff"]
    if has & {"int", "float"}:
        values += ["abc", math.nan, math.inf, *([] if name in SIGNED else [-7]), *([] if name in ZERO else [0])]
        values += [] if "float" in has else [1.5, 10**40]
        values += [True] if not words and "bool" not in has else []
    elif "bool" in has and not has & {"str", "PathLike", "Path"}:
        values += ["maybe", 7, [1]]
    if not is_path and not {name, key} & FREE:
        values += [
            *([] if later else [ODD]),
            *([""] if "str" in has or ("Literal" in has and "''" not in kind) else []),
        ]
    if has & {"Callable", "Tensor", "DataFrame", "TileDataset", "ndarray", "Module", "type", "terrafm_tg", "Literal"}:
        values += [7, math.nan]
    if has & {"Sequence", "list", "tuple", "Iterable"} and not is_path:
        values += [[ODD], [[]]] + [[math.nan, 2] if has & {"int", "float"} else [7]] * (not words)
    values += [{ODD: 7}, [[7]]] if has & {"Mapping", "dict"} else []
    return values


def functions() -> dict[str, Callable[..., Any]]:
    """Every public function and class."""
    found = {function.__name__: function for some in COMMANDS.values() for function in some}
    for package in PACKAGES:
        module = importlib.import_module(f"terrafm_tg.{package}")
        found |= {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    return {name: found[name] for name in found if name not in NOT_CALLED}


def good_arguments(world: Path, base: Path) -> dict[str, dict[str, Any]]:
    """Arguments that functions need beside their defaults and a root."""
    tiles, nano, x, labels = datasets.MajorTOM(world, tile_size=72), terrafm_nano(), torch.eye(4), torch.arange(4)
    seen, quiet, task = TileFeatures(x, labels, labels), {"workers": 0, "progress": False}, {"model": "terrafm_nano"}
    frame, two = {"frame": tiles.table}, {"predicted": labels, "target": labels}
    dense, size = {"model": "linear", "backbone": "terrafm_nano_s2l2a"}, {"tile_size": 72}
    # fmt: off
    return {
        "BenchKNN": {"datasets": "m-eurosat"}, "CachedTiles": {"tiles": tiles}, "SensorPairs": {"datasets": {}},
        "DualCenter": {"dim": 4}, "ESAWorldCover": {"paths": f"{world}/WorldCover"},
        "ContactSheet": {"path": f"{base}/s"}, "FaultTolerant": {"dataset": tiles, "sampler": LandCoverSampler(tiles)},
        "TileDataLoader": {"dataset": tiles},
        "FineTuneChangeDetection": dense | {"model": "upernet", "in_channels": 12},
        "LandCoverSampler": {"dataset": tiles}, "FineTuneClassification": task | {"num_classes": 2},
        "FineTuneSegmentation": task | {"decoder": "linear"}, "MajorTOM": size, "MajorTOMDataModule": size,
        "MixedDataModule": size | {"roots": [str(world)]},
        "MixedTiles": {"sources": [datasets.MajorTOM(world, tile_size=72, native=True)]},
        "TileDataModule": size | {"root": str(world)}, "SensorDataModule": {"datasets": {"s2l2a": datasets.DFC2020S2}},
        "accuracy": two, "balanced_accuracy": two,
        "TerraFM": task | {"head": {"prototypes": 8, "hidden_dim": 8, "bottleneck_dim": 8}}, "figure": frame,
        "TerraFMPixelwiseRegression": dense, "TerraFMSegmentation": dense | {"num_classes": 2},
        "collect": {"outputs": []}, "build_encoder": {"name": "terrafm_nano"},
        "build_index": quiet | size | {"out": f"{base}/new.parquet"},
        "gather": {"features": {"s2l2a": seen}}, "table": frame,
        "evaluate_held_out": {"encoders": {"x": nano}, "datamodule": MajorTOMDataModule(str(world), tile_size=72)},
        "download": {"root": f"{base}/d", "selection": Selection(), "source": "http://127.0.0.1:9/x", "dry_run": True},
        "even_pick": {"land_cover": np.zeros(9, int), "rows": np.arange(9), "count": 3, "seed": 0},
        "memory_table": task, "export": {"checkpoint": f"{base}/nano.pth", "out": f"{base}/e"},
        "split_blocks": {"index": tiles.table},
        "export_encoder": {"checkpoint": f"{base}/nano.pth", "out": f"{base}/e"}, "reparameterize": {"model": nano},
        "export_onnx": {"model": nano, "path": f"{base}/o.onnx", "modality": "s2l2a", "size": 32},
        "grid_scenes": quiet | {"scenes": f"{base}/empty"}, "open_stac": {"source": f"{base}/empty"},
        "knn_predict": {"query": x, "bank": x, "labels": labels, "k": 2},
        "load_encoder_state": {"source": f"{base}/nano.pth"}, "teacher_entropy": {"teacher": x, "teacher_temp": 0.1},
        "load_weights": {"model": nano, "state": nano.state_dict(), "source": "x"}, "open_source": {"root": world},
        "pack": quiet | {"tiles": tiles, "out": f"{base}/store"}, "scaling_table": {"result": base / "file"},
        "recall": {"query": seen, "bank": seen}, "score": {"bank": {"s2l2a": seen}, "query": {"s2l2a": seen}},
        "run_bench": {"models": "pixel-statistics", "datasets": "m-eurosat", "out": f"{base}/b"},
        "simulate": quiet | {"root": f"{base}/new", "cells": 1, "cell_size": 24},
        "write_report": frame | {"folder": f"{base}/r"},
    }
    # fmt: on


def cases(world: Path, base: Path) -> Iterator[Case]:
    """Every parameter of every function, and every option of every command, with every bad value."""
    good = good_arguments(world, base)
    for what, function in functions().items():
        parameters = inspect.signature(function).parameters
        made, root = MajorTOMDataModule if what == "TileDataModule" else function, {"root": str(world)}
        for name, parameter in parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                given = (root if "root" in parameters else {}) | good.get(what, {})
                for value in bad_values(str(parameter.annotation), f"{what}.{name}", base):
                    yield Case(what, name, value, partial(call, made, given | {name: value}))
    for command, parts in COMMANDS.items():
        options = {n: p for part in parts for n, p in inspect.signature(part).parameters.items()}
        no_options = ("settings", "tiles", "selection", "part_bytes", "search")
        options = {n: p for n, p in options.items() if n not in no_options}
        usual = {"root": str(world)} | {n: v for part in parts for n, v in good.get(part.__name__, {}).items()}
        for name, parameter in options.items():
            for value in bad_values(str(parameter.annotation), f"{parts[0].__name__}.{name}", base, words=True):
                given = {n: v for n, v in usual.items() if n in options} | {name: value}
                needed = [str(given.pop(n)) for n, p in options.items() if p.default is p.empty]
                words = [*command.split(), *needed, *(f"--{n}={v}" for n, v in given.items())]
                yield Case(command, name, value, partial(main, words))
    tiny = [*IN_MEMORY, "--trainer.logger=false", "--trainer.callbacks=null", "--trainer.max_steps=1"]
    for command in TRAINER:
        for name, kind in OPTIONS.items():
            for value in bad_values(kind, name, base, words=True):
                yield Case(command, name, value, partial(main, [command, *tiny, f"--{name}={value}"]))


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Calls it; a datamodule opens its data later."""
    made = function(**arguments)
    if isinstance(made, LightningDataModule):
        made.setup("fit")


def judge(case: Case) -> tuple[str, str]:
    """Calls it; returns "sentence", "traceback" or "silence", and what came."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # KeyboardInterrupt: it took too long
    signal.setitimer(signal.ITIMER_REAL, 60)
    printed, value = io.StringIO(), re.findall(r"\w{2,30}", str(case.value))
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            case.call()
        return "silence", "it was taken"
    except SystemExit as stop:
        text = printed.getvalue().rpartition("terrafm: error: ")[2].strip()
        lines = [line for line in text.splitlines() if not line.startswith("terrafm ")]
        wordy = len(lines) > (1 if stop.code == 1 else 12)  # jsonargparse lists what each type of a union says
        return "silence" if not stop.code else "traceback" if wordy or not lines else "sentence", text
    except (TerraFMError, DatasetNotFoundError, OSError) as error:
        text = str(error)
        named = any(word in text for word in (case.name.rstrip("s"), str(case.value), *value[:3], "/world", "empty"))
        return "sentence" if named and "\n" not in text else "traceback", repr(error)
    except (Exception, KeyboardInterrupt) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "silence" if isinstance(
            error, KeyboardInterrupt
        ) else "traceback", f"{error!r:.200} {frame.filename}:{frame.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def places(small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The world to read, and a folder with a file, an empty folder, links that lead nowhere, and a pipe."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("a thesis")
    for name in ("empty", "elsewhere"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo")
    torch.save(terrafm_nano().state_dict(), tmp_path / "nano.pth")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    return small_world, tmp_path


@pytest.mark.parametrize("count", [80, pytest.param(None, marks=pytest.mark.soak)])
def test_a_bad_value_gets_one_sentence(count: int | None, places: tuple[Path, Path], capsys) -> None:
    world, base = places
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    chosen = list(cases(world, base))
    if count:  # the trainer's commands, and a graph for ONNX, take a second each
        chosen = [case for case in chosen if case.what not in {*TRAINER, *SLOW}]
        chosen = random.Random(0).sample(chosen, count)
    found = [(*judge(case), case) for case in chosen]
    with capsys.disabled():
        print(len(found), "bad values:", dict(Counter(kind for kind, *_ in found))) if not count else None
    assert [what[:300] for what in map(str, found) if not what.startswith("('sentence'")] == []
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    assert (base / "file").read_text() == "a thesis"


OUTPUTS = (
    "index {world} --out={world}/Core-S2L2A/metadata.parquet", "index {world} --out={world}/climate.tif",
    "index {world} --out={base}/file", "pack {world} {world}", "pack {world} {world}/store",
    "pack {world} {base}/theirs", "simulate {world}", "simulate {base}/theirs",
    "simulate {base}/free --cells=1 --cell_size=24 --workers=0",
    "export {base}/nano.ckpt {base}/nano", "export {base}/nano.ckpt {base}/nano.ckpt",
)  # fmt: skip


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_is_never_a_source(command: str, places: tuple[Path, Path]) -> None:
    """Nor the work of somebody else: every file is as it was."""
    world, base = places
    for folder in ("theirs", "free.partial"):
        (base / folder).mkdir()
        (base / folder / "thesis.txt").write_text("years of work")
    (base / "nano.pth").rename(base / "nano.ckpt")
    files = [path for folder in (world, base) for path in folder.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    words = command.format(world=world, base=base).split()
    assert judge(Case(words[0], "a", "a", partial(main, words)))[0] == "sentence"
    assert {path: path.read_bytes() for path in files} == before
