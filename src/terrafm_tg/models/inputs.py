"""The encoder's input: a bare tensor, a dict of modalities, or a batch of samples that differ in them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A, get_modality
from terrafm_tg.transforms import SensorBatch

from .sizes import names_for

#: Side of a patch in pixels.
PATCH_SIZE = 16

#: The stem channel of each channel of the input, by modality; None for one that is read past (B10).
type Columns = Mapping[str, tuple[int | None, ...]]

#: Band names in the order of the input's channels; by modality where modalities differ.
type Bands = str | Sequence[str] | Mapping[str, Sequence[str]]


def select_columns(modality: str | None = None, bands: Bands | None = None) -> Columns:
    """Stem channels to read, by modality.

    Args:
        modality: The modality that ``bands`` are of; None takes every modality that has them all.
        bands: Band names in the order of the input's channels; None means all bands of the stem. A modality
            that lacks one of them, or is not a key of the mapping, is read in full.

    Raises:
        TerraFMError: If the modality is unknown, or a band is.
    """
    columns: dict[str, tuple[int | None, ...]] = {m.name: tuple(range(len(m.bands))) for m in MODALITIES.values()}
    named = None if modality is None else get_modality(modality).name
    if bands is None:
        return columns
    if isinstance(bands, Mapping):
        return columns | {name: get_modality(name).stem_columns(_names(own)) for name, own in bands.items()}
    names, fitting = _names(bands), {}
    for sensor in MODALITIES.values():
        try:
            fitting[sensor.name] = sensor.stem_columns(names)
        except TerraFMError:
            if sensor.name == named:
                raise
    if not fitting:
        known = "; ".join(f"{m.name}: {', '.join(m.bands)}" for m in MODALITIES.values())
        raise TerraFMError(f"No modality has the bands {', '.join(names)}: name each once, out of {known}.")
    return columns | fitting


def _names(bands: Sequence[str]) -> tuple[str, ...]:
    """One band may stand alone."""
    return (bands,) if isinstance(bands, str) else tuple(bands)


def input_channels(columns: Columns, modality: str | None, in_chans: int | None = None) -> int:
    """Returns the number of channels of a bare tensor, checked against what the caller says.

    Args:
        columns: From :func:`select_columns`.
        modality: The modality of a bare tensor, None where its channels say it.
        in_chans: The caller's number of channels, None for the usual one.

    Raises:
        TerraFMError: If no stem reads that many channels.
    """
    if in_chans is not None and modality is None:
        modality = guess_modality(in_chans, columns)
    expected = len(columns[modality or S2L2A.name])
    if in_chans not in (None, expected):
        raise TerraFMError(_channel_message(in_chans, columns, modality))
    return expected


def guess_modality(channels: int, columns: Columns) -> str:
    """The modality of a bare tensor: S2 L2A or S1 RTC, by its number of channels.

    Where a choice of bands makes both possible it is the one whose bands were chosen.

    Raises:
        TerraFMError: If the number fits neither.
    """
    fitting = [m for m in (S1RTC, S2L2A) if channels == len(columns[m.name])]
    chosen = [m for m in fitting if columns[m.name] != tuple(range(len(m.bands)))]
    if not fitting:
        raise TerraFMError(_channel_message(channels, columns, None))
    return (chosen or fitting)[0].name


def resolve_input(
    x: Tensor | Mapping[str, Tensor] | SensorBatch,
    columns: Columns,
    modality: str | None = None,
    sample_idx: Mapping[str, Tensor] | None = None,
    size: int | None = None,
) -> SensorBatch:
    """Checks a batch and gives it one form.

    Args:
        x: (B, C, H, W), or a dict of modality -> (n_m, C_m, H, W).
        columns: Which stem channels the tensors hold, from :func:`select_columns`.
        modality: What a bare tensor is; None guesses from its channels.
        sample_idx: Modality -> int64 (n_m,), the sample of each image, for batches whose samples differ in what
            they have. Each sample must occur in at least one of them, and at most once in each.
        size: Number of samples; needed with ``sample_idx``.

    Raises:
        TerraFMError: If a modality, a channel count, a size or a type is not what a stem can read.
    """
    if isinstance(x, SensorBatch):
        return x
    if isinstance(x, Mapping):
        unknown = [name for name in x if name not in MODALITIES]
        if unknown or not x:
            raise TerraFMError(
                f"The input's keys must be modalities ({_list(MODALITIES)}), got {_list(x) or 'none'}: "
                "rename or drop the others (image_s2l2a is s2l2a)."
            )
        if modality is not None and set(x) != {modality}:
            raise TerraFMError(f"`modality={modality!r}` names a bare tensor, and this is a dict: drop one of them.")
        images = {name: x[name] for name in MODALITIES if name in x}
    else:
        _check_layout("the input", x)
        images = {modality or guess_modality(x.shape[1], columns): x}
    first = next(iter(images.values()))
    for name, image in images.items():
        _check_image(name, image, columns)
        if image.shape[-2:] != first.shape[-2:]:
            seen = " and ".join(f"{x.shape[-2]}x{x.shape[-1]}" for x in (first, image))
            raise TerraFMError(f"The modalities differ in size ({seen} px): resample them to one grid.")
    if sample_idx is not None:
        return _with_sample_idx(images, sample_idx, size)
    for image in images.values():
        if image.shape[0] != first.shape[0]:
            raise TerraFMError(
                f"The modalities differ in their number of samples ({first.shape[0]} and {image.shape[0]}): "
                "pass `sample_idx` and `size` to say which image is of which sample."
            )
    return SensorBatch(images, None, first.shape[0])


def _with_sample_idx(images: dict[str, Tensor], sample_idx: Mapping[str, Tensor], size: int | None) -> SensorBatch:
    """Checks ``sample_idx`` without reading their values, so that nothing waits for a device."""
    if size is None or set(sample_idx) != set(images):
        raise TerraFMError(
            f"`sample_idx` must name the input's modalities ({_list(images)}) and come with `size`, the number of "
            f"samples; got sample_idx for {_list(sample_idx) or 'none'} and size {size}."
        )
    for name, image in images.items():
        if sample_idx[name].shape != image.shape[:1]:
            raise TerraFMError(
                f"`sample_idx[{name!r}]` must hold one index for each of the {image.shape[0]} images, got shape "
                f"{tuple(sample_idx[name].shape)}."
            )
    return SensorBatch(images, {name: sample_idx[name] for name in images}, size)


def _check_layout(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TerraFMError(f"The type of {name} must be a float tensor, got {type(x).__name__}: convert it.")
    if x.ndim != 4:
        raise TerraFMError(f"The shape of {name} must be (batch, channels, height, width), got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise TerraFMError(
            f"The type of {name} must be float, got {x.dtype}: normalize as (x - (mean - 2 std)) / (4 std)."
        )


def _check_image(name: str, x: Tensor, columns: Columns) -> None:
    get_modality(name)
    _check_layout(name, x)
    if x.shape[1] != len(columns[name]):
        raise TerraFMError(_channel_message(x.shape[1], columns, name))
    height, width = x.shape[-2:]
    if isinstance(height * width, torch.SymInt) and torch.compiler.is_exporting():
        raise TerraFMError(
            "In an export only the batch may be dynamic, and the height or width is too: the positions are "
            "resized for one size, so export once for each."
        )
    if height % PATCH_SIZE or width % PATCH_SIZE or not height or not width:
        fit = [max(PATCH_SIZE, round(side / PATCH_SIZE) * PATCH_SIZE) for side in (height, width)]
        raise TerraFMError(
            f"An image of {height}x{width} px cannot be cut into {PATCH_SIZE}-px patches: resize or pad it, "
            f"for example to {fit[0]}x{fit[1]}."
        )


def _channel_message(channels: int, columns: Columns, modality: str | None) -> str:
    presets = f", or use {' or '.join(names_for(channels))}" if names_for(channels) else ""
    if modality is None:
        usual = " nor ".join(f"{m.name} ({len(columns[m.name])})" for m in (S1RTC, S2L2A))
        return f"{channels} channels are neither {usual}: say what they are with `modality=` and `bands=`{presets}."
    sensor = get_modality(modality)
    bands = sensor.channel_names(columns[modality])
    expected = f"{len(bands)} channel{'s' * (len(bands) > 1)} here ({', '.join(bands)})"
    return f"{modality} has {expected}, got {channels}: name yours with `bands=`{presets}."


def _list(names: Iterable[str]) -> str:
    return ", ".join(str(name) for name in names)
