"""Embeddings of whole tiles, by each sensor alone and by all of them."""

import torch
from torch import Tensor, nn

from terrafm_tg.transforms import SensorBatch

#: Name of the embedding that uses every sensor a tile has.
FUSED = "fused"


def embed_sensors(encoder: nn.Module, tiles: SensorBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns class tokens of tiles, from each sensor alone and from all that a tile has, fused.

    Args:
        encoder: Called as ``encoder(x, modality=name)`` and ``encoder(x, sample_idx=sample_idx, size=size)``.
        tiles: The tiles.

    Returns:
        Embeddings, name -> (n, D), and the positions of their tiles in the batch, name -> (n,).
    """
    idx = {name: tiles.idx(name) for name, x in tiles.images.items() if len(x)}
    images = {name: tiles.images[name] for name in idx}
    embeddings = {name: encoder(x, modality=name) for name, x in images.items()}
    if len(idx) == 1:
        (name,) = idx
        return embeddings | {FUSED: embeddings[name]}, idx | {FUSED: idx[name]}
    seen = torch.cat(list(idx.values())).unique()  # a tile may have none of these sensors
    places = {name: torch.searchsorted(seen, at) for name, at in idx.items()}
    return embeddings | {FUSED: encoder(images, sample_idx=places, size=len(seen))}, idx | {FUSED: seen}
