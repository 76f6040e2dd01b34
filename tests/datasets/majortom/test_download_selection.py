"""Which cells a download takes, and what it says of a wrong selection."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from data.geotiff import write_geotiff
from datasets.range_server import RangeServer
from datasets.tiny_files import product, write_major_tom
from refusals import refusal, refused
from terrafm_tg.cli.main import main
from terrafm_tg.datasets import ESAWorldCover
from terrafm_tg.datasets.majortom import grid
from terrafm_tg.datasets.majortom.download import Selection
from terrafm_tg.datasets.majortom.download.selection import cell_tiles, cover_of_index, map_files


def products(cells: list[str], modalities: tuple[str, ...] = ("s2l2a",), **columns) -> pd.DataFrame:
    """A table of products, as the source's tables are read."""
    frame = pd.DataFrame([{"modality": m, "cell": cell} for m in modalities for cell in cells])
    plain = {
        "epsg": 32633,
        "nodata": 0.0,
        "cloud_cover": 0.0,
        "timestamp": pd.Timestamp(2021, 5, 1),
        "product_id": "one",
    }
    return frame.assign(**plain | columns)


def chosen(selection: Selection, table: pd.DataFrame, cover=None) -> set[str]:
    return set(selection.choose(table, cover)["cell"])


def test_a_box_takes_the_cells_that_reach_into_it():
    random = np.random.default_rng(0)
    rows, cols = grid.cells_at(random.uniform(-75, 75, 4000), random.uniform(-180, 180, 4000))
    cells = list(dict.fromkeys(grid.names(rows, cols)))
    rows, cols = grid.parse(cells)
    south, west = grid.corners(rows, cols)
    outlines = shapely.box(west, south, west + 360 / grid.cells_per_row(rows), south + 180 / grid.ROWS)
    for bbox in ((5.9, 45.8, 30.5, 77.8), (-180, -90, 180, 90), (-100, -50, -20, 50)):
        inside = shapely.intersects(outlines, shapely.box(*bbox))
        expected = set(np.array(cells)[inside])
        assert chosen(Selection(bbox=bbox, modalities="s2l2a"), products(cells)) == expected
    across = chosen(Selection(bbox=[170, -60, -170, 60], modalities="s2l2a"), products(cells))
    halves = [(170, -60, 180, 60), (-180, -60, -170, 60)]
    assert across == set.union(*(chosen(Selection(bbox=half, modalities="s2l2a"), products(cells)) for half in halves))
    assert 5 < len(across) < len(cells)


def test_a_share_is_stable_and_nested():
    cells = grid.names(np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100))
    table = products(cells)

    def share(value: float, seed: int = 0, of: pd.DataFrame = table) -> set[str]:
        return chosen(Selection(share=value, seed=seed, modalities="s2l2a"), of)

    small, large = share(0.1), share(0.3)
    assert small < large
    assert abs(len(small) - 1000) < 4 * 30  # four standard deviations
    assert share(0.1, of=table.iloc[5000:]) == small & set(cells[5000:])  # whatever else there is
    assert 40 < len(small & share(0.1, seed=1)) < 170  # a hundred by chance
    assert {"0U_10R", "0U_49R"} <= small  # on every machine


def test_all_or_any_of_the_modalities_and_clouds():
    cells = [f"520U_{column}R" for column in range(93, 97)]
    table = products(cells, ("s2l2a", "s1rtc"))
    table.loc[:3, "cloud_cover"] = [0.0, 30.0, 60.0, np.nan]  # of the optical products
    table = table.drop(index=4)  # the first cell has no radar
    both = ["s1rtc", "s2l2a"]
    assert chosen(Selection(modalities=both), table) == set(cells[1:])
    assert chosen(Selection(modalities=both, require="any"), table) == set(cells)
    assert chosen(Selection(modalities=both, max_cloud=30), table) == {cells[1], cells[3]}
    some = Selection(modalities=both, require="any", max_cloud=30).choose(table, None)
    assert some[some["cell"] == cells[2]]["modality"].tolist() == ["s1rtc"]
    assert chosen(Selection(modalities="s1rtc"), table) == set(cells[1:])


def test_of_several_products_the_index_s_choice_is_taken():
    cases = {
        "nodata": {"nodata": 3.0},
        "cloud": {"cloud_cover": 5.0},
        "late": {"timestamp": pd.Timestamp(2022, 5, 1)},
        "early": {},
    }
    table = pd.concat([products(["520U_93R"], product_id=name, **more) for name, more in cases.items()])
    other_zone = products(["520U_93R"], ("s1rtc",), epsg=32632)
    rows = Selection(require="any").choose(pd.concat([table, other_zone]), None)
    assert rows["product_id"].tolist() == ["late"]  # radar on another grid would never be read
    assert Selection(modalities="s1rtc").choose(other_zone, None)["epsg"].tolist() == [32632]


