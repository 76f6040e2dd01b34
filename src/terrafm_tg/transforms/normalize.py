"""The encoder's normalization, (x - (mean - 2 std)) / (4 std) without clipping (`paper.md`, Data)."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality, canonical, get_modalities, get_modality
from terrafm_tg.radiometry import FEW, LIKELY, OFFSET, level_by_pixels, offset_evidence
from terrafm_tg.utils.arguments import COUNT, checked

from .statistics import Statistics, find_statistics, with_statistics

#: Between these lies what can be measured, by unit. What lies beyond is missing, and 0: files are filled with such.
LIMITS = {"DN": (-9_998.5, 65_535.0), "dB": (-90.0, 90.0)}
#: Images that are looked at, and pixels of them.
_LOOKS, _PIXELS = 8, 1 << 14
#: Decibels by which VH lies above VV where the two are exchanged: it is 5 to 10 below on land.
CLEARLY = 1.0
#: What a missing pixel becomes: the band's training mean after normalization.
MISSING = 0.5


def affine(modality: Modality, bands: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Normalization as x * scale + shift.

    Args:
        modality: Whose statistics to use.
        bands: Bands of x in order; all of the stem's where None. One that no stem reads (B10) becomes 0.5.

    Returns:
        ``scale`` and ``shift``, float64 (C,).

    Raises:
        TerraFMError: If the modality lacks a band.
    """
    columns = modality.stem_columns(modality.bands if bands is None else bands)
    # An infinite deviation: whatever the channel holds becomes MISSING.
    mean = torch.tensor([0.0 if i is None else modality.mean[i] for i in columns], dtype=torch.float64)
    std = torch.tensor([math.inf if i is None else modality.std[i] for i in columns], dtype=torch.float64)
    return 1 / (4 * std), MISSING - mean / (4 * std)


@checked(size=COUNT)
class Normalize(nn.Module):
    """Normalizes Sentinel-1 in decibels and Sentinel-2 in digital numbers as the encoder expects them.

    Takes tensors and NumPy arrays of any number type, as files hold them. A missing pixel, one that is 0, not finite or
    beyond :data:`LIMITS`, becomes 0.5, the band's mean. Values that cannot be the unit (reflectance from 0 to 1, radar
    in linear power), the level (L1C through the stem of L2A), free of the offset of baseline 04.00, or in that order
    (VV and VH exchanged) bring one warning per modality.

    Args:
        modality: What ``image``, or a bare tensor, is: ``s1rtc`` (dB), ``s2l1c`` or ``s2l2a`` (digital
            numbers: reflectance x 10,000 without the offset of processing baseline 04.00). Not needed for
            dicts with ``image_<modality>`` keys.
        bands: Bands of that modality in the order of the channels, any subset; for several modalities a
            mapping of modality to bands. All of the stem's bands by default. The same list fits the encoder.
        size: Height and width in pixels, or one number for both, to resize images to after normalization
            (bilinear, antialiased), and with them a sample's ``mask`` (nearest pixel); None keeps the size.
        statistics: Mean and standard deviation that the encoder was trained with where these are not the published
            ones: the file of the encoder itself, that of ``terrafm stats``, or a mapping
            (:func:`~terrafm_tg.transforms.statistics.find_statistics`).

    Raises:
        TerraFMError: If a modality or band is unknown, or there are no statistics.

    Example:
        >>> Normalize("s2l2a", bands=["B04", "B03", "B02"])(torch.full((3, 8, 8), 1500.0)).shape
        torch.Size([3, 8, 8])
        >>> sample = Normalize()({"image_s1rtc": torch.full((2, 8, 8), -15.0), "label": torch.tensor(1)})
    """

    def __init__(
        self,
        modality: str | None = None,
        bands: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        size: int | tuple[int, int] | None = None,
        statistics: Statistics | str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.statistics = find_statistics(statistics)
        self.modality = None if modality is None else get_modality(modality).name
        self.size = (size, size) if isinstance(size, int) else size
        if bands is not None and not isinstance(bands, Mapping):
            if modality is None:
                raise TerraFMError("`bands` without `modality` could be of any sensor: name the modality too.")
            bands = {modality: [bands] if isinstance(bands, str) else bands}
        self.bands = {m.name: (bands or {}).get(m.name) for m in get_modalities()}
        for name in bands or {}:
            get_modality(name)
        for m in get_modalities():
            scale, shift = affine(with_statistics(m, self.statistics), self.bands[m.name])
            self.register_buffer(f"{m.name}_scale", scale.float(), persistent=False)
            self.register_buffer(f"{m.name}_shift", shift.float(), persistent=False)
        self._looks = dict.fromkeys(MODALITIES, 0)

    def forward(self, x: Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]) -> Tensor | dict[str, Any]:
        """Normalizes an image, or every image of a sample or batch.

        Args:
            x: (..., C, H, W), or a dict with ``image_<modality>`` or ``<modality>`` (and ``image``, where
                ``modality`` is set).

        Returns:
            The same with float images; a dict is copied, and its other entries are kept.

        Raises:
            TerraFMError: If a channel count is not the number of bands, or nothing says what an image is.
        """
        if isinstance(x, Tensor | np.ndarray):
            return self._normalize(x, self._named("a bare tensor"))
        names = {key: m.name for m in get_modalities() for key in (m.key, m.name) if key in x}
        if "image" in x:
            names["image"] = self._named("the key 'image'")
        if not names:
            keys = ", ".join(m.key for m in get_modalities())
            raise TerraFMError(
                f"Nothing to normalize among the keys {', '.join(x) or '(none)'}: expected one of image, {keys}."
            )
        sample: dict[str, Any] = {**x} | {key: self._normalize(x[key], name) for key, name in names.items()}
        if self.size and "mask" in x:
            mask = torch.as_tensor(x["mask"])
            resized = _resize(mask.unsqueeze(-3).double(), self.size, mode="nearest-exact")
            sample["mask"] = resized.squeeze(-3).to(mask.dtype)
        return sample

    def _named(self, what: str) -> str:
        if self.modality is None:
            raise TerraFMError(f"Nothing says which sensor {what} is: make Normalize with `modality=`.")
        return self.modality

    def _normalize(self, image: Tensor | np.ndarray, name: str) -> Tensor:
        modality, x = get_modality(name), torch.as_tensor(image)
        scale, shift = self.get_buffer(f"{name}_scale"), self.get_buffer(f"{name}_shift")
        if x.ndim < 3 or x.shape[-3] != len(scale):
            bands = ", ".join(self.bands[name] or modality.bands)
            raise TerraFMError(
                f"{name} must be (..., {len(scale)}, H, W) with the bands {bands}, got {tuple(x.shape)}: "
                "name yours with `bands=`, or another sensor with `modality=`."
            )
        stored = x.dtype
        x = x if x.is_floating_point() and isinstance(image, Tensor) else x.to(scale.dtype)
        low, high = LIMITS[modality.unit]
        missing = ~((x >= low) & (x <= high) & (x != 0))  # NaN compares false
        if not torch.compiler.is_compiling():
            self._check(x, missing, modality, stored)
        y = x * scale.to(x)[:, None, None] + shift.to(x)[:, None, None]
        y = torch.where(missing | ~torch.isfinite(y), MISSING, y)
        return _resize(y, self.size, mode="bilinear", antialias=True) if self.size else y

    def _check(self, x: Tensor, missing: Tensor, modality: Modality, stored: torch.dtype) -> None:
        """Looks at the first images of each modality that have any pixel, until one brings a warning."""
        if self._looks[modality.name] >= _LOOKS:
            return
        values = x[torch.isfinite(x) if missing.all() else ~missing]
        if not len(values):
            return
        self._looks[modality.name] += 1
        low, high = values.min().item(), values.max().item()
        hint = _hint(modality.unit, low, high, stored)
        if hint:
            hint = f"must be in {modality.unit}, but lies from {low:.4g} to {high:.4g}: {hint}"
        else:
            hint = _doubt(torch.where(missing, torch.nan, x), self.bands[modality.name] or modality.bands, modality)
        if hint:
            self._looks[modality.name] = _LOOKS
            warnings.warn(f"{modality.title} {hint}.", UserWarning, stacklevel=6)  # the caller of the module


