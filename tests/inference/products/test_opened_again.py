"""Each product, as the reader of `terrafm search`, `classify` and `change` opens it."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest

from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products import Reduction, write_cog, write_table, write_zarr
from terrafm_tg.inference.use.opened import open_embeddings

Make = Callable[..., MapParts]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("ending", ["tif", "zarr", "parquet"])
def test_vectors_come_back(make_map: Make, tmp_path: Path, ending: str, dtype: str) -> None:
    parts = make_map(40, 70, 6, part=32)
    path, vectors = tmp_path / f"m.{ending}", np.concatenate([values for _, values in parts.rows()])
    if ending == "parquet":
        rows, columns = np.indices(vectors.shape[:2]).reshape(2, -1)
        middles = gpd.points_from_xy(*(parts.affine * (columns + 0.5, rows + 0.5)), crs=parts.crs)
        frame = gpd.GeoDataFrame(geometry=middles)
        frame["embedding"] = list(vectors.reshape(-1, 6))
        reduction = write_table([frame], path, parts.about, dtype)["embedding"]
    else:
        reduction = Reduction.fit_maps([parts], dtype)
        {"tif": write_cog, "zarr": write_zarr}[ending](parts, path, reduction)
    expected = reduction.decode(reduction.encode(vectors))
    layer = open_embeddings(path).layers[0]
    assert layer.about["model"] == "terrafm_base"
    assert layer.date == "2023-03-01"
    found = 0
    for _, part in open_embeddings(path).parts():
        middles = gpd.GeoSeries(gpd.points_from_xy(part.lon, part.lat), crs=4326).to_crs(parts.crs)
        column, row = ~parts.affine * (middles.x.to_numpy(), middles.y.to_numpy())
        np.testing.assert_allclose((column % 1, row % 1), 0.5, atol=0.01)
        np.testing.assert_allclose(part.x, expected[row.astype(int), column.astype(int)], rtol=1e-5, atol=1e-6)
        found += len(part.x)
    assert found == np.isfinite(vectors).all(-1).sum()
