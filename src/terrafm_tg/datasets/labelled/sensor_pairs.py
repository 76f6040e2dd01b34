"""The same places in several sensors, from one dataset per sensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torchgeo.datasets import NonGeoDataset

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modalities, get_modality


class SensorPairs(NonGeoDataset):
    """Joins datasets whose sample of one index is of one place, such as BigEarthNet's two sensors.

    A sample has ``image_<modality>`` for each, and label or mask from the first. They must be the same in all.

    Args:
        datasets: Modality -> TorchGeo dataset with samples of ``image`` and ``label`` or ``mask``.

    Raises:
        TerraFMError: If a modality is unknown, or the datasets differ in length.
    """

    def __init__(self, datasets: Mapping[str, NonGeoDataset]) -> None:
        self.datasets = {m.name: datasets[m.name] for m in get_modalities(list(datasets))}
        lengths = {name: len(dataset) for name, dataset in self.datasets.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise TerraFMError(
                f"The sensors' datasets differ in length ({text}): give lists of the same places for each."
            )

    def __len__(self) -> int:
        """Number of places."""
        return len(next(iter(self.datasets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The images of one place.

        Raises:
            TerraFMError: If label or mask differ between the sensors.
        """
        joined: dict[str, Any] = {}
        for name, dataset in self.datasets.items():
            sample = dict(dataset[index])
            image = sample.pop("image")
            for key in ("label", "mask"):
                if key in joined and not torch.equal(
                    torch.as_tensor(joined[key]), torch.as_tensor(sample[key])
                ):
                    raise TerraFMError(
                        f"Sample {index} has another {key} in {name} than in {next(iter(self.datasets))}: the "
                        "datasets do not list the same places in the same order."
                    )
            joined = {get_modality(name).key: image} | sample | joined
        return joined
