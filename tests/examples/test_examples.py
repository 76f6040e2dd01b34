"""The scripts in `examples/` run as they stand, with small arguments."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import geopandas as gpd
import pytest
import rasterio
import torch
from torchgeo.models import get_model

from data import labelled
from terrafm_tg.models import build_encoder

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_is_one_short_file(path: Path):
    assert len(path.read_text().splitlines()) < 100


def test_pretrain(small_world: Path, tmp_path: Path):
    small = {"world": small_world, "cells": 40, "cell_size": 144, "crop": 32}
    small |= {"epochs": 1, "batch_size": 32, "workers": 0, "out": tmp_path}
    words = [f"--{name}={value}" for name, value in small.items()]
    encoder = load("pretrain").main(words)
    assert get_model("terrafm_nano", weights=encoder).embed_dim == 192
    assert (tmp_path / "curves.png").exists()


def test_finetune(tmp_path: Path):
    labelled.eurosat(tmp_path / "eurosat")
    small = {"root": tmp_path / "eurosat", "out": tmp_path, "model": "terrafm_nano", "weights": "none"}
    small |= {"size": 32, "epochs": 1, "batch_size": 4, "workers": 0}
    scores = load("finetune").main([f"--{name}={value}" for name, value in small.items()])
    assert 0 <= scores["test_OverallAccuracy"] <= 1


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint of `terrafm_nano`, of random weights."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    state = {f"model.{name}": tensor for name, tensor in build_encoder("terrafm_nano").state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"model": "terrafm_nano"}}, path)
    return path


def test_scene_to_map(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the middle of the scene, on whose boundary fields, water and marsh meet."""
    monkeypatch.syspath_prepend(FOLDER)
    share = load("scene_to_map").main([f"--out={tmp_path}", f"--model={untrained}", "--size=480"])
    assert share > 0.5  # bands alone tell most; a map that is flipped or shifted is right by a third
    points = gpd.read_file(tmp_path / "points.geojson")
    with rasterio.open(tmp_path / "classes.tif") as file:
        assert (file.width, file.height, file.res) == (60, 60, (80, 80))
        names = sorted(points["class"].unique())
        at = points.to_crs(file.crs).geometry
        mapped = [names[code] for (code,) in file.sample(zip(at.x, at.y, strict=True))]
    assert mapped == points["class"].tolist()
    assert (tmp_path / "map.jpg").stat().st_size < 200_000
    assert (tmp_path / "embeddings.html").read_text().startswith("<!DOCTYPE html>")


def test_the_notebook_runs(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its code as it stands, and what it shows is of this code."""
    path = FOLDER / "scene_to_map.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    assert path.stat().st_size < 400_000
    monkeypatch.syspath_prepend(FOLDER)
    for name, value in {"OUT": tmp_path, "MODEL": untrained, "SIZE": 480}.items():
        monkeypatch.setenv(f"SCENE_TO_MAP_{name}", str(value))
    names = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number + 1}", "exec"), names)
    assert len(names["near"]) == len(names["pixels"]) == 10
    assert names["page"].path.is_file()
