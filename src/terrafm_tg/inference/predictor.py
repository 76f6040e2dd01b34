"""Predictors, which are run over windows: the encoder, for a vector of each token; what others must offer."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.models import TerraFMViT, build_encoder, load_encoder_state, reparameterize
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.sizes import NAMES, SIZES
from terrafm_tg.transforms import Normalize, SensorBatch
from terrafm_tg.utils.devices import find_device, has_bf16_units

#: Vectors of a window: the class token, the mean of the tokens that show anything, or both, one behind the other.
POOLINGS = ("class", "mean", "both")


class Predictor(Protocol):
    """A function of windows, with what the engine must know of it.

    Attributes:
        cell: Pixels of 10 m along each side of a value: 16 for tokens, 1 for a value per pixel.
        batch_size: Windows at once.
    """

    cell: int
    batch_size: int

    @property
    def depth(self) -> int:
        """Numbers of a value, which are blended where windows overlap."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Modalities that it reads."""
        ...

    def prepare(self, images: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
        """Turns a part of an image into what windows are cut from, once.

        Args:
            images: By modality (C, h, w) in its unit, NaN where missing; bands in stem order.

        Returns:
            By modality (C, h, w) of any number of channels.
        """
        ...

    def predict(self, windows: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Computes the values of windows that show the same modalities.

        Args:
            windows: By modality (B, C, h, w), cut from what :meth:`prepare` returned.
            present: By modality, bool (B, h / cell, w / cell): whether it shows anything at a value.

        Returns:
            float32 (B, h / cell, w / cell, depth), on any device.
        """
        ...

    def finish(self, values: NDArray[np.float32]) -> NDArray:
        """Turns blended values (h, w, depth), NaN where missing, into what the map keeps."""
        ...


def take_own_gpu(predictor: Any) -> None:
    """Moves what a Dask worker runs to a GPU of its own, where its machine has several."""
    if getattr(predictor, "device", None) is None or predictor.device.type != "cuda" or torch.cuda.device_count() < 2:
        return
    from distributed import get_worker

    try:
        place = get_worker().name
    except ValueError:  # no worker of Dask
        return
    if isinstance(place, int):
        predictor.device = torch.device("cuda", place % torch.cuda.device_count())


class Encoder:
    """TerraFM as a predictor: the vector of each token after the last norm.

    Args:
        model: A registered name such as ``terrafm_base``, a file that ``get_model(..., weights=...)`` takes, or the
            folder of a run, whose last checkpoint is taken.
        modalities: Modalities to read of those that an image has; all where None.
        device: A GPU where there is one, else the CPU, where None.
        batch_size: Windows at once; 8 on a processor and 64 on a GPU where None.
        weights: False for random weights of a seed, for trials.

    Raises:
        TerraFMError: If there is no such model or device.
    """

    cell = PATCH_SIZE

    def __init__(
        self,
        model: str | os.PathLike[str],
        modalities: Sequence[str] | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        weights: bool = True,
    ) -> None:
        self.model, self.weights = os.fspath(model), weights
        self.names = [get_modality(name).name for name in modalities or MODALITIES]
        self.device = find_device(device)
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 8)

    @cached_property
    def encoder(self) -> TerraFMViT:
        """The model, folded, in the type that the device computes in; loaded when first asked for."""
        return _load(self.model, self.weights, str(self.device))

    @property
    def depth(self) -> int:
        """Width of a vector."""
        return self.encoder.embed_dim

    @cached_property
    def _normalize(self) -> Normalize:
        return Normalize(statistics=self.encoder.statistics)

    @property
    def _low(self) -> bool:
        """Tells whether it computes in bfloat16."""
        return has_bf16_units(self.device)

    def prepare(self, images: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
        """Normalizes; see :class:`Predictor`."""
        return self._normalize({name: torch.from_numpy(image) for name, image in images.items()})

    @torch.inference_mode()
    def features(self, windows: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns class and patch tokens, float32 (B, 1 + N, d), on the device; see :meth:`predict`."""
        images = {name: self._put(windows[name]) for name in MODALITIES if name in windows}
        shown = {name: self._put(present[name]) for name in images}
        size = len(next(iter(images.values())))
        fused = len(images) > 1 and not all(bool(present[name].all()) for name in images)
        batch = SensorBatch(images, None, size, shown if fused else None)
        with torch.autocast(self.device.type, torch.bfloat16) if self._low else nullcontext():
            return self.encoder.forward_features(batch).float()

    def predict(self, windows: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns the vectors of tokens; see :class:`Predictor`."""
        tokens = self.features(windows, present)[:, 1:]
        height, width = next(iter(windows.values())).shape[-2:]
        return tokens.unflatten(1, (height // PATCH_SIZE, width // PATCH_SIZE))

    def pool(
        self, windows: Mapping[str, Tensor], shown: Mapping[str, Tensor], share: Tensor, pooling: str
    ) -> NDArray[np.float32]:
        """Returns a vector of each window.

        Args:
            windows: As for :meth:`predict`.
            shown: Likewise.
            share: Weight of each token, (B, h / 16, w / 16).
            pooling: ``class`` (the class token), ``mean`` (of the tokens, weighted), or ``both``, in this order.

        Returns:
            float32 (B, d), or (B, 2 d) for both.
        """
        tokens = self.features(windows, shown).cpu()
        weight = share.flatten(1)[..., None]
        mean = (tokens[:, 1:] * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
        parts = {"class": [tokens[:, 0]], "mean": [mean], "both": [tokens[:, 0], mean]}[pooling]
        return torch.cat(parts, dim=1).numpy()

    def finish(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keeps them as they are."""
        return values

    def about(self) -> dict[str, Any]:
        """Describes the model, for the metadata of products."""
        own, config = self.encoder.statistics, cast("dict[str, Any]", self.encoder.pretrained_cfg)
        return {
            "model": config.get("architecture") or Path(self.model).stem,
            "weights": Path(self.model).name if self.weights else "random",
            "precision": "bfloat16" if self._low else "float32",
            "statistics": "published" if own is None else own,
            "license": config.get("license", "mit"),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("encoder", "_normalize")}

    def _put(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x


@lru_cache(2)
def _load(model: str, weights: bool, device: str) -> TerraFMViT:
    """Builds an encoder, folded, on a device."""
    if model in NAMES:
        if not weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                encoder = build_encoder(model)
        else:
            encoder = build_encoder(model, True)
    else:
        file = find_checkpoint(Path(model))
        name = load_encoder_state(file, option="model")[1]["model"]
        if name is None:
            raise TerraFMError(f"{file} is of no registered size: give an encoder of {', '.join(SIZES)}.")
        encoder = build_encoder(name, file)
    return reparameterize(encoder).eval().to(device)


def find_checkpoint(path: Path) -> Path:
    """Finds the encoder's file in the folder of a run or an export: the file itself, or the newest last checkpoint.

    Raises:
        TerraFMError: If there is none.
    """
    if path.is_file() or "://" in str(path):
        return path
    if path.is_dir():
        for pattern in ("**/last.ckpt", "**/*.safetensors", "**/*.ckpt"):
            if found := sorted(path.glob(pattern), key=lambda file: file.stat().st_mtime):
                return found[-1]
        raise TerraFMError(f"{path} holds no checkpoint: give the folder of a run, or a file of `terrafm export`.")
    raise TerraFMError(
        f"`model` {str(path)!r} is no file and no name: give one of {', '.join(SIZES)}, or the path of a checkpoint, "
        "an export or a run."
    )
