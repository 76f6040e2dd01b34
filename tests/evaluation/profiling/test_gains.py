"""Each speed-up is left out in turn, and its loss measured."""

import json
from pathlib import Path

import pytest

from terrafm_tg.cli import main
from terrafm_tg.evaluation.profiling.gains import FULL, PLAIN, _variants
from terrafm_tg.tasks.speedups import SPEEDUPS

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
            f"--model.without={left_out}",
        ]
    )
    printed = capsys.readouterr().out
    assert FULL in printed
    gains = json.loads(path.read_text())["gains"]
    assert [gain["left_out"] for gain in gains] == [FULL, "pack", "average", PLAIN]
    assert all(gain["seconds"] > 0 for gain in gains)
    assert [gain["ratio"] == 1 for gain in gains] == [True, False, False, False]


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
