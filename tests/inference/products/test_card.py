"""The model card: its words are of the run, and its code runs as it stands."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine

from inference.products.conftest import ABOUT, PLACES, vectors
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products import (
    Reduction,
    tile_rows,
    write_card,
    write_cog,
    write_item,
    write_table,
    write_table_item,
    write_zarr,
)

Make = Callable[..., MapParts]


def run_code(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the card's Python in its folder, block by block; a block of a library that is not installed is left out."""
    monkeypatch.chdir(card.parent)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", card.read_text(), re.S | re.M):
        if "rioxarray" not in block or find_spec("rioxarray"):
            exec(compile(block, str(card), "exec"), names)
    return names


def write_map(parts: MapParts, folder: Path, reduction: Reduction, **about: Any) -> Path:
    write_cog(parts, folder / "m.tif", reduction)
    write_item(parts, folder / "m.tif", folder / "m.json", reduction)
    write_card(folder / "README.md", ABOUT | about, [folder / "m.json"])
    return folder / "README.md"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("pca", [None, 5])
def test_the_code_reads_a_map(
    make_map: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, pca: int | None
) -> None:
    parts = make_map()
    reduction = Reduction.fit_maps([parts], dtype, pca)
    names = run_code(write_map(parts, tmp_path, reduction), monkeypatch)
    whole = vectors(43, 57, 12)
    values = reduction.decode(reduction.encode(whole))
    np.testing.assert_allclose(names["values"], np.moveaxis(values, -1, 0), rtol=1e-5, atol=1e-6)
    assert names["image"].shape == (reduction.stored, 43, 57)
    if pca:
        np.testing.assert_allclose(names["vectors"], reduction.restore(values), rtol=1e-4, atol=1e-3)
        assert np.nanmax(np.abs(names["vectors"])) > 1000  # the mean is added


@pytest.mark.parametrize(("dtype", "pca"), [("float32", None), ("int8", 5)])
def test_the_code_reads_a_store(
    make_map: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, pca: int | None
) -> None:
    parts = make_map()
    reduction = Reduction.fit_maps([parts], dtype, pca)
    write_zarr(parts, tmp_path / "m.zarr", reduction)
    write_item(parts, tmp_path / "m.zarr", tmp_path / "m.json", reduction)
    write_card(tmp_path / "README.md", ABOUT, [tmp_path / "m.json"])
    names = run_code(tmp_path / "README.md", monkeypatch)
    values = reduction.decode(reduction.encode(vectors(43, 57, 12)))
    np.testing.assert_allclose(names["values"].transpose("y", "x", "embedding"), values, rtol=1e-5, atol=1e-6)
    if pca:
        np.testing.assert_allclose(names["vectors"], reduction.restore(values), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("dtype", "pca"), [("float32", None), ("int8", None), ("int8", 3)])
def test_the_code_reads_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, pca: int | None) -> None:
    crs, transform = PLACES["utm33"]
    boxes = [(x, 0, x + 14, 14) for x in range(0, 140, 14)]
    frame: gpd.GeoDataFrame = tile_rows(int(crs[5:]), Affine(*transform), boxes, "S2B_x", "2023-03-02", "terrafm_base")
    given = np.random.default_rng(2).normal(3, 1, size=(10, 8)).astype(np.float32)
    frame["embedding"] = list(given)
    about = {key: value for key, value in ABOUT.items() if key not in ("dates", "products")}
    reductions = write_table([frame], tmp_path / "embeddings.parquet", about, dtype, pca)
    write_table_item(tmp_path / "embeddings.parquet", tmp_path / "embeddings.json", about, reductions)
    write_card(tmp_path / "README.md", about, [tmp_path / "embeddings.json"])
    names = run_code(tmp_path / "README.md", monkeypatch)
    reduction = reductions["embedding"]
    expected = {
        row.unique_id: reduction.restore(reduction.decode(reduction.encode(vector[None])))[0]
        for row, vector in zip(frame.itertuples(), given, strict=True)
    }
    got = names["vectors"] if dtype == "int8" else names["numbers"]
    assert len(got) == 10
    for key, vector in zip(names["table"].unique_id, got, strict=True):
        np.testing.assert_allclose(vector, expected[key], rtol=1e-4, atol=1e-4)
    assert names["vector"].shape == (reduction.stored,)


def test_it_says_what_made_them(make_map: Make, tmp_path: Path) -> None:
    own = {"s1rtc": {"mean": [-11.25, -18.5], "std": [4.0, 4.5]}}
    text = write_map(make_map(), tmp_path, Reduction(12), run="0123abcd", statistics=own, license="mit").read_text()
    for said in (
        "| model | terrafm_base |", "| license | MIT |", "| run | 0123abcd |", "| software | terrafm-tg 0.1.0 |",
        "12 numbers, float32", "| VV | -11.25 | 4 |", "digital numbers", "| B8A |", "the model's own",
        ABOUT["products"]["s2l2a"][0], "2023-03-01T05:10:00Z to 2023-03-02T09:50:29Z", "arXiv:2506.06281",
    ):  # fmt: skip
        assert said in text, said
    assert "components" not in text
    assert (
        text
        == write_map(make_map(), tmp_path, Reduction(12), run="0123abcd", statistics=own, license="mit").read_text()
    )


def test_a_long_list_is_cut(make_map: Make, tmp_path: Path) -> None:
    write_map(make_map(), tmp_path, Reduction(12))
    items = [tmp_path / f"{number}.json" for number in range(120)]
    for item in items:
        item.write_bytes((tmp_path / "m.json").read_bytes())
    write_card(tmp_path / "README.md", ABOUT, items)
    text = (tmp_path / "README.md").read_text()
    assert "120 products" in text
    assert "20 more" in text
