"""Embeds tiles of training cells (the bank) and held-out cells (the queries), and scores encoders on them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality, get_modalities
from terrafm_tg.models.embedding import embed_sensors
from terrafm_tg.transforms import MultiCrop
from terrafm_tg.transforms.statistics import Statistics
from terrafm_tg.utils.arguments import COUNT, checked
from terrafm_tg.utils.progress import with_bar

from .band_statistics import baseline_output, standardize
from .scores import TileFeatures, center, collect, gather, score

#: Name of the baseline among the encoders.
BASELINE = "band mean and deviation"


@checked(size=COUNT)
def evaluate_held_out(
    encoders: Mapping[str, nn.Module],
    datamodule: LightningDataModule,
    size: int = 224,
    modalities: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    autocast: bool = False,
    centered: bool = False,
    statistics: Statistics | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Land-cover k-NN within and across sensors, and same-place retrieval, on cells that training never saw.

    Under ``torch.distributed`` every rank must call it; each embeds its share and all return the same table.

    Args:
        encoders: Name -> encoder. They are moved to ``device`` and set to ``eval`` mode.
        datamodule: Its ``val_dataloader()`` gives the bank's loader (training cells) and the queries'
            (held-out cells), both of native batches.
        size: Height and width in pixels to which a whole tile is resized, divisible by 16.
        modalities: Sensors to use; all by default.
        device: Where the encoders run.
        autocast: bfloat16 in the encoders, for speed. The comparison stays in float32.
        centered: Remove from every embedding the mean of its sensor over the bank, so that cross-sensor
            scores do not see a constant gap between sensors. Not part of the protocol, hence not the default.
        statistics: Mean and standard deviation by modality that images are normalized with; the published ones where
            None.
        progress: Show a progress bar.

    Returns:
        One row per score of each encoder and of the baseline, plain statistics of the bands: ``encoder``, ``task``,
        ``bank``, ``query``, ``metric``, ``score``, ``chance``, ``n_bank``, ``n_query``.

    Raises:
        TerraFMError: If the datamodule holds out no tiles.
    """
    return score_held_out(
        embed_held_out(encoders, datamodule, size, modalities, device, autocast, centered, statistics, progress)
    )


class HeldOutFeatures(NamedTuple):
    """Embeddings of the tiles by one encoder, by sensor and :data:`~terrafm_tg.models.embedding.FUSED`."""

    bank: dict[str, TileFeatures]  # tiles of training cells
    query: dict[str, TileFeatures]  # tiles of held-out cells


def embed_held_out(
    encoders: Mapping[str, nn.Module],
    datamodule: LightningDataModule,
    size: int,
    modalities: Sequence[str] | None,
    device: torch.device | str,
    autocast: bool,
    centered: bool,
    statistics: Statistics | None,
    progress: bool,
) -> dict[str, HeldOutFeatures]:
    """Embeds bank and queries with each encoder and the baseline; arguments as in :func:`evaluate_held_out`."""
    sensors = get_modalities(modalities)
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise TerraFMError(f"`device` is {device!r}: give one such as cpu or cuda.") from error
    crop = MultiCrop(modalities=[m.name for m in sensors], statistics=statistics).to(place)
    loaders = held_out_loaders(datamodule)
    for encoder in encoders.values():
        encoder.to(place).eval()
    with torch.inference_mode():
        sides = []
        for title, loader in zip(("Bank tiles", "Held-out tiles"), loaders, strict=True):
            batches = with_bar(loader, title, shown=progress)
            sides.append(_embed_all(encoders, batches, size, sensors, crop, place, autocast))
    features = {}
    for name in sides[0]:
        bank, query = (gather(side[name]) for side in sides)
        if name == BASELINE:
            bank, query = standardize(bank, bank), standardize(query, bank)
        elif centered:
            bank, query = center(bank, bank), center(query, bank)
        features[name] = HeldOutFeatures(bank, query)
    return features


def score_held_out(features: Mapping[str, HeldOutFeatures]) -> pd.DataFrame:
    """Returns the table of :func:`evaluate_held_out`, of features from :func:`embed_held_out`."""
    return pd.DataFrame([{"encoder": name} | row for name, sides in features.items() for row in score(*sides)])


def held_out_loaders(datamodule: LightningDataModule) -> list[DataLoader[Any]]:
    """The loaders of the bank and of the queries.

    Raises:
        TerraFMError: If the datamodule holds out no tiles.
    """
    loaders = datamodule.val_dataloader()
    if not isinstance(loaders, Sequence) or len(loaders) != 2:
        raise TerraFMError(
            f"{type(datamodule).__name__} gives no pair of validation loaders (bank, queries): hold tiles "
            "out by `val_share`, or remove HeldOutReport."
        )
    return list(loaders)


def _embed_all(
    encoders: Mapping[str, nn.Module],
    batches: Iterable[dict[str, Any]],
    size: int,
    sensors: Sequence[Modality],
    crop: MultiCrop,
    device: torch.device,
    autocast: bool,
) -> dict[str, dict[str, TileFeatures]]:
    """Encoder -> sensor -> features of all tiles of one loader."""
    names = [m.name for m in sensors]
    outputs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*encoders, BASELINE)}
    for batch in batches:
        batch = move_data_to_device({key: x for key, x in batch.items() if isinstance(x, Tensor)}, device)
        places = {"land_cover": batch["land_cover"], "row": batch["row"]}
        tiles = crop.whole(batch, size, names)
        for name, encoder in encoders.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                embeddings, idx = embed_sensors(encoder, tiles)
            outputs[name].append({"embeddings": embeddings, "sample_idx": idx} | places)
        outputs[BASELINE].append(baseline_output(batch, sensors))
    return {name: collect(parts) for name, parts in outputs.items()}
