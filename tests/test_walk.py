"""The files that a training step enters, from reading a tile to the optimizer, are those that CONTRIBUTING.md names."""

import re
import sys
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import pytest
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

import terrafm_tg
from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(terrafm_tg.__file__).parent
TOOL = 4  # a free number of sys.monitoring
#: The quick configuration at tiny sizes.
SMALL = {
    "model.depth": 1, "model.crops.global_size": 48, "model.crops.local_size": 32, "model.crops.local_crops": 2,
    "model.head.prototypes": 64, "data.batch_size": 4, "data.num_workers": 0, "data.val_bank": 8, "data.val_queries": 4,
    "data.cells": "null", "data.cell_size": "null", "trainer.max_steps": 1, "trainer.precision": "32-true",
    "trainer.callbacks": f"[{{class_path: {__name__}.Walk}}]", "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.enable_checkpointing": "false", "trainer.logger": "false",
}  # fmt: skip


class Walk(Callback):
    """Notes the files of the package whose functions are entered in the first step, its batch's reading included."""

    files: ClassVar[set[str]] = set()

    def on_train_epoch_start(self, *_: Any) -> None:
        def note(code: CodeType, offset: int) -> object:
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE) and code.co_name != "<module>":
                self.files.add(path.relative_to(PACKAGE).as_posix())
            return sys.monitoring.DISABLE  # of this function

        sys.monitoring.use_tool_id(TOOL, "walk")
        sys.monitoring.restart_events()
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.PY_START, note)
        sys.monitoring.set_events(TOOL, sys.monitoring.events.PY_START)

    def on_train_batch_end(self, *_: Any) -> None:
        sys.monitoring.set_events(TOOL, sys.monitoring.events.NO_EVENTS)
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.PY_START, None)
        sys.monitoring.free_tool_id(TOOL)


def test_a_step_enters_the_files_of_the_walk(small_world: Path, tmp_path: Path) -> None:
    stack = ("pretrain", "size/tiny", "data/simulated", "hardware/cpu", "quick")
    options = SMALL | {"data.root": small_world, "trainer.default_root_dir": tmp_path}
    words = [f"--config={ROOT / 'conf' / name}.yaml" for name in stack]
    main(["fit", *words, *(f"--{name}={value}" for name, value in options.items())])
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## A tile's way from disk to loss\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\d+\. `([\w/]+\.py)`", section, flags=re.MULTILINE)
    assert sorted(told) == sorted(Walk.files)
    assert len(told) <= 28


def damaged(samples: list[int]) -> None:
    """Cannot be read, for a reason."""
    try:
        int("nothing")
    except ValueError as error:
        raise TerraFMError(f"sample_{samples[0]}.tif cannot be read: fetch it again.") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_error_is_the_same_sentence(workers: int) -> None:
    with pytest.raises(TerraFMError) as info:
        next(iter(DataLoader(range(2), collate_fn=damaged, num_workers=workers)))
    assert str(info.value) == "sample_0.tif cannot be read: fetch it again."
