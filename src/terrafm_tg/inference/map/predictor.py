"""A fine-tuned head as a predictor of windows: blended probabilities, and the classes, entropy and numbers of a map."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.images import BEFORE
from terrafm_tg.inference.products.layers import Layer
from terrafm_tg.inference.products.legend import Legend
from terrafm_tg.modalities import MODALITIES, get_modality
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.tasks.finetune.task import SensorTask
from terrafm_tg.transforms import Normalize, SensorBatch
from terrafm_tg.transforms.normalize import MISSING
from terrafm_tg.utils.devices import find_device, has_bf16_units

from .head import TunedHead, load_head

#: Probabilities and entropy are kept as whole numbers up to this one; the next, 255, is missing.
STEPS = 254
#: How probabilities are kept, or that they are not.
Probabilities = Literal["uint8", "float32", "none"]
#: Pixels of a window where neither the user nor the checkpoint says it: the size that the encoder was trained with.
_WINDOW = 224


class HeadPredictor:
    """Runs a head over windows; what is blended are probabilities (or the numbers of a regression), not logits.

    Args:
        checkpoint: As for :func:`~.head.load_head`.
        window: Edge of the windows in pixels of 10 m; that of the training images where None.
        probabilities: How to keep probabilities: ``uint8`` (254 steps), ``float32``, or ``none``.
        mean: Of each band, or one for all, with which a task without a TerraFM encoder was trained.
        std: Standard deviation likewise: images are (x - mean) / std.
        device: A GPU where there is one, else the CPU, where None.
        batch_size: Windows at once; 8 on a processor and 64 on a GPU where None.
        options: Further settings of :func:`~.head.load_head`.

    Raises:
        TerraFMError: If the checkpoint cannot be used, or a setting is missing or does not fit.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        window: int | None = None,
        probabilities: Probabilities = "uint8",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        self.checkpoint, self.probabilities = os.fspath(checkpoint), probabilities
        self.options = {name: _frozen(value) for name, value in options.items()}
        self.mean, self.std = mean, std
        self.device = find_device(device)
        self.batch_size = batch_size or (64 if self.device.type == "cuda" else 8)
        head = self.head
        if head.tile and window is None and head.image_size is None:
            raise TerraFMError(
                f"Nothing says how large the images were that {self.checkpoint} was trained on, of which each gets one "
                "prediction: give `window` in pixels of 10 m, such as 64."
            )
        self.window = window or head.image_size or _WINDOW
        if head.input_size is None and self.window % head.divisor:
            fit = max(round(self.window / head.divisor), 1) * head.divisor
            raise TerraFMError(f"`window` is {self.window}: the head reads multiples of {head.divisor}, such as {fit}.")
        self.cell = self.window if head.tile else 1
        self.depth = head.outputs
        self.names = [name + end for name in head.bands for end in ([BEFORE, ""] if head.dates == 2 else [""])]
        self._transform  # noqa: B018  # what is missing is said before anything is read

    @property
    def head(self) -> TunedHead:
        """The task, on the device; loaded when first asked for, in every process."""
        return _load(self.checkpoint, str(self.device), tuple(sorted(self.options.items())))

    @cached_property
    def _transform(self) -> nn.Module:
        """Normalizes bands in stem order and picks those of the head."""
        head = self.head
        given = (self.mean, self.std)
        (first, picked), *_ = head.bands.items()
        if given == (None, None) and head.ours:
            return Normalize(bands=dict(head.bands), statistics=head.statistics)
        if head.ours:
            raise TerraFMError(
                f"{self.checkpoint} reads images in the normalization of its encoder: leave `model_mean` and "
                "`model_std` out."
            )
        if None in given:
            raise TerraFMError(
                f"Nothing says how the images of {self.checkpoint} were normalized: give `model_mean` and `model_std`, "
                "such as 0 and 10000, where it was trained on (x - mean) / std."
            )
        return _Standardize(first, len(picked), self.mean, self.std)

    def prepare(self, images: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
        """Picks the head's bands and normalizes them, once for all windows.

        Args:
            images: By modality (C, h, w) in its unit, NaN where missing; bands in stem order.

        Returns:
            By modality (bands of the head + 1, h, w): missing pixels are as the training had them, and the last channel
            is 1 where any band shows anything, else 0.
        """
        prepared = {}
        for name, image in images.items():
            modality = name.removesuffix(BEFORE)
            columns = get_modality(modality).stem_columns(self.head.bands[modality])
            pixels = torch.from_numpy(np.ascontiguousarray(image))
            empty = torch.zeros_like(pixels[0])  # of a band that no stem reads
            picked = torch.stack([empty if column is None else pixels[column] for column in columns])
            seen = torch.isfinite(pixels).any(0, keepdim=True).float()
            prepared[name] = torch.cat([self._transform({modality: picked})[modality], seen])
        return prepared

    @torch.inference_mode()
    def predict(self, windows: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Predicts windows that show the same modalities.

        Args:
            windows: By modality (B, C + 1, h, w), cut from what :meth:`prepare` returned.
            present: By modality, bool (B, h / cell, w / cell): not needed, since the windows' last channels say it.

        Returns:
            Probabilities or numbers, float32 (B, h / cell, w / cell, depth); NaN where a date is missing.
        """
        head = self.head
        size = next(iter(windows.values())).shape
        if head.dates == 2 and len(windows) < 2:
            return torch.full((size[0], size[2], size[3], self.depth), torch.nan)
        height, width = (self._padded(side) for side in size[-2:])
        images, shown, gone = {}, {}, torch.zeros(size[0], *size[2:], dtype=torch.bool, device=self.device)
        for name in (name for name in self.names if name in windows):
            beyond = (0, width - size[3], 0, height - size[2])
            image, seen = windows[name].to(self.device).tensor_split([-1], dim=1)
            gone |= seen[:, 0] == 0
            image = nn.functional.pad(image, beyond, value=self._missing)
            seen = nn.functional.pad(seen, beyond)
            if head.input_size is not None:
                scaled = [side * head.input_size // self.window for side in (height, width)]
                image = nn.functional.interpolate(image, scaled, mode="bilinear", antialias=True)
            grid = [max(side // PATCH_SIZE, 1) for side in image.shape[-2:]]
            images[name], shown[name] = image, nn.functional.adaptive_max_pool2d(seen, grid)[:, 0] > 0
        low = has_bf16_units(self.device)
        with torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext():
            outputs = self._run(images, shown).float()
        values = self._values(outputs, (height, width), size[-2:])
        return torch.where(gone[..., None], torch.nan, values) if head.dates == 2 else values

    def _run(self, images: dict[str, Tensor], shown: dict[str, Tensor]) -> Tensor:
        """Logits or numbers of whole images: (B, depth), or (B, depth, H, W)."""
        head = self.head
        if isinstance(head.task, SensorTask):
            whole = len(images) == 1 or all(bool(seen.all()) for seen in shown.values())
            ordered = {name: images[name] for name in MODALITIES if name in images}
            batch = SensorBatch(ordered, None, len(next(iter(ordered.values()))), None if whole else shown)
            return head.task(batch)
        if head.dates == 2:
            dates = torch.stack(list(images.values()), dim=1)
            apart = str(head.task.hparams["model"]).startswith(("fcsiam", "changevit"))
            return head.task(dates if apart else dates.flatten(1, 2))
        return head.task(next(iter(images.values())))

    def _values(self, outputs: Tensor, padded: tuple[int, int], size: Sequence[int]) -> Tensor:
        """Probabilities, or numbers as they are, at the pixels of the windows."""
        head = self.head
        if head.kind == "multiclass":
            outputs = outputs.softmax(1)
        elif head.kind != "regression":
            outputs = outputs.sigmoid()
        if head.tile:
            return outputs[:, None, None]
        if outputs.ndim == 3:
            outputs = outputs[:, None]
        if outputs.shape[-2:] != padded:
            outputs = nn.functional.interpolate(outputs, padded, mode="bilinear")
        return outputs[..., : size[0], : size[1]].movedim(1, -1)

    def _padded(self, side: int) -> int:
        """The next length that the head reads."""
        step = self.window if self.head.input_size is not None else self.head.divisor
        return -(-side // step) * step

    @property
    def _missing(self) -> float:
        return MISSING if self.head.ours else 0.0

    def finish(self, values: NDArray[np.float32]) -> NDArray:
        """Turns blended values into the bands that a map keeps.

        Args:
            values: (h, w, depth), NaN where missing.

        Returns:
            (h, w, bands) as :meth:`bands` names them: of a regression the numbers; else the class, the entropy and,
            where they are kept, the probabilities. Missing are NaN in float32 and the largest number of other types.
        """
        if self.head.kind == "regression":
            return values
        missing = ~np.isfinite(values).all(axis=-1)
        p = np.where(missing[..., None], 0, values)
        bands: list[NDArray] = [chosen_classes(p, self.head.kind), entropy_of(p, self.head.kind)]
        bands += [] if self.probabilities == "none" else list(np.moveaxis(p, -1, 0))
        stacked = np.stack(bands, axis=-1, dtype=np.float32)
        if self.dtype == "float32":
            stacked[missing] = np.nan
            return stacked
        stacked[..., 1:] = np.rint(np.clip(stacked[..., 1:], 0, 1) * STEPS)
        whole = stacked.astype(self.dtype)
        whole[missing, 0] = np.iinfo(self.dtype).max
        whole[missing, 1:] = STEPS + 1
        return whole

    @property
    def dtype(self) -> str:
        """Type of what is kept."""
        if self.head.kind == "regression" or self.probabilities == "float32":
            return "float32"
        return "uint8" if self.head.classes < 256 else "uint16"

    @property
    def bands(self) -> int:
        """Number of bands that :meth:`finish` returns."""
        if self.head.kind == "regression":
            return self.depth
        return 2 + (0 if self.probabilities == "none" else self.depth)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_transform"}


def chosen_classes(probabilities: NDArray[np.float32], kind: str) -> NDArray[np.intp]:
    """Decides the class of each place.

    Args:
        probabilities: (..., depth).
        kind: Of the head. Of ``binary`` the class is 1 from a half on; of ``multilabel`` it is the most probable label,
            and their number where none reaches a half.
    """
    if kind == "binary":
        return (probabilities[..., 0] >= 0.5).astype(np.intp)
    best = probabilities.argmax(axis=-1)
    if kind == "multilabel":
        return np.where(probabilities.max(axis=-1) >= 0.5, best, probabilities.shape[-1])
    return best


def entropy_of(probabilities: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Returns how undecided each place is: 0 where one class is certain, 1 where all are as likely.

    Args:
        probabilities: (..., depth).
        kind: Of the head. Of ``binary`` and ``multilabel`` it is the mean over labels of each one's entropy.
    """
    p = np.clip(probabilities, 0, 1)
    if kind != "multiclass":
        p = np.stack([p, 1 - p])
        return -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=0).mean(axis=-1)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return entropy / np.log(max(p.shape[-1], 2))


class _Standardize(nn.Module):
    """(x - mean) / std of one modality; missing pixels are 0."""

    def __init__(self, name: str, channels: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.name = name
        for key, value in (("mean", mean), ("std", std)):
            numbers = np.atleast_1d(np.asarray(value, np.float32))
            if (
                numbers.shape not in ((1,), (channels,))
                or not np.isfinite(numbers).all()
                or (numbers <= 0).any() & (key == "std")
            ):
                raise TerraFMError(
                    f"`model_{key}` is {value}: give one number, or {channels}, one for each band"
                    f"{', above 0' if key == 'std' else ''}."
                )
            self.register_buffer(key, torch.from_numpy(numbers)[:, None, None])

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return {self.name: torch.nan_to_num((images[self.name] - mean) / std)}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(2)
def _load(checkpoint: str, device: str, options: tuple[tuple[str, Any], ...]) -> TunedHead:
    head = load_head(checkpoint, **dict(options))
    head.task.to(device)
    return head


def layers_of(predictor: HeadPredictor, legend: Legend | None, names: Sequence[str], unit: str = "") -> list[Layer]:
    """Lists the files of a map, that of the classes or numbers last.

    Args:
        predictor: What filled the parts.
        legend: Of the classes; None for numbers.
        names: Of the probabilities' or numbers' bands.
        unit: Of numbers.
    """
    if legend is None:
        return [Layer("", slice(0, predictor.depth), names, "float32", np.nan, unit=unit)]
    whole = predictor.dtype != "float32"
    how: dict[str, Any] = (
        {"dtype": "uint8", "nodata": STEPS + 1, "scale": 1 / STEPS} if whole else {"dtype": "float32", "nodata": np.nan}
    )
    layers = [] if predictor.probabilities == "none" else [Layer("_probabilities", slice(2, None), names, **how)]
    layers.append(Layer("_entropy", slice(1, 2), ["entropy"], **how))
    kind = "uint8" if len(legend.names) < 256 else "uint16"
    return [*layers, Layer("", slice(0, 1), ["class"], kind, np.iinfo(kind).max, legend=legend)]
