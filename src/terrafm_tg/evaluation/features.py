"""Embeddings of tiles, by sensor: what k-NN and retrieval compare."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TileFeatures(NamedTuple):
    """Embeddings of n tiles as one sensor (or all of them fused) sees them.

    Attributes:
        x: Embeddings, (n, D).
        row: Which tile each belongs to, a row of the dataset's index, int64 (n,).
        land_cover: WorldCover class 0-10, 11 ocean, -1 unknown, int64 (n,).
    """

    x: Tensor
    row: Tensor
    land_cover: Tensor

    def select(self, keep: Tensor) -> "TileFeatures":
        """The tiles at ``keep``, a boolean mask or positions."""
        return TileFeatures(self.x[keep], self.row[keep], self.land_cover[keep])

    def labelled(self) -> "TileFeatures":
        """The tiles whose land cover is known."""
        return self.select(self.land_cover >= 0)

    def unique(self) -> "TileFeatures":
        """Each tile once, by row: ranks may pad their shares, and a damaged tile is replaced by another."""
        row, inverse = torch.unique(self.row, return_inverse=True)
        positions = torch.arange(len(inverse), device=inverse.device)
        first = torch.full_like(row, len(inverse)).scatter_reduce(0, inverse, positions, "amin")
        return self.select(first)


def collect(outputs: Iterable[Mapping[str, Any]]) -> dict[str, TileFeatures]:
    """Joins batches of embeddings into one :class:`TileFeatures` per sensor, each tile once, on the CPU.

    Args:
        outputs: Per batch ``embeddings`` (name -> (n, D)), ``sample_idx`` (name -> positions (n,) in the batch),
            ``land_cover`` (B,) and ``row`` (B,), as ``TerraFM.validation_step`` returns them.
    """
    parts: dict[str, list[TileFeatures]] = {}
    for output in outputs:
        for name, x in output["embeddings"].items():
            at = output["sample_idx"][name]
            part = TileFeatures(x.detach().float(), output["row"][at], output["land_cover"][at])
            parts.setdefault(name, []).append(TileFeatures(*(tensor.cpu() for tensor in part)))
    return {name: join(some) for name, some in parts.items()}


def join(parts: Iterable[TileFeatures]) -> TileFeatures:
    """Several lists of tiles as one, each tile once."""
    return TileFeatures(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).unique()


def gather(features: dict[str, TileFeatures]) -> dict[str, TileFeatures]:
    """The features of all ranks, the same on each; a rank may hold few tiles of a sensor, or none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, features)
    names = sorted({name for share in shares for name in share})
    return {name: join(share[name] for share in shares if name in share) for name in names}


def center(features: dict[str, TileFeatures], bank: dict[str, TileFeatures]) -> dict[str, TileFeatures]:
    """Removes from each sensor its own mean over the bank: what is constant to a sensor tells no place."""
    return {
        name: tiles._replace(x=tiles.x - bank[name].x.mean(dim=0)) if name in bank else tiles
        for name, tiles in features.items()
    }
