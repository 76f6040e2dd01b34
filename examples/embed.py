"""Embeds a Sentinel-2 scene: `python examples/embed.py scene.tif embeddings.tif`.

`scene.tif` holds the 12 bands of L2A (B01 to B12 without B10) at 10 m as digital numbers without the offset of +1000;
name others with `--bands` and `--modality`. The result is a GeoTIFF with a band per dimension of the embedding and a
pixel per patch of 16 x 16 pixels (160 m), and with `--windows` a NumPy file with the embedding of each window.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import timm
import torch
from rasterio.windows import Window

import terrafm_tg  # registers the models
from terrafm_tg.transforms import Normalize

PATCH = 16


def main(arguments: list[str] | None = None) -> None:
    """Encodes window by window and writes the patch embeddings where they lie."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("scene", type=Path, help="GeoTIFF, all bands at 10 m: dB or digital numbers without offset")
    parser.add_argument("out", type=Path, help="GeoTIFF to write: a pixel per patch, a band per dimension")
    parser.add_argument("--windows", type=Path, help="file for the windows' embeddings, such as windows.npz")
    parser.add_argument("--model", default="terrafm_base", help="name of the encoder")
    parser.add_argument("--weights", default="terrafm_base", help="a file, a published name, or `none`")
    parser.add_argument(
        "--modality", default="s2l2a", choices=sorted(terrafm_tg.MODALITIES), help="sensor of the scene"
    )
    parser.add_argument("--bands", nargs="+", help="of the file, in its order; all of the modality by default")
    parser.add_argument("--window", type=int, default=224, help="pixels that the encoder sees at once")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="such as cpu or cuda:1"
    )
    options = parser.parse_args(arguments)
    if options.window % PATCH:
        parser.error(f"--window must be a multiple of {PATCH}")

    weights = None if options.weights == "none" else options.weights
    model = timm.create_model(options.model, weights=weights, modality=options.modality, bands=options.bands)
    model = model.to(options.device).eval()
    normalize = Normalize(options.modality, bands=options.bands)
    places, embeddings = [], []
    with rasterio.open(options.scene, driver="GTiff") as scene:
        profile = {
            "driver": "GTiff",
            "crs": scene.crs,
            "transform": scene.transform * scene.transform.scale(PATCH),
            "height": -(-scene.height // PATCH),
            "width": -(-scene.width // PATCH),
            "count": model.num_features,
            "dtype": "float32",
            "compress": "deflate",
            "tiled": True,
        }
        with rasterio.open(options.out, "w", **profile) as out:
            for top in range(0, scene.height, options.window):
                for left in range(0, scene.width, options.window):
                    window = Window(left, top, options.window, options.window)
                    image = scene.read(window=window, boundless=True, masked=True).astype("float32").filled(np.nan)
                    image[:, (image == 0).all(axis=0)] = np.nan  # Sentinel-2's nodata
                    images = normalize(torch.from_numpy(image)[None]).to(options.device)
                    with torch.inference_mode():
                        tokens = model.forward_features(images)[0].float().cpu()  # (1 + patches, D)
                    side = options.window // PATCH
                    patches = tokens[1:].T.reshape(-1, side, side).numpy()
                    height, width = (min(side, n) for n in (out.height - top // PATCH, out.width - left // PATCH))
                    place = Window(left // PATCH, top // PATCH, width, height)
                    out.write(patches[:, :height, :width], window=place)
                    places.append(scene.transform * (left + options.window / 2, top + options.window / 2))
                    embeddings.append(tokens[0].numpy())
    if options.windows:
        np.savez(options.windows, xy=np.array(places), embeddings=np.stack(embeddings))


if __name__ == "__main__":
    main()