def test_land_cover_from_an_index(tmp_path: Path):
    cells = [f"520U_{column}R" for column in range(93, 96)]
    index = {"cell": np.repeat(cells, 4).tolist(), "land_cover": [0, 0, 3, 0, 0, 0, 0, 0, -1, -1, 11, 11]}
    pq.write_table(pa.table(index), tmp_path / "index.parquet")
    found = cover_of_index(tmp_path / "index.parquet")
    cases = [("cropland", cells[:1]), (10, cells[:2]), (["Ocean", "40"], [cells[0], cells[2]])]
    for classes, expected in cases:
        selection = Selection(land_cover=classes, modalities="s2l2a")
        assert chosen(selection, products(cells), lambda zones: found) == set(expected)


def test_land_cover_from_the_map(tmp_path: Path):
    """A map that is forest west of a meridian and crops east of it, and has no file further east: open sea there."""
    cells = [f"520U_{column}R" for column in range(120, 172, 2)]
    zones = pd.Series(32633, index=cells)
    tiles = cell_tiles(zones)
    names = map_files(tiles)
    assert names == [f"ESA_WorldCover_10m_2021_v200_N45E{lon:03}_Map.tif" for lon in (15, 18, 21)]
    codes = np.full((1800, 1800), 40, dtype=np.uint8)
    codes[:, :900] = 10
    for name, west in zip(names[:2], (15, 18), strict=True):
        place = {"epsg": 4326, "resolution": 3 / 1800, "corner": (west, 48)}
        write_geotiff(tmp_path / "source" / name, codes, **place, compress="deflate")
    middle = tiles.geometry.centroid.x.to_numpy().reshape(-1, 4)
    forest, crops = (middle % 3 < 1.5) & (middle < 21), (middle % 3 >= 1.5) & (middle < 21)
    with RangeServer(tmp_path / "source") as server:
        rows = {"s2l2a": [product("s2l2a", cell) for cell in cells]}
        write_major_tom(tmp_path / "source", rows)
        words = [f"--source={server.url}", f"--worldcover_source={server.url}", "--modalities=s2l2a", "--index=false"]
        for land_cover, expected in {"cropland": crops, "[10,ocean]": forest | (middle > 21)}.items():
            root = tmp_path / f"root{len(land_cover)}"
            main(["download", str(root), f"--land_cover={land_cover}", *words])
            held = pq.read_table(root / "Core-S2L2A/metadata.parquet")["grid_cell"].to_pylist()
            clear = np.abs((middle + 0.75) % 1.5 - 0.75).min(axis=1) > 0.1  # not cut by a border
            assert set(held) & set(np.array(cells)[clear]) == set(np.array(cells)[expected.any(axis=1) & clear])
            assert len(ESAWorldCover(root / "WorldCover")) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bbox": [100, 0]}, "`bbox` has 2 numbers"),
        ({"bbox": [10, 50, 5, 40]}, r"`bbox` \[10,50,5,40\] is empty or not on the globe"),
        ({"bbox": [10, 40, 400, 50]}, "not on the globe"),
        ({"cells": ["here"]}, "'here' is no Major-TOM cell: expected a name such as '897U_171L'"),
        ({"land_cover": "Jungle"}, "Land cover 'Jungle' is unknown: use Tree cover, Shrubland"),
        ({"share": 0.0}, "`share` is 0.0: it must be above 0 and up to 1"),
        ({"modalities": "s3"}, "Modality 's3' is unknown: use one of s1rtc, s2l1c, s2l2a"),
        ({"require": "most"}, "`require` is 'most': give 'all' or 'any'"),
        ({"max_cloud": 101.0}, "`max_cloud` is 101.0: it must be from 0 and up to 100"),
    ],
)
def test_an_impossible_selection(options: dict, said: str):
    with refused(match=said):
        Selection(**options)


def test_cells_by_name_and_from_a_file(tmp_path: Path):
    listed = tmp_path / "cells.csv"
    listed.write_text("grid_cell,region\n520U_93R,alps\n\n521U_93R\n")
    assert Selection(cells=listed).names == Selection(cells=str(listed)).names == ["520U_93R", "521U_93R"]
    listed.write_text("\n")
    with refused(match="names no cell: write one per line"):
        Selection(cells=listed)


def test_what_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_major_tom(tmp_path / "source", {"s2l2a": [product("s2l2a", "520U_93R"), product("s2l2a", "520U_94R")]})
    with RangeServer(tmp_path / "source") as server:
        words = ["download", str(tmp_path / "root"), f"--source={server.url}", "--modalities=s2l2a"]
        for more, said in (
            ("--bbox=[100,0,101,1]", "No cell is left after `bbox`: nothing to download"),
            ("--cells=[1U_1R]", "No cell is left after `cells`"),
            (f"--cells={tmp_path / 'none.txt'}", "There is no file"),
            ("--max_gb=0.000001", "bytes more, which `max_gb` 1e-06 does not allow"),
            ("--land_cover=10 --land_cover_from=nowhere", "nowhere is no tile index"),
            (f"--source={server.url}/other", "/other/Core-S2L2A/metadata.parquet does not exist (404)"),
            ("--modalities=[s1rtc,s2l2a]", "leave s1rtc out"),
            ("--source=elsewhere", "`source` is 'elsewhere': give an address that begins with http"),
        ):
            assert said in refusal(capsys, *words, *more.split())
    nobody = refusal(capsys, *words)
    assert f"{server.url}/Core-S2L2A/metadata.parquet cannot be read after 3 attempts" in nobody
    assert "check the network" in nobody
