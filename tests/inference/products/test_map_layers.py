"""Files of a map: read by GDAL with the right values, place, colors and names; polygons without gaps; a picture."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import rasterio.shutil
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import from_origin

from refusals import refused
from terrafm_tg.inference.parts import MapParts
from terrafm_tg.inference.products.layers import Layer, count_classes, write_layer
from terrafm_tg.inference.products.legend import Legend, make_legend
from terrafm_tg.inference.products.picture import write_picture
from terrafm_tg.inference.products.polygons import write_polygons
from terrafm_tg.land_cover import CLASSES

#: Names as people have them; GDAL, XML, Markdown, matplotlib and SQL each read some of these characters.
ODD = ["a & <b> \"c\" 'd'", "_$x_1^2$ \\frac{", "Wald 森林 🌲", "line\nbreak\x00\x1b[31m", "", "[bold]%s{0};--"]
GRID = from_origin(400_000, 5_300_000, 10, 10)


def patchwork(height: int, width: int, classes: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blobs of classes, and 255 in a corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (-(-height // 9), -(-width // 7)))
    values = np.kron(coarse, np.ones((9, 7), int))[:height, :width]
    flips = rng.random(values.shape) < 0.05
    values[flips] = rng.integers(0, classes, flips.sum())
    values[: height // 5, : width // 4] = 255
    return values.astype(np.uint8)


def parts_of(values: NDArray, folder: Path, part: int = 64, **about: str) -> MapParts:
    """A finished map in parts."""
    values = values[..., None] if values.ndim == 2 else values
    parts = MapParts(
        folder / "parts", "m", "EPSG:32633", tuple(GRID[:6]), *values.shape, part, str(values.dtype), about
    )
    parts.begin()
    for row in range(parts.grid[0]):
        for column in range(parts.grid[1]):
            parts.write(row, column, values[*parts.slices(row, column)])
    return parts


def write_classes(values: NDArray, folder: Path, legend: Legend) -> Path:
    """The map of classes as a GeoTIFF."""
    layer = Layer("", slice(0, 1), ["class"], "uint8", 255, legend=legend)
    write_layer(folder / "map.tif", parts_of(values, folder, model="x"), layer)
    return folder / "map.tif"


def test_classes_have_place_colors_names_and_overviews(tmp_path: Path) -> None:
    values, legend = patchwork(600, 1100, len(ODD)), make_legend(ODD, len(ODD))
    path = write_classes(values, tmp_path, legend)
    with rasterio.open(path) as file:
        assert (file.read(1) == values).all()
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32633, GRID, 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        table = file.colormap(1)
        assert [table[i][:3] for i in range(len(ODD))] == list(legend.colors)
        assert json.loads(file.tags()["classes"]) == {str(i): name for i, name in enumerate(legend.names)}
        assert file.tags()["model"] == "x"
        assert file.overviews(1) == [2, 4]
        small = file.read(1, out_shape=(300, 550))
    blocks = values.reshape(300, 2, 550, 2).swapaxes(1, 2).reshape(300, 550, 4)
    sure = (blocks == small[..., None]).sum(-1)  # an overview shows a class that is there, and the commonest
    counts = np.stack([(blocks == c).sum(-1) for c in [*range(len(ODD))]]).max(0)
    there = (blocks != 255).all(-1)
    assert (sure[there] == counts[there]).all()
    rasterio.shutil.copy(path, tmp_path / "x.vrt", driver="VRT")  # as GDAL understands it
    told = ElementTree.parse(tmp_path / "x.vrt").findall(".//Category")
    assert [category.text for category in told] == list(legend.names)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_shares_are_scaled_and_numbers_keep_their_unit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (90, 130, 4)).astype(np.uint8)
    values[:20, :30] = 255
    parts = parts_of(values, tmp_path)
    write_layer(tmp_path / "p.tif", parts, Layer("", slice(2, None), ["a", "b"], "uint8", 255, scale=1 / 254))
    with rasterio.open(tmp_path / "p.tif") as file:
        assert file.descriptions == ("a", "b")
        assert (file.read() == values[..., 2:].transpose(2, 0, 1)).all()
        assert file.scales == (1 / 254,) * 2
    numbers = np.random.default_rng(0).normal(size=(40, 50, 1)).astype(np.float32)
    numbers[3, 4] = np.nan
    folder = tmp_path / "numbers"
    write_layer(
        folder / "n.tif",
        parts_of(numbers, folder),
        Layer("", slice(0, 1), ["biomass"], "float32", np.nan, unit="Mg/ha"),
    )
    with rasterio.open(folder / "n.tif") as file:
        assert np.array_equal(file.read(1), numbers[..., 0], equal_nan=True)
        assert (file.units, file.descriptions, np.isnan(file.nodata)) == (("Mg/ha",), ("biomass",), True)
        assert file.read_masks(1)[3, 4] == 0


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_are_counted(tmp_path: Path, dtype: str) -> None:
    values = patchwork(70, 90, 3).astype(dtype)
    if dtype == "float32":
        values[values == 255] = np.nan
    counts, missing = count_classes(parts_of(values, tmp_path), 3)
    assert counts.tolist() == [(values == c).sum() for c in range(3)]
    assert missing == values.size - counts.sum()


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".parquet"])
def test_polygons_cover_the_map(tmp_path: Path, ending: str) -> None:
    values, legend = patchwork(60, 80, len(ODD)), make_legend(ODD, len(ODD))
    path = tmp_path / "new" / f"p{ending}"
    count = write_polygons(path, write_classes(values, tmp_path, legend), legend)
    read = geopandas.read_parquet if ending == ".parquet" else geopandas.read_file
    table = read(path)
    assert len(table) == count
    assert table.crs.to_epsg() == (4326 if ending == ".geojson" else 32633)
    assert set(table["name"]) == set(legend.names)
    place = table.to_crs(32633)
    assert np.allclose(place.area, table["area_m2"], rtol=2e-3 if ending == ".geojson" else 1e-9)
    burnt = rasterize(zip(place.geometry, table["class"], strict=True), values.shape, transform=GRID, fill=255)
    assert (burnt == values).all()
    assert [legend.names[c] for c in table["class"]] == list(table["name"])
    assert table["color"].str.fullmatch("#[0-9a-f]{6}").all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if ending == ".parquet":
        meta = json.loads(pyarrow.parquet.read_schema(path).metadata[b"geo"])
        assert (meta["version"], "covering" in meta["columns"]["geometry"]) == ("1.1.0", True)


@given(seed=st.integers(0, 500), tolerance=st.floats(5, 60))
@settings(max_examples=8, deadline=None)
def test_simplified_polygons_have_no_gaps_and_do_not_overlap(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tolerance: float
) -> None:
    folder = tmp_path_factory.mktemp("simple")
    values, legend = patchwork(40, 50, 4, seed), make_legend([], 4)
    values[values == 255] = 0  # no edge but the map's own
    write_polygons(folder / "p.gpkg", write_classes(values, folder, legend), legend, simplify=tolerance)
    table = geopandas.read_file(folder / "p.gpkg")
    shapes = table.geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    whole = shapely.coverage_union_all(shapes)
    assert shapely.get_num_interior_rings(whole) == 0
    assert shapely.area(shapes).sum() == pytest.approx(shapely.area(whole))
    exact = shapely.box(400_000, 5_300_000 - 400, 400_500, 5_300_000)
    assert shapely.area(whole) == pytest.approx(shapely.area(exact), rel=0.15)  # its corners may be cut


def test_simplified_polygons_have_fewer_corners_and_small_areas_join_their_neighbor(tmp_path: Path) -> None:
    values, legend = np.zeros((60, 60), np.uint8), make_legend([], 3)
    rows, columns = np.mgrid[:60, :60]
    values[rows > columns] = 1  # a staircase
    values[10, 40:43] = 2
    values[:5, :5] = 255
    classes = write_classes(values, tmp_path, legend)
    assert write_polygons(tmp_path / "a.gpkg", classes, legend) == 3
    assert write_polygons(tmp_path / "b.gpkg", classes, legend, simplify=15, min_area=400) == 2
    plain, simple = (geopandas.read_file(tmp_path / name) for name in ("a.gpkg", "b.gpkg"))
    assert plain.geometry.count_coordinates().sum() > 200
    assert simple.geometry.count_coordinates().sum() < 30
    assert simple.area_m2.sum() == pytest.approx((3600 - 25) * 100, rel=0.01)


def test_a_map_without_values_and_another_format(tmp_path: Path) -> None:
    legend = make_legend(["a"], 1)
    classes = write_classes(np.full((20, 20), 255, np.uint8), tmp_path, legend)
    for ending in ("gpkg", "geojson", "parquet"):
        assert write_polygons(tmp_path / f"p.{ending}", classes, legend, simplify=10) == 0
        assert (tmp_path / f"p.{ending}").is_file()
    with refused(match=r"`polygons` is .*p.shp: give a file that ends with .gpkg, .geojson"):
        write_polygons(tmp_path / "p.shp", classes, legend)
    write_picture(tmp_path / "p.png", classes, "empty", legend, [0.0], "")
    assert Image.open(tmp_path / "p.png").size[0] > 100


def test_the_picture_shows_each_color_and_any_name(tmp_path: Path) -> None:
    values, legend = patchwork(120, 90, len(ODD)), make_legend(ODD, len(ODD))
    classes = write_classes(values, tmp_path, legend)
    shares = (np.bincount(values[values < 255], minlength=len(ODD)) / (values < 255).sum()).tolist()
    write_picture(tmp_path / "p.png", classes, "$title_ {", legend, shares, "")
    shown = {tuple(c[:3]) for c in np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 4)}
    assert set(legend.colors) <= shown
    many = make_legend([], 200)
    write_picture(tmp_path / "many.png", classes, "many", many, [1 / 200] * 200, "")
    assert Image.open(tmp_path / "many.png").size[1] < 3000


def test_the_picture_of_numbers_has_a_scale(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(40, 50, 1)).astype(np.float32)
    write_layer(tmp_path / "n.tif", parts_of(numbers, tmp_path), Layer("", slice(0, 1), ["x"], "float32", np.nan))
    write_picture(tmp_path / "p.png", tmp_path / "n.tif", "numbers", None, [], "t/ha $^")
    assert len({tuple(c) for c in np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 4)}) > 100


def test_colors_differ_and_are_worldcovers_where_names_are() -> None:
    assert len(set(make_legend([], 200).colors)) == len(set(make_legend([], 200).names)) == 200
    names = [c.name for c in CLASSES]
    assert make_legend(names[::-1], 11).colors == tuple(c.color for c in CLASSES[::-1])
    pale = make_legend(["background", "water"], 2).colors[0]
    assert min(pale) > 200
    legend = make_legend(["a", "b"], 2, {"b": "#0a0B0c"}, more="none")
    assert (legend.names, legend.colors[1], len(legend.colors)) == (("a", "b", "none"), (10, 11, 12), 3)
    assert make_legend([], 2, ["#000000", "ffffff"]).colors == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(
    ("colors", "why"),
    [
        (["#000"], "`colors` has 1, and there are 2"),
        (["red", "#000000"], "has 'red': write"),
        ({"c": "#000000"}, "names 'c'"),
    ],
)
def test_colors_that_are_none(colors: list[str] | dict[str, str], why: str) -> None:
    with refused(match=why):
        make_legend(["a", "b"], 2, colors)


def test_names_get_the_colors_that_maps_give_them() -> None:
    """Water is blue and forest green, unless a name says that it is not that, or the color is taken."""
    legend = make_legend(["Forest", "Water", "no water", "Lake", "Vineyard"], 5)
    assert legend.colors[:2] == (CLASSES[0].color, CLASSES[7].color)
    assert len({*legend.colors}) == 5
