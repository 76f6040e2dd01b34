"""Makes the README's picture: `python docs/_picture.py ENCODER.safetensors docs/images/terrafm.jpg`.

A tile of the simulated world in its three sensors, a view of the teacher and one of the student, and the fused patch
tokens' first three principal components as colors. ENCODER comes from `make pretrain` and `terrafm export`.
"""

import sys

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torchgeo.models import get_model

import terrafm_tg  # registers the models
from terrafm_tg.simulation import SimulatedWorld
from terrafm_tg.transforms import Normalize

TILE = 29
#: Title, color and (left, top, side) of the two views, by the sensor in which they are shown.
VIEWS = {"s1rtc": ("teacher: this view, in radar", "#ffb000", (70, 40, 420))}
VIEWS |= {"s2l2a": ("student: a corner, in optical", "#ff4d4d", (300, 300, 200))}


def main(weights: str, path: str, world: str = "data/picture_world") -> None:
    """Draws the picture of one tile and writes it to ``path``."""
    dataset = SimulatedWorld(world, cells=8, cell_size=1068)
    images = Normalize(size=528)(dataset[dataset.tile_slice(TILE)])
    images = {name: images[f"image_{name}"][None] for name in terrafm_tg.MODALITIES}
    encoder = get_model("terrafm_nano", weights=weights).eval()
    with torch.inference_mode():
        tokens = encoder.forward_features(images)[0, 1:]
    components = torch.pca_lowrank(tokens, q=3, niter=8)[0].reshape(33, 33, 3).numpy()

    panels = (figure := Figure(figsize=(11, 3.15), layout="constrained")).subplots(1, 4)
    for ax, (name, (image,)) in zip(panels, images.items(), strict=False):
        radar = name == "s1rtc"
        channels = [image[0], image[1], image[0] - image[1]] if radar else image[[3, 2, 1]]
        ax.imshow(stretch(np.stack([np.asarray(c) for c in channels], -1), axis=(0, 1) if radar else None))
        ax.set_title(terrafm_tg.MODALITIES[name].title, fontsize=11)
        if name in VIEWS:
            words, color, (x, y, side) = VIEWS[name]
            ax.add_patch(Rectangle((x, y), side, side, fill=False, ec=color, lw=2.5))
            ax.set_xlabel(words, fontsize=10)
    panels[3].imshow(stretch(components, axis=(0, 1)), interpolation="nearest")
    panels[3].set_title("TerraFM, three sensors fused", fontsize=11)
    panels[3].set_xlabel("patch tokens, main components", fontsize=10)
    for ax in panels:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 86})


def stretch(values: np.ndarray, axis: tuple[int, int] | None) -> np.ndarray:
    """Values from the 2nd to the 98th percentile as 0 to 1."""
    low, high = np.nanpercentile(values, (2, 98), axis=axis)
    return ((values - low) / (high - low)).clip(0, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
