"""Registered weights, in the form of torchvision and TorchGeo, and encoder weights from any source."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models._api import Weights, WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L2A

from .checkpoint import read_encoder

#: The published checkpoint of the base model.
PUBLISHED_URL = "https://huggingface.co/MBZUAI/TerraFM/resolve/main/TerraFM-B.pth"


def terrafm_transforms(
    modality: str | None = S2L2A.name,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    size: int | None = 224,
) -> nn.Module:
    """Makes the expected preprocessing: (x - (mean - 2 std)) / (4 std), without clipping, then a resize.

    Args:
        modality: What a bare tensor or a sample's ``image`` is; its unit is theirs (dB for radar, digital numbers
            without the baseline offset for optical imagery). Keys ``image_<modality>`` say it themselves.
        bands: Bands of the images, in their order; all of the modality by default.
        size: Output height and width in pixels; None keeps the images' own.

    Returns:
        A :class:`~terrafm_tg.transforms.Normalize`, for images, batches and samples.

    Raises:
        TerraFMError: If the modality or a band is unknown.
    """
    from terrafm_tg.transforms import Normalize

    return Normalize(modality, bands, size)


class TerraFMWeights(WeightsEnum):
    """Weights of an encoder; this class, without members, is that of the sizes that have none.

    Members are equal where their values are one: the same weight by its two names.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TerraFMWeights) and self.value is other.value

    def __hash__(self) -> int:
        return hash(self.value.url)

    def get_state_dict(self, *args: Any, progress: bool = True, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the encoder's tensors by their published names, from the torch hub cache or the network.

        Args:
            args: As torchvision's; nothing but ``progress`` makes a difference.
            progress: Whether a download shows a progress bar.
            kwargs: See ``args``. Only tensors are ever unpickled, whatever ``weights_only`` says.

        Raises:
            TerraFMError: If the file is neither cached nor to be had, or is damaged.
        """
        return load_encoder_state(self, progress=progress)[0]


#: What the paper reports for the base model, in percent: benchmark and protocol -> data set -> score, on all of the
#: training data (accuracy; for m-bigearthnet F1; Copernicus-Bench's BigEarthNet mAP; segmentation mIoU).
_SCORES = {
    "GEO-Bench k-NN": {"m-eurosat": 94.2, "m-bigearthnet": 68.7, "m-so2sat": 55.1, "m-brick-kiln": 94.5},
    "GEO-Bench fine-tuned": {"m-eurosat": 98.1, "m-bigearthnet": 72.6, "m-so2sat": 64.9, "m-brick-kiln": 98.7},
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


class ShortNames(TerraFMWeights):
    """The registered weights once more, named after their size alone."""

    terrafm_base = TerraFM_Base_Weights.SENTINEL12_ALL_DINO.value

    def __str__(self) -> str:
        return self.name


#: The registered weights of the sizes that have some.
WEIGHTS: dict[str, type[TerraFMWeights]] = {"terrafm_base": TerraFM_Base_Weights}

#: Why the others have none.
_WITHOUT = {
    "terrafm_nano": "the size is ours, for quick runs",
    "terrafm_tiny": "the size is ours, for quick runs",
    "terrafm_small": "the authors measured it and did not publish it",
    "terrafm_large": "the authors announced it and have not published it",
}


def registered_weights(size: str) -> TerraFMWeights:
    """Returns the first weight of a size.

    Raises:
        TerraFMError: If there is none.
    """
    if size in _WITHOUT:
        raise TerraFMError(
            f"There are no published weights of {size} ({_WITHOUT[size]}): pass your own file as `weights`, or "
            "pretrain."
        )
    return next(iter(WEIGHTS[size].__members__.values()))


def load_encoder_state(
    source: WeightsEnum | str | os.PathLike[str],
    *,
    expected: str | None = None,
    progress: bool = True,
    option: str = "weights",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an encoder's tensors and what they say about the model.

    Takes the published file (flat, or wrapped under keys such as ``model``), a Lightning checkpoint of our
    pretraining (its teacher), an exported ``.ckpt`` or ``.safetensors``, and a checkpoint of TorchGeo's
    tasks. Only tensors and plain values are unpickled.

    Args:
        source: A registered weight or its name, a path, or a URL. A URL's file is kept in the torch hub cache
            and read from there, offline too.
        expected: The size that must be in it, such as ``terrafm_base``; its depth may be another.
        progress: Whether a download shows a progress bar.
        option: The setting that the source was given as, for messages.

    Returns:
        The state dict with the published names, on the CPU, and a dict of ``model`` (the size's name, None
        for an unusual width), ``embed_dim``, ``depth`` and ``hyper_parameters`` (of the file; may be empty).

    Raises:
        TerraFMError: If there is no such file, it is damaged, or holds no TerraFM encoder or one of another
            size.
    """
    names = {str(weight): weight for enum in WEIGHTS.values() for weight in enum.__members__.values()}
    if source in _WITHOUT or source in WEIGHTS:
        source = registered_weights(str(source))
    weight = source if isinstance(source, WeightsEnum) else names.get(os.fspath(source))
    if weight is None:
        return read_encoder(os.fspath(source), expected, progress, option)
    if expected not in (None, weight.meta["model"]):
        raise TerraFMError(f"{weight} is of {weight.meta['model']}, not of {expected}: build that model.")
    return read_encoder(weight.url, expected, progress, option)
