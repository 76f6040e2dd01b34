"""From a scene to embeddings, a map and a page: `python examples/scene_to_map.py`, in minutes, without a download.

A simulated scene, in radar and optical bands, becomes a map of embeddings, a map of land cover from ten points, and a
page. Without `--model` an encoder is trained first. `examples/scene_to_map.ipynb` shows the same step by step.
"""

import argparse
from pathlib import Path

import geopandas as gpd
import numpy as np
import pretrain
import rasterio
from matplotlib.colors import ListedColormap, NoNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import maximum_filter, minimum_filter

from terrafm_tg.datasets.majortom.grid import GridCell
from terrafm_tg.inference.embed import embed
from terrafm_tg.inference.use import classify
from terrafm_tg.inference.view import write_page
from terrafm_tg.land_cover import CLASSES
from terrafm_tg.simulation.planet import Planet
from terrafm_tg.simulation.writer import encode_cell

CELL = GridCell(-151, 955)  # of the simulated planet: fields, forest, marsh and a lake
NAMES = {cover.code: cover.name for cover in CLASSES}


def write_scene(folder: Path, size: int = 1056) -> np.ndarray:
    """Writes radar and optical bands of the cell, a GeoTIFF each; returns its true land cover, as codes (H, W)."""
    codes, products = encode_cell(Planet(0), size, CELL)
    for image in (products[sensor].image for sensor in ("s2l2a", "s1rtc")):
        name = image["product_id"]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for band in (key for key in image if key[0] == "B" or key in ("vv", "vh")):
            (folder / name / f"{name}_{band}.tif").write_bytes(image[band])
    return codes


def write_points(path: Path, codes: np.ndarray, count: int = 10) -> np.ndarray:
    """Writes points of known class, well inside of an area as a person would click them; returns (row, column)."""
    inside = minimum_filter(codes, 41, mode="constant") == maximum_filter(codes, 41)
    kinds, rng = np.unique(codes[inside]), np.random.default_rng(0)
    pixels = np.array([rng.choice(np.argwhere(inside & (codes == kinds[i % len(kinds)]))) for i in range(count)])
    lonlat = CELL.lonlat(len(codes), (pixels[:, ::-1] + 0.5) / len(codes))
    classes = {"class": [NAMES[code] for code in codes[*pixels.T]]}
    gpd.GeoDataFrame(classes, geometry=gpd.points_from_xy(*zip(*lonlat, strict=True)), crs=4326).to_file(path)
    return pixels


def agreement(classes: Path, names: tuple[str, ...], codes: np.ndarray) -> float:
    """Returns the share of the scene's pixels whose mapped class is the true one."""
    with rasterio.open(classes) as file:
        mapped = file.read(1, out_shape=codes.shape)  # the nearest pixel
    return float((np.array(names)[mapped] == np.vectorize(NAMES.get)(codes)).mean())


def draw(out: Path, names: tuple[str, ...], pixels: np.ndarray, size: int) -> Figure:
    """Draws composite, principal components of the embeddings and classes, side by side."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = composite, components, cover = figure.subplots(1, 3)
    with rasterio.open(out / "embeddings.preview.tif") as file:
        composite.imshow(file.read().transpose(1, 2, 0))
    with rasterio.open(out / "embeddings.tif") as file:
        vectors = file.read().reshape(file.count, -1).T
        values = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[0][:, :3]
        components.imshow((0.5 + values / (4 * values.std(0))).clip(0, 1).reshape(file.height, file.width, 3))
    with rasterio.open(out / "classes.tif") as file:
        colors = ListedColormap([np.divide(file.colormap(1)[code], 255) for code in range(len(names))])
        cover.imshow(file.read(1), colors, norm=NoNorm(), extent=(0, size, size, 0), interpolation="nearest")
    cover.scatter(pixels[:, 1], pixels[:, 0], s=22, c="white", edgecolors="black")
    figure.legend([Patch(color=color) for color in colors.colors], names, loc="outside lower right", ncols=4)
    for ax, title in zip(panels, ("scene", "embeddings, main components", "land cover from ten points"), strict=True):
        ax.set(title=title, xticks=[], yticks=[])
    return figure


def main(arguments: list[str] | None = None) -> float:
    """Writes everything, and returns the share of the map that is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/scene_to_map"), help="folder to write to")
    parser.add_argument("--model", help="a name, checkpoint, export or run; one is trained where left out")
    parser.add_argument("--size", type=int, default=1056, help="pixels of the scene, a multiple of 48")
    options = parser.parse_args(arguments)
    out = options.out
    model = options.model or pretrain.main([f"--out={out / 'pretrain'}", f"--world={out / 'world'}"])
    codes = write_scene(out / "scene", options.size)
    embed(out / "scene", out / "embeddings.tif", model, stride=8)
    pixels = write_points(out / "points.geojson", codes)
    found = classify(out / "embeddings.tif", out / "points.geojson", out / "classes.tif")
    write_page(out / "embeddings.tif", layers=[out / "classes.tif"])
    draw(out, found.classes, pixels, options.size).savefig(out / "map.jpg", dpi=100, pil_kwargs={"quality": 88})
    return agreement(out / "classes.tif", found.classes, codes)


if __name__ == "__main__":
    print(f"{main():.1%} of the map is right")
