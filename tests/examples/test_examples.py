"""The scripts in `examples/` run as they stand, with small arguments."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio
from torchgeo.models import get_model

from data import labelled

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


def test_embed(tmp_path: Path):
    scene, out, windows = tmp_path / "scene.tif", tmp_path / "embeddings.tif", tmp_path / "windows.npz"
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    pixels = np.random.default_rng(0).integers(100, 4000, (12, 80, 104), dtype=np.uint16)
    profile = {"driver": "GTiff", "count": 12, "height": 80, "width": 104, "dtype": "uint16", "nodata": 0}
    with rasterio.open(scene, "w", **profile, crs="EPSG:32633", transform=transform) as file:
        file.write(pixels)
    words = [str(scene), str(out), f"--windows={windows}", "--model=terrafm_nano", "--weights=none", "--window=64"]
    load("embed").main(words)
    with rasterio.open(out) as file:
        assert (file.count, file.height, file.width) == (192, 5, 7)
        assert file.transform == rasterio.Affine(160, 0, 500_000, 0, -160, 5_000_000)
        embeddings = file.read()
    assert np.isfinite(embeddings).all()
    assert len(np.unique(embeddings[0])) == embeddings[0].size  # each patch was written, once
    with np.load(windows) as file:
        assert file["embeddings"].shape == (4, 192)
        assert file["xy"][0].tolist() == [500_320, 4_999_680]
