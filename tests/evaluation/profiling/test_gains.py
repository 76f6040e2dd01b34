"""Each speed-up is left out in turn, and its loss measured."""

import gc
import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from benchmarks.in_memory import InMemoryDataModule
from terrafm_tg.cli.main import main
from terrafm_tg.profiling.gains import FULL, PLAIN, _variants, measure_gains
from terrafm_tg.profiling.stages import StageProfiler
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.speedups import SPEEDUPS

CONF = Path(__file__).resolve().parents[3] / "conf"
TINY = [
    *(f"--config={CONF / name}.yaml" for name in ("pretrain", "size/tiny", "data/memory", "hardware/cpu")),
    *("--model.depth=1", "--model.global_size=32", "--model.local_size=16", "--model.local_crops=2"),
    *("--model.prototypes=64", "--model.head_hidden=64", "--data.tile_size=36", "--data.batch_size=2"),
]


def test_every_speedup_is_a_variant() -> None:
    variants = _variants({"compile": True, "without": ["loss"]})
    assert list(variants) == [*(name for name in SPEEDUPS if name != "loss"), "compile", PLAIN]
    assert variants["pack"] == {"without": ["loss", "pack"]}
    assert variants[PLAIN] == {"without": list(SPEEDUPS), "compile": False}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, left_out = tmp_path / "gains.json", [name for name in SPEEDUPS if name not in ("pack", "average")]
    main(
        [
            "profile",
            "gains",
            *TINY,
            "--steps=1",
            "--warmup=1",
            "--rounds=1",
            f"--json={path}",
            f"--figure={tmp_path / 'gains.png'}",
            f"--model.without={left_out}",
        ]
    )
    printed = capsys.readouterr().out
    assert FULL in printed
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    gains = json.loads(path.read_text())["gains"]
    assert [gain["left_out"] for gain in gains] == [FULL, "pack", "average", PLAIN]
    assert all(gain["seconds"] > 0 for gain in gains)
    assert [gain["ratio"] == 1 for gain in gains] == [True, False, False, False]


def test_no_run_keeps_its_memory() -> None:
    alive = []

    def make_trainer() -> Trainer:
        alive.append(sum(isinstance(thing, TerraFM) for thing in gc.get_objects()))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(accelerator="cpu", max_steps=2, profiler=StageProfiler(1), **quiet)

    gc.collect()
    before = sum(isinstance(thing, TerraFM) for thing in gc.get_objects())
    settings = {"model": "terrafm_tiny", "depth": 1, "global_size": 32, "local_size": 16, "local_crops": 1}
    settings |= {"prototypes": 16, "head_hidden": 16, "without": [n for n in SPEEDUPS if n != "loss"]}
    data = InMemoryDataModule(batch_size=2, tile_size=36)
    measure_gains(settings, data, make_trainer, rounds=2, progress=False)
    assert [count - before for count in alive] == [1] * 9  # the one that is about to run


def test_another_task_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "profile",
                "gains",
                f"--config={CONF / 'finetune/eurosat.yaml'}",
                *TINY[3:4],
                "--model.weights=null",
            ]
        )
    assert "has no speed-ups" in capsys.readouterr().err
