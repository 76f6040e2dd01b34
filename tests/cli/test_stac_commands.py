"""``terrafm grid``, ``index`` and ``fit`` from a search by box and dates, behind a server."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datasets.scenes.stac_world import SearchServer, write_world
from refusals import refusal
from terrafm_tg.cli.main import main
from terrafm_tg.datasets.scenes.stac.catalog import ITEMS

CONF = Path(__file__).resolve().parents[2] / "conf"
CLEAR = ["--collections=[sentinel-2-l2a,sentinel-1-rtc]", "--bbox=[11.72,48.08,11.78,48.13]", "--dates=2023-05"]
CLEAR += ["--max_cloud=20"]
TINY = {
    "model.depth": 1, "model.crops.global_size": 96, "model.crops.local_size": 48, "model.crops.local_crops": 2,
    "model.head.prototypes": 64, "model.center.alpha": 1, "model.schedule.warmup_epochs": 0, "data.batch_size": 2,
    "data.num_workers": 0, "data.val_share": 0, "data.tile_size": 132, "trainer.max_steps": 1,
    "trainer.max_epochs": 1, "trainer.limit_val_batches": 0, "trainer.precision": "32-true",
    "trainer.log_every_n_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stac") / "world"
    write_world(folder)
    return folder


def fit(folder: Path, overlay: str, *more: str) -> float:
    """The loss of one step."""
    stack = [f"--config={CONF / name}.yaml" for name in ("pretrain", "size/tiny", f"data/{overlay}", "hardware/cpu")]
    paths = {"trainer.default_root_dir": folder, "trainer.logger.init_args.save_dir": folder}
    main(["fit", *stack, *(f"--{key}={value}" for key, value in (TINY | paths).items()), *more])
    return pd.read_csv(next(folder.rglob("metrics.csv")))["train/loss"].dropna().iloc[0]


def test_grid_index_and_fit(world: Path, tmp_path: Path, capsys) -> None:
    cells, items = tmp_path / "cells", tmp_path / "items"
    with SearchServer(world) as server:
        main(["grid", f"{server.url}/api", str(cells), "--cell_size=264", *CLEAR])
        assert "2 scenes, 0.00" in capsys.readouterr().err
        items.mkdir()
        main(["index", str(items), f"--stac={server.url}/api", "--tile_size=132", "--figure=false", *CLEAR])
        said = capsys.readouterr().out
        assert "2 scenes (1 of Sentinel-1 RTC, 1 of Sentinel-2 L2A)" in said
        assert f"--data.root={items} --data.remote=[{server.url}/] --data.tile_size=132" in said
        assert np.isfinite(fit(tmp_path / "remote", "folder", f"--data.root={items}", f"--data.remote=[{server.url}/]"))
    main(["index", str(cells), "--figure=false"])
    assert np.isfinite(fit(tmp_path / "local", "major_tom", f"--data.root={cells}"))


def test_mistakes_are_one_sentence(world: Path, tmp_path: Path, capsys) -> None:
    with SearchServer(world) as server:
        api = f"{server.url}/api"
        for words, said in (
            (["grid", api, str(tmp_path / "x")], "is the API of a whole archive: give `collections`"),
            (["grid", f"{server.url}/none", str(tmp_path / "x")], "does not exist (404)"),
            (["grid", str(world / "s2"), str(tmp_path / "x"), "--dates=2023"], "of which only `bbox` chooses a part"),
            (["grid", "ftp://h/x", str(tmp_path / "x")], "is no address that is read"),
            (["index", str(tmp_path), "--dates=2023"], "name it with `stac`"),
            (["index", str(tmp_path), f"--stac={api}", "--max_gb=0.001", *CLEAR], "`max_gb` 0.001 does not allow"),
            (["index", str(tmp_path), f"--stac={world}/catalog.json"], f"lie below {world}: use that folder instead"),
            (["index", str(tmp_path), f"--stac={api}", *CLEAR[:2], "--dates=2024"], "widen the box, the dates"),
        ):
            assert said in refusal(capsys, *words), words
    assert not (tmp_path / "index.parquet").exists()


def test_a_catalog_on_disk_is_indexed_in_its_folder(world: Path, capsys) -> None:
    main(["index", str(world), f"--stac={world / 'catalog.json'}", "--tile_size=132", "--figure=false", *CLEAR])
    table = pd.read_parquet(world / "index.parquet")
    assert len(table) == 25
    assert "://" not in "".join(table["path_s2l2a"])
    assert "Next" not in capsys.readouterr().out
    (world / "index.parquet").unlink()
    (world / ITEMS).unlink()
