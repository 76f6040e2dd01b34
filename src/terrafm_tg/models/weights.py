"""Registered weights, in the form of torchvision and TorchGeo."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L2A

from .sizes import PUBLISHED_URL


def terrafm_transforms(
    modality: str | None = S2L2A.name,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    size: int | None = 224,
) -> nn.Module:
    """Makes the expected preprocessing: (x - (mean - 2 std)) / (4 std), without clipping, then a resize.

    Args:
        modality: What a bare tensor or a sample's ``image`` is; its unit is theirs (dB for radar, digital numbers
            without the baseline offset for optics). Keys ``image_<modality>`` say it themselves.
        bands: Bands of the images, in their order; all of the modality by default.
        size: Output height and width in pixels; None keeps the images' own.

    Returns:
        A :class:`~terrafm_tg.transforms.Normalize`, for images, batches and samples.

    Raises:
        TerraFMError: If the modality or a band is unknown.
    """
    from terrafm_tg.transforms import Normalize

    return Normalize(modality, bands, size)


class _WeightName(str):
    """A weight's full name, also equal to its short one: ``get_weight`` compares ``name == str(weight)``."""

    short: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other[:] in (self[:], self.short)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class TerraFMWeights(WeightsEnum):
    """What the weights of all sizes have in common."""

    def __str__(self) -> str:
        name = _WeightName(f"{type(self).__name__}.{self.name}")
        name.short = self.meta["model"]
        return name

    def get_state_dict(self, *args: Any, progress: bool = True, **kwargs: Any) -> dict[str, Tensor]:
        """The encoder's tensors by their published names, from the torch hub cache or the network.

        Args:
            args: As torchvision's; nothing but ``progress`` makes a difference.
            progress: Whether a download shows a progress bar.
            kwargs: See ``args``. Only tensors are ever unpickled, whatever ``weights_only`` says.

        Raises:
            TerraFMError: If the file is neither cached nor to be had, or is damaged.
        """
        from .checkpoint import load_encoder_state

        return load_encoder_state(self, progress=progress)[0]


#: What the paper reports for the base model, in percent: benchmark and protocol -> data set -> score, on all of the
#: training data (accuracy; for m-bigearthnet F1; Copernicus-Bench's BigEarthNet mAP; segmentation mIoU).
_SCORES = {
    "GEO-Bench k-NN": {"m-eurosat": 94.2, "m-bigearthnet": 68.7, "m-so2sat": 55.1, "m-brick-kiln": 94.5},
    "GEO-Bench fine-tuned": {
        "m-eurosat": 98.1,
        "m-bigearthnet": 72.6,
        "m-so2sat": 64.9,
        "m-brick-kiln": 98.7,
    },
    "GEO-Bench segmentation probe": {"m-cashew-plant": 34.1, "m-SA-crop-type": 33.0},
    "Copernicus-Bench frozen": {
        "Cloud-S2": 67.9,
        "EuroSAT-S1": 87.8,
        "EuroSAT-S2": 99.1,
        "BigEarthNet-S1": 76.9,
        "BigEarthNet-S2": 84.4,
        "DFC2020-S1": 55.4,
        "DFC2020-S2": 63.8,
        "LCZ-S2": 87.0,
    },
}


class TerraFM_Tiny_Weights(TerraFMWeights):
    """No weights: the size is ours, for quick runs."""


class TerraFM_Small_Weights(TerraFMWeights):
    """No weights: the authors measured this size and did not publish it."""


class TerraFM_Base_Weights(TerraFMWeights):
    """TerraFM-B, pretrained on Sentinel-1 RTC and Sentinel-2 L1C and L2A.

    The file holds no fusion parameters: with it several modalities give their mean.
    """

    SENTINEL12_ALL_DINO = Weights(
        url=PUBLISHED_URL,
        transforms=terrafm_transforms,
        meta={
            "dataset": "Major-TOM Core",
            "model": "terrafm_base",
            "in_chans": len(S2L2A.bands),
            "modalities": tuple(MODALITIES),
            "bands": {name: modality.bands for name, modality in MODALITIES.items()},
            "publication": "https://arxiv.org/abs/2506.06281",
            "repo": "https://github.com/mbzuai-oryx/TerraFM",
            "license": "MIT",
            "ssl_method": "dino",
            "num_params": 112_951_296,
            "scores": _SCORES,
        },
    )


class TerraFM_Large_Weights(TerraFMWeights):
    """No weights: the authors announced this size and have not published it."""


#: The weights of each size.
WEIGHTS: dict[str, type[TerraFMWeights]] = {
    "terrafm_tiny": TerraFM_Tiny_Weights,
    "terrafm_small": TerraFM_Small_Weights,
    "terrafm_base": TerraFM_Base_Weights,
    "terrafm_large": TerraFM_Large_Weights,
}

#: Why a size has none.
_WITHOUT = {
    "terrafm_tiny": "the size is ours, for quick runs",
    "terrafm_small": "the authors measured it and did not publish it",
    "terrafm_large": "the authors announced it and have not published it",
}


def registered_weights(size: str) -> TerraFMWeights:
    """The first weight of a size.

    Raises:
        TerraFMError: If there is none.
    """
    for weight in WEIGHTS[size].__members__.values():
        return weight
    raise TerraFMError(
        f"There are no published weights of {size} ({_WITHOUT[size]}): pass your own file as `weights`, or "
        "pretrain."
    )


def find_weights(name: str) -> TerraFMWeights | None:
    """The weight of that full or short name, None where it names none.

    Raises:
        TerraFMError: If it is the short name of a size without weights.
    """
    if name in WEIGHTS:
        return registered_weights(name)
    members = (weight for weights in WEIGHTS.values() for weight in weights.__members__.values())
    return next((weight for weight in members if name == str(weight)), None)
