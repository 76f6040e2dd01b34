"""The encoder's normalisation, (x - (mean - 2 std)) / (4 std) without clipping (`paper.md`, Data)."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality, get_modalities, get_modality

#: What a missing pixel becomes: the band's training mean after normalisation.
MISSING = 0.5


def affine(modality: Modality, bands: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Normalisation as x * scale + shift.

    Args:
        modality: Whose statistics to use.
        bands: Bands of x in order; all of the stem's where None.

    Returns:
        ``scale`` and ``shift``, float64 (C,).

    Raises:
        TerraFMError: If the modality lacks a band.
    """
    columns = modality.band_indices(modality.bands if bands is None else bands)
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[columns] for values in (modality.mean, modality.std)
    )
    return 1 / (4 * std), MISSING - mean / (4 * std)


class Normalize(nn.Module):
    """Normalises Sentinel-1 in decibels and Sentinel-2 in digital numbers as the encoder expects them.

    A missing pixel (NaN or infinite) becomes 0.5, the band's mean. Values whose range cannot be the unit,
    reflectance from 0 to 1 or radar in linear power, bring one warning.

    Args:
        modality: What ``image``, or a bare tensor, is: ``s1rtc`` (dB), ``s2l1c`` or ``s2l2a`` (digital
            numbers: reflectance x 10,000 without the offset of processing baseline 04.00). Not needed for
            dicts with ``image_<modality>`` keys.
        bands: Bands of that modality in the order of the channels, any subset; for several modalities a
            mapping of modality to bands. All of the stem's bands by default.

    Raises:
        TerraFMError: If a modality or band is unknown.

    Example:
        >>> Normalize("s2l2a", bands=["B04", "B03", "B02"])(torch.full((3, 8, 8), 1500.0)).shape
        torch.Size([3, 8, 8])
        >>> sample = Normalize()({"image_s1rtc": torch.full((2, 8, 8), -15.0), "label": torch.tensor(1)})
    """

    def __init__(
        self, modality: str | None = None, bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.modality = None if modality is None else get_modality(modality).name
        if bands is not None and not isinstance(bands, Mapping):
            if modality is None:
                raise TerraFMError(
                    "`bands` without `modality` could be of any sensor: name the modality too."
                )
            bands = {modality: bands}
        self.bands = {m.name: (bands or {}).get(m.name) for m in get_modalities()}
        for name in bands or {}:
            get_modality(name)
        for m in get_modalities():
            scale, shift = affine(m, self.bands[m.name])
            self.register_buffer(f"{m.name}_scale", scale.float(), persistent=False)
            self.register_buffer(f"{m.name}_shift", shift.float(), persistent=False)
        self._checked: set[str] = set()

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Normalises an image, or every image of a sample or batch.

        Args:
            x: (..., C, H, W), or a dict with ``image_<modality>`` (and ``image``, where ``modality`` is set).

        Returns:
            The same with float images; a dict is copied, and its other entries are kept.

        Raises:
            TerraFMError: If a channel count is not the number of bands, or nothing says what an image is.
        """
        if isinstance(x, Tensor):
            return self._normalize(x, self._named("a bare tensor"))
        names = {m.key: m.name for m in get_modalities() if m.key in x}
        if "image" in x:
            names["image"] = self._named("the key 'image'")
        if not names:
            keys = ", ".join(m.key for m in get_modalities())
            raise TerraFMError(
                f"Nothing to normalise among the keys {', '.join(x)}: expected one of image, {keys}."
            )
        return x | {key: self._normalize(x[key], name) for key, name in names.items()}

    def _named(self, what: str) -> str:
        if self.modality is None:
            raise TerraFMError(f"Nothing says which sensor {what} is: make Normalize with `modality=`.")
        return self.modality

    def _normalize(self, x: Tensor, name: str) -> Tensor:
        modality = get_modality(name)
        scale, shift = self.get_buffer(f"{name}_scale"), self.get_buffer(f"{name}_shift")
        if x.ndim < 3 or x.shape[-3] != len(scale):
            bands = ", ".join(self.bands[name] or modality.bands)
            raise TerraFMError(
                f"{name} must be (..., {len(scale)}, H, W) with the bands {bands}, got {tuple(x.shape)}: "
                "name yours with `bands=`."
            )
        if not torch.compiler.is_compiling():
            self._check_unit(x, modality)
        x = x.to(scale.dtype) if not x.is_floating_point() else x
        y = x * scale.to(x)[:, None, None] + shift.to(x)[:, None, None]
        return torch.where(torch.isfinite(y), y, MISSING)

    def _check_unit(self, x: Tensor, modality: Modality) -> None:
        """Looks at the first image of each modality that has any pixel."""
        if modality.name in self._checked:
            return
        values = x[torch.isfinite(x)]
        if not len(values):
            return
        self._checked.add(modality.name)
        low, high = values.min().item(), values.max().item()
        if modality.unit == "dB" and low >= 0:
            hint = "this looks like linear power: take 10 * log10 of it"
        elif modality.unit == "DN" and high <= 2 and high > 0:
            hint = "this looks like reflectance: multiply it by 10,000"
        else:
            return
        warnings.warn(
            f"{modality.title} must be in {modality.unit}, but lies from {low:.4g} to {high:.4g}: {hint}.",
            UserWarning,
            stacklevel=6,  # the caller of the module
        )
