"""The baseline without an encoder: mean and standard deviation of every band of a tile."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from terrafm_tg.modalities import S1RTC, Modality
from terrafm_tg.models.embedding import FUSED
from terrafm_tg.radiometry import linear_power

from .scores import TileFeatures


def band_statistics(batch: Mapping[str, Tensor], modality: Modality) -> Tensor:
    """Mean and standard deviation per band over the valid pixels, in the modality's unit.

    Args:
        batch: A native batch; Sentinel-1 as it is stored, which is taken to decibels first.
        modality: Which sensor's images.

    Returns:
        (n, 2 C), means before deviations, bands in stem order; NaN for a band without a valid pixel.
    """
    means, deviations = [], []
    for resolution in modality.native:
        x = linear_power(batch[modality.native_key(resolution)])
        valid = x.isfinite() & (x > 0)  # every nodata value is <= 0 or not finite, in counts and in linear power
        x = (10 * x.log10() if modality is S1RTC else x).where(valid, torch.nan)
        mean = x.nanmean(dim=(2, 3), keepdim=True)
        means.append(mean.flatten(1))
        deviations.append((x - mean).square().nanmean(dim=(2, 3)).sqrt())
    order = modality.native_order
    return torch.cat([torch.cat(means, dim=1)[:, order], torch.cat(deviations, dim=1)[:, order]], dim=1)


def baseline_output(batch: Mapping[str, Tensor], modalities: Sequence[Modality]) -> dict[str, Any]:
    """Band statistics as ``TerraFM.validation_step`` gives embeddings; fused are all sensors' side by side.

    A sensor that a tile lacks is NaN in the fused statistics.
    """
    idx = {m.name: batch[f"sample_idx_{m.name}"] for m in modalities if f"sample_idx_{m.name}" in batch}
    embeddings = {m.name: band_statistics(batch, m) for m in modalities if len(idx.get(m.name, ()))}
    wide = []
    for m in modalities:
        full = torch.full((len(batch["row"]), 2 * len(m.bands)), float("nan"), device=batch["row"].device)
        if m.name in embeddings:
            full[idx[m.name]] = embeddings[m.name]
        wide.append(full)
    seen = torch.cat([idx[name] for name in embeddings]).unique()
    embeddings[FUSED], idx[FUSED] = torch.cat(wide, dim=1)[seen], seen
    places = {"land_cover": batch["land_cover"], "row": batch["row"]}
    return {"embeddings": embeddings, "sample_idx": idx} | places


def standardize(features: dict[str, TileFeatures], bank: dict[str, TileFeatures]) -> dict[str, TileFeatures]:
    """Each sensor's statistics as z-scores over that sensor's bank; a missing one becomes 0.

    Every sensor has its own mean and deviation, also in comparisons across sensors: the encoder's
    normalization gives it the same advantage, and without it L1C and L2A would differ by the atmosphere's
    offset alone.
    """
    result = {}
    for name, tiles in features.items():
        if name in bank:
            known = bank[name].x
            mean = known.nanmean(dim=0)
            deviation = (known - mean).square().nanmean(dim=0).sqrt()
            result[name] = tiles._replace(x=((tiles.x - mean) / deviation.clamp_min(1e-6)).nan_to_num(0.0))
    return result
