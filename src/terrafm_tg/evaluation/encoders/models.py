"""Loading a model by its name: TerraFM, timm's, TorchGeo's, and the baseline without an encoder."""

import re
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from terrafm_tg.datasets.bench import BenchDataset, BenchTask
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.models import build_encoder
from terrafm_tg.models.builders import BUILDERS
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.sizes import split_name
from terrafm_tg.transforms.statistics import with_statistics

from .backbone import IMAGE, Backbone, Features, Inputs, TimmBackbone, with_seed
from .channels import RGB, Source, find, is_radar, is_sentinel2, modality_channels, rgb_channels
from .encoder import BenchEncoder
from .reader import Request
from .spec import ModelSpec
from .torchgeo_models import load_torchgeo

#: The baseline's name.
PIXEL_STATISTICS = "pixel-statistics"


def load_encoder(spec: ModelSpec, task: BenchTask, data: BenchDataset) -> BenchEncoder:
    """Loads the model that ``spec`` names, ready to read batches of ``task``.

    Args:
        spec: Model and settings.
        task: As the dataset states it (its ``task``, which follows ``bands=``).
        data: Whose band statistics count for sensors that the model was not trained on.

    Returns:
        The encoder on the CPU, in ``eval()``.

    Raises:
        UnsupportedTaskError: If the model cannot read the task's sensors.
        TerraFMError: If the model, its weights or a setting is wrong.
    """
    request = Request(spec, task, data)
    name = re.sub("^torchgeo/(?=terrafm_)", "", spec.model)
    if name in BUILDERS:
        encoder = load_terrafm(request, name)
    elif name == PIXEL_STATISTICS:
        encoder = load_pixel_statistics(request)
    elif name.startswith("timm/"):
        encoder = load_timm(request)
    elif name.startswith("torchgeo/"):
        encoder = load_torchgeo(request)
    else:
        raise TerraFMError(
            f"Model {spec.model!r} is unknown: use one of {', '.join(n for n in BUILDERS if n.count('_') == 1)}, "
            f"{PIXEL_STATISTICS}, timm/NAME or torchgeo/NAME."
        )
    return encoder.eval()


def load_terrafm(request: Request, model: str) -> BenchEncoder:
    """Loads a TerraFM encoder with the weights of any file, or random ones.

    Sentinel-2 goes through the stem of its level, or ``spec.stem``. A sensor without a stem (aerial RGB, Landsat)
    goes through ``spec.stem`` or that of L2A, by the Sentinel-2 bands that its bands are nearest to.

    Args:
        request: The model's settings and the task.
        model: ``terrafm_<size>``, or one of its variants by modality and for RGB.

    Raises:
        UnsupportedTaskError: If no stem reads any band of the task.
        TerraFMError: If the weights cannot be loaded.
    """
    spec = request.spec
    size = request.size(PATCH_SIZE)
    name, variant = split_name(model)
    preset = variant.get("modality")
    wanted = variant.get("bands") if spec.channels in (None, ("all",)) else spec.channels
    bands: dict[str, tuple[str, ...]] = {}
    places: dict[str, list[Source | None]] = {}
    for sensor in request.sensors:
        stem = sensor if is_radar(sensor) else spec.stem or (sensor if is_sentinel2(sensor) else S2L2A.name)
        if stem in bands or preset not in (None, stem):
            continue
        modality = MODALITIES[stem]
        names = modality.bands if wanted is None else [band for band in modality.bands if band in wanted]
        sources = find(request.task, [sensor], names, spec.absent)
        there = [(band, source) for band, source in zip(names, sources, strict=True) if source is not None]
        if there:
            bands[stem], places[stem] = tuple(band for band, _ in there), [source for _, source in there]
    if not bands and wanted is not None:
        raise request.unsupported(f"{', '.join(request.sensors)} has none of the bands {', '.join(wanted)}")
    if not bands:
        stems = preset or f"{S1RTC.name} or Sentinel-2"
        raise request.unsupported(f"none of {', '.join(request.sensors)} has a band of {stems}")
    weights = True if spec.weights == "default" else spec.weights
    encoder = with_seed(spec.seed, lambda: build_encoder(name, weights, bands=bands))
    readers = {}
    for stem, sources in places.items():
        channels = modality_channels(with_statistics(MODALITIES[stem], encoder.statistics), bands[stem])
        readers[stem] = request.reader(channels, size, sources=sources)
    return BenchEncoder(request, readers, TimmBackbone(encoder, size, select=dict), size)


