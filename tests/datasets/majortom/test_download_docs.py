"""The commands of docs/major_tom.md, run line by line against a local server."""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from datasets.range_server import RangeServer
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import PackedTiles
from terrafm_tg.datasets.majortom.rows import FOLDERS

ROOT = Path(__file__).resolve().parents[3]
#: A run of seconds, over what the page says.
TINY = """
trainer: {accelerator: cpu, devices: 1, precision: 32-true, max_epochs: 1, num_sanity_val_steps: 0,
  enable_progress_bar: false, enable_model_summary: false, limit_train_batches: 2}
model: {init_args: {model: terrafm_tiny, depth: 2, crops: {global_size: 48, local_size: 32, local_crops: 2},
  head: {prototypes: 64, hidden_dim: 64, bottleneck_dim: 32}}}
data: {init_args: {batch_size: 4, num_workers: 0, val_bank: 8, val_queries: 4, val_block: 2}}
"""


def test_the_commands_of_the_page_run(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As a reader would type them, in a folder of their own; a simulated world stands for the real one."""
    source = tmp_path / "source"
    (tmp_path / "work").mkdir()
    (tmp_path / "work/conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which `fit` adds this folder
    source.mkdir()
    (source / "WorldCover").symlink_to(small_world / "WorldCover")
    Path("worldcover").symlink_to(small_world / "WorldCover")
    with RangeServer(source) as server:
        for folder in FOLDERS.values():
            (source / folder).mkdir()
            (source / folder / "images").symlink_to(small_world / folder / "images")
            table = pd.read_parquet(small_world / folder / "metadata.parquet")
            table["parquet_url"] = f"{server.url}/{folder}/" + table["parquet_url"]  # whole addresses, as published
            table.to_parquet(source / folder / "metadata.parquet")
        page = (ROOT / "docs/major_tom.md").read_text()
        lines = [
            line.strip()
            for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
            for line in block.replace("\\\n", " ").splitlines()
        ]
        # The simulated cells lie all over the globe, and none holds mangroves by chance alone.
        instead = {"[5.9,45.8,10.5,47.8]": "[-180,-80,180,80]", "--share 0.1": "--share 0.9", "Mangroves": "Grassland"}
        address = [f"--source={server.url}", f"--worldcover_source={server.url}/WorldCover"]
        Path("tiny.yaml").write_text(TINY)
        run = tmp_path / "run"
        places = (f"--trainer.{key}={run}" for key in ("default_root_dir", "logger.init_args.save_dir"))
        small = ["--config=tiny.yaml", *places]
        for line in lines:
            for old, new in instead.items():
                line = line.replace(old, new)
            command, *words = shlex.split(line.removeprefix("terrafm "))
            # No picture tells the size there, and the server is not the published one.
            remote = ["--tile_size=72", f"--remote={server.url}"] if "--remote" in words else []
            main([command, *words, *{"download": address, "fit": small, "index": remote}.get(command, [])])
        printed = capsys.readouterr().out
    assert [line.split()[1] for line in lines] == ["download", "download", "pack", "fit", "index", "download"]
    assert "at 100 MB/s" in printed
    held = pq.read_table("data/major_tom/Core-S2L2A/metadata.parquet")["grid_cell"].to_pylist()
    assert 10 < len(held) <= 40
    assert len(PackedTiles("data/packed")) % 4 == 0
    assert list(run.rglob("*.ckpt"))