def _doubt(x: Tensor, bands: Sequence[str], modality: Modality) -> str | None:
    """Returns why pixels (..., C, H, W) are of another level or order, or hold an offset, with the remedy."""
    flat = x.detach().movedim(-3, 0).flatten(1)
    planes = flat[:, :: -(-flat.shape[1] // _PIXELS)].double().cpu().numpy()
    names = [canonical(band) for band in bands]
    numbers = {name: plane for name, plane in zip(names, planes, strict=True) if np.isfinite(plane).sum() >= FEW}
    if modality.unit == "dB":
        medians = [float(np.nanmedian(numbers[name])) for name in ("VV", "VH") if name in numbers]
        if len(medians) == 2 and medians[1] > medians[0] + CLEARLY:
            return f"has VH (median {medians[1]:.1f} dB) above VV ({medians[0]:.1f} dB): exchange them, or set `bands`"
        return None
    level, why = level_by_pixels(numbers)
    if level and level != modality.name:
        return f"looks like {get_modality(level).title} by {why}: use `modality={level!r}`, which has another stem"
    seen = offset_evidence(numbers, modality.name)
    if seen.offset == OFFSET and seen.strength >= LIKELY:
        return f"seems to hold the +1000 of processing baseline 04.00 ({seen.words}): take 1000 off first"
    return None


def _hint(unit: str, low: float, high: float, dtype: torch.dtype) -> str | None:
    """Returns the likely unit of values from ``low`` to ``high`` that cannot be in ``unit``, with the remedy."""
    if unit == "dB" and high > low >= 0:
        return "this looks like linear power: take 10 * log10 of it"
    if unit == "dB" and low < -200:
        return "no backscatter is that low: set missing pixels to NaN, and undo a stored scale"
    if unit == "DN" and dtype == torch.uint8:
        return "this looks like an 8-bit picture, whose stretch is unknown: take the product's own numbers"
    if unit == "DN" and 0 < high <= 2:
        return "this looks like reflectance: multiply it by 10,000"
    return None


def _resize(x: Tensor, size: tuple[int, int], **how: Any) -> Tensor:
    """(..., C, H, W) -> (..., C, *size)."""
    if x.shape[-2:] == size:
        return x
    y = nn.functional.interpolate(x.reshape(-1, *x.shape[-3:]), size, **how)
    return y.reshape(*x.shape[:-2], *size)