class PixelStatistics(Backbone):
    """Mean and standard deviation per band (n, 2 C), means first; patches are their own C x 16 x 16 values.

    Args:
        channels: Number C of bands.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Identity(), 2 * channels, channels * PATCH_SIZE**2, patch_size=PATCH_SIZE, has_mean=False)

    def forward(self, inputs: Inputs) -> Features:
        """Returns statistics, and pixels by patch."""
        x = inputs[IMAGE]
        std, mean = torch.std_mean(x, dim=(2, 3), correction=0)
        return Features(torch.cat([mean, std], dim=1), self._pixels(x))

    def levels(self, inputs: Inputs) -> list[Tensor]:
        """Returns the same pixels four times: there is no depth."""
        return [self._pixels(inputs[IMAGE])] * 4

    def _pixels(self, x: Tensor) -> Tensor:
        height, width = (side // PATCH_SIZE * PATCH_SIZE for side in x.shape[-2:])
        return pixel_unshuffle(x[..., :height, :width], PATCH_SIZE)


def load_pixel_statistics(request: Request) -> BenchEncoder:
    """Makes the baseline of all bands of all sensors as z-scores of the dataset; for masks of resized pixels.

    Raises:
        UnsupportedTaskError: If the task has none of the bands asked for.
    """
    size = request.size(PATCH_SIZE)
    channels, sources = request.own_channels(request.sensors)
    resized = size if request.task.kind == "segmentation" else None
    reader = request.reader(channels, resized, sources=sources)
    return BenchEncoder(request, {IMAGE: reader}, PixelStatistics(len(channels)), size)


#: Statistics of models that state none.
_PHOTO = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_timm(request: Request) -> BenchEncoder:
    """Loads ``timm/NAME``, by the name that ``timm.create_model`` takes.

    Pretrained weights are adapted to the number of bands by timm, by repeating and scaling the first layer's kernel.

    Raises:
        UnsupportedTaskError: If the task has none of the bands asked for.
        TerraFMError: If there is no such model, or its weights cannot be had.
    """
    spec = request.spec
    name = spec.model.removeprefix("timm/")
    if not is_model(split_model_name_tag(name)[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise TerraFMError(f"timm has no model {name!r}: use one of `timm.list_models()`, such as {near}.")
    cfg = get_pretrained_cfg(name)
    fixed = bool(cfg and cfg.fixed_input_size)
    named = re.search(r"patch(\d+)", name) if fixed else None
    patch = int(named[1]) if named else 0
    size = request.size(patch if patch > 4 else 32)  # the stride of networks of stages
    colors = find(request.task, request.optical, RGB, "mean") if request.optical else []
    if spec.channels is None and colors and None not in colors:
        channels = rgb_channels(*((cfg.mean, cfg.std) if cfg else _PHOTO))
        reader = request.reader(channels, size, sources=colors)
    else:
        own, sources = request.own_channels()
        reader = request.reader(own, size, sources=sources)
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": len(reader.channels)}
    if fixed:
        settings["img_size"] = size
    if spec.weights not in (None, "default"):
        if not Path(spec.weights).is_file():
            raise TerraFMError(
                f"There is no file {spec.weights} of weights for timm/{name}: correct `weights`, or use default."
            )
        settings["pretrained_cfg_overlay"] = {"file": spec.weights}
    try:
        model = with_seed(spec.seed, lambda: timm.create_model(name, spec.weights is not None, **settings))
    except (OSError, RuntimeError, HfHubHTTPError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TerraFMError(
            f"The weights of timm/{name} could not be loaded ({reason}): give `weights` the path of a file, or fetch "
            "them once with a network."
        ) from error
    return BenchEncoder(request, {IMAGE: reader}, TimmBackbone(model, size), size)
