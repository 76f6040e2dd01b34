"""TerraFM: each sensor through its own stem, several fused; any other optical sensor through a stem of Sentinel-2."""

from terrafm_tg.modalities import MODALITIES, S1RTC, S2L2A
from terrafm_tg.models import build_encoder
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.models.sizes import split_name

from .backbone import TimmBackbone, with_seed
from .bands import is_radar, is_sentinel2
from .channels import find, modality_channels
from .encoder import Encoder
from .request import Request


def load_terrafm(request: Request, model: str) -> Encoder:
    """A TerraFM encoder with the weights of any file, or random ones.

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
    readers, bands = {}, {}
    for sensor in request.sensors:
        stem = sensor if is_radar(sensor) else spec.stem or (sensor if is_sentinel2(sensor) else S2L2A.name)
        if stem in readers or preset not in (None, stem):
            continue
        modality = MODALITIES[stem]
        names = modality.bands if wanted is None else [band for band in modality.bands if band in wanted]
        sources = find(request.task, [sensor], names, spec.absent)
        there = [(band, source) for band, source in zip(names, sources, strict=True) if source is not None]
        if there:
            bands[stem] = tuple(band for band, _ in there)
            channels = modality_channels(modality, bands[stem])
            readers[stem] = request.reader(channels, size, sources=[source for _, source in there])
    if not readers and wanted is not None:
        raise request.unsupported(f"{', '.join(request.sensors)} has none of the bands {', '.join(wanted)}")
    if not readers:
        stems = preset or f"{S1RTC.name} or Sentinel-2"
        raise request.unsupported(f"none of {', '.join(request.sensors)} has a band of {stems}")
    weights = True if spec.weights == "default" else spec.weights
    encoder = with_seed(spec.seed, lambda: build_encoder(name, weights, bands=bands))
    return Encoder(request, readers, TimmBackbone(encoder, size, select=dict), size)
