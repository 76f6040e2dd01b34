"""The models that TorchGeo registers, each kind with its bands, its size, and the place of its tokens."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu
from torchgeo.models import DEO_Weights, get_model, get_model_weights, list_models
from torchgeo.models.copernicusfm import resize_abs_pos_embed
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L2A

from .backbone import IMAGE, Inputs, StagedBackbone, TimmBackbone, TokenBackbone, with_seed
from .channels import WAVELENGTHS, is_sentinel2
from .encoder import BenchEncoder
from .reader import Request
from .torchgeo_inputs import clipped_channels, first_sensor, photo_reader, spectral_reader, weight_reader

#: Wavelength in micrometers by which DOFA's first weights know radar.
_DOFA_RADAR = 3.75
#: Panopticon's numbers of a radar channel whose orbit is not known.
_PANOPTICON_RADAR = {"VV": -1.0, "VH": -2.0}


def load_resnet_or_vit(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads ResNets and Vision Transformers of timm, whose positions are resized to the image."""
    is_vit = name.startswith("vit_")
    size = request.size((14 if "patch14" in name else 16) if is_vit else 32)
    reader = weight_reader(request, weight, size)
    settings = {"dynamic_img_size": True} if is_vit else {}
    model = _build(request, name, weight, in_chans=len(reader.channels), **settings)
    return BenchEncoder(request, {IMAGE: reader}, TimmBackbone(model, size), size)


def load_scalemae(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads Scale-MAE, which is told the size of a pixel on the ground: 10 m in Sentinel-2, else 1 m."""
    size = request.size(16)
    reader = photo_reader(request, size) if weight is None else weight_reader(request, weight, size)
    ground = 10.0 if is_sentinel2(first_sensor(reader)) else 1.0
    model = _build(request, name, weight, img_size=size, res=ground * request.task.size / size)
    return BenchEncoder(request, {IMAGE: reader}, TimmBackbone(model, size), size)


def load_swin(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads Swin Transformers of torchvision; the embedding is the mean of the last map, after its norm."""
    size = request.size(32)
    reader = weight_reader(request, weight, size)
    model = _build(request, name, weight)
    if weight is None:
        stem, count = model.features[0][0], len(reader.channels)
        model.features[0][0] = with_seed(
            request.spec.seed, lambda: nn.Conv2d(count, stem.out_channels, stem.kernel_size, stem.stride)
        )
    model.head = nn.Identity()

    def stages(x: Tensor) -> list[Tensor]:
        maps = []
        for number, stage in enumerate(model.features):
            x = stage(x)
            if number % 2:  # a patch merging comes before each
                maps.append(x)
        return [m.movedim(-1, 1) for m in (*maps[:-1], model.norm(maps[-1]))]

    return BenchEncoder(request, {IMAGE: reader}, StagedBackbone(model, stages, model.norm.weight.numel(), 32), size)


def load_deo(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads DEO, a Swin Transformer of ten bands with or without weights."""
    size = request.size(32)
    reader = weight_reader(request, weight or DEO_Weights.DEO_SWIN, size)
    model = _build(request, name, weight)

    def stages(x: Tensor) -> list[Tensor]:
        return [m.movedim(-1, 1) for m in model.forward_features(x)]

    width = model.feat_extr.norm.weight.numel()
    return BenchEncoder(request, {IMAGE: reader}, StagedBackbone(model, stages, width, 32), size)


def load_tilenet(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads Tile2Vec; the embedding is the mean of the last map, which fits any size."""
    size = request.size(16)
    reader = weight_reader(request, weight, size)
    model = _build(request, name, weight, in_channels=len(reader.channels))

    def stages(x: Tensor) -> list[Tensor]:
        maps = [relu(model.bn1(model.conv1(x)))]
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4, model.layer5):
            maps.append(layer(maps[-1]))
        return maps

    return BenchEncoder(request, {IMAGE: reader}, StagedBackbone(model, stages, 512, 16), size)


def load_earthloc(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads EarthLoc, whose descriptor is learned for images of one size."""
    own = weight.meta["image_size"] if weight else None
    size = request.size(16, own)
    if own not in (None, size):
        raise TerraFMError(f"The weights of {name} read images of {own} px, not {size}: drop `size`.")
    reader = photo_reader(request, size) if weight is None else weight_reader(request, weight, size)
    model = _build(request, name, weight, image_size=size)
    backbone = StagedBackbone(
        model,
        lambda x: [model.backbone(x)],
        model.aggregator.in_channels,
        16,
        embed=lambda x: normalize(model.fc(model.aggregator(x)), dim=-1),
        token_dim=model.desc_dim,
    )
    return BenchEncoder(request, {IMAGE: reader}, backbone, size)


def load_dofa(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads DOFA, which makes its stem from the bands' wavelengths."""
    patch = 14 if "patch14" in name else 16
    size = request.size(patch)
    reader = spectral_reader(request, size)
    model = _build(request, name, weight, num_classes=0)
    side = size // patch
    if side**2 != model.num_patches:
        old = round(model.num_patches**0.5)
        model.pos_embed.data = resize_abs_pos_embed(model.pos_embed.data, side, (old, old))
    waves = [_DOFA_RADAR if c.unit == "dB" else WAVELENGTHS[c.band][0] / 1000 for c in reader.channels]

    def run(inputs: Inputs) -> Tensor:
        return model.forward_features(inputs[IMAGE], waves)

    backbone = TokenBackbone(model, run, model.blocks, model.fc_norm, model.embed_dim, patch)
    return BenchEncoder(request, {IMAGE: reader}, backbone, size)


def load_copernicusfm(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads Copernicus-FM, which makes its stem from the bands' wavelengths and widths; place and date stay unknown."""
    size = request.size(16)
    reader = spectral_reader(request, size)
    model = _build(request, name, weight)
    centers, widths = zip(*(WAVELENGTHS[channel.band] for channel in reader.channels), strict=True)

    def run(inputs: Inputs) -> Tensor:
        x = inputs[IMAGE]
        unknown = x.new_full((len(x), 4), torch.nan)
        return model.forward_features(x, unknown, centers, widths, kernel_size=16)

    dim = model.cls_token.shape[-1]
    return BenchEncoder(request, {IMAGE: reader}, TokenBackbone(model, run, model.blocks, model.fc_norm, dim, 16), size)


def load_panopticon(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads Panopticon, which takes the bands of any sensors together, each with its wavelength or radar number."""
    size = request.size(14)
    reader = spectral_reader(request, size, request.sensors)
    model = _build(request, name, weight, img_size=size)
    numbers = torch.tensor(
        [_PANOPTICON_RADAR.get(c.band, WAVELENGTHS[c.band][0]) for c in reader.channels], dtype=torch.float32
    )
    vit = model.model

    def run(inputs: Inputs) -> None:
        x = inputs[IMAGE]
        vit.forward_features({"imgs": x, "chn_ids": numbers.to(x.device).repeat(len(x), 1)})

    return BenchEncoder(
        request, {IMAGE: reader}, TokenBackbone(model, run, vit.blocks, vit.norm, vit.embed_dim, 14), size
    )


def load_croma(request: Request, name: str, weight: WeightsEnum | None) -> BenchEncoder:
    """Loads CROMA: radar, optics, or both through its joint encoder. It was trained on images of 120 px."""
    size = request.size(8, own=120)
    readers = {}
    if request.radar:
        readers["sar"] = request.reader(clipped_channels(S1RTC.bands), size, request.radar)
    if request.optical:
        readers["optical"] = request.reader(clipped_channels(S2L2A.bands), size, request.optical)
    model = _build(request, name, weight, modalities=tuple(readers), image_size=size)
    if len(readers) == 2:
        key, transformer = "joint_GAP", model.joint_encoder
    elif "sar" in readers:
        key, transformer = "sar_GAP", model.s1_encoder.transformer
    else:
        key, transformer = "optical_GAP", model.s2_encoder.transformer

    def run(inputs: Inputs) -> Tensor:
        return model(x_sar=inputs.get("sar"), x_optical=inputs.get("optical"))[key]

    backbone = TokenBackbone(
        model,
        run,
        [layer[-1] for layer in transformer.layers],
        transformer.norm_out,
        model.encoder_dim,
        8,
        prefix=0,
        take=lambda x, y: x + y,  # what a layer adds is added outside of it
    )
    return BenchEncoder(request, readers, backbone, size)


def _build(request: Request, name: str, weight: WeightsEnum | None, **settings: Any) -> Any:
    """Builds the model, without the head for classes that timm's have."""
    if weight is not None:  # builders of sizes that were never published do not know the argument
        settings["weights"] = weight
    model: Any = with_seed(request.spec.seed, lambda: get_model(name, **settings))
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(0)
    return model


#: How each is run, by the start of its name.
ADAPTERS = {
    "copernicusfm_": load_copernicusfm,
    "croma_": load_croma,
    "deo_": load_deo,
    "dofa_": load_dofa,
    "earthloc": load_earthloc,
    "panopticon_": load_panopticon,
    "resnet": load_resnet_or_vit,
    "scalemae_": load_scalemae,
    "swin_": load_swin,
    "tilenet": load_tilenet,
    "vit_": load_resnet_or_vit,
}

#: What the others want instead of an image.
UNSUPPORTED = {
    "aurora_": "states of the atmosphere",
    "olmoearth_": "time series with their dates, through a package of its own",
    "presto": "time series of single pixels",
    "satclip": "coordinates",
    "tessera": "time series of single pixels",
    "unet": "pairs of images, and gives masks, not embeddings",
}


def load_torchgeo(request: Request) -> BenchEncoder:
    """Loads ``torchgeo/NAME``, by the name that ``torchgeo.models.get_model`` takes.

    Raises:
        UnsupportedTaskError: If the model takes no images of a sensor that the task has.
        TerraFMError: If there is no such model or weight, or the weight cannot be had.
    """
    name = request.spec.model.removeprefix("torchgeo/")
    for start, reads in UNSUPPORTED.items():
        if name.startswith(start):
            raise request.unsupported(f"it takes {reads}")
    known = [model for model in list_models() if model.startswith(tuple(ADAPTERS))]
    if name not in known:
        raise TerraFMError(f"TorchGeo has no model {name!r}: use one of {', '.join(known)}.")
    adapter = next(adapter for start, adapter in ADAPTERS.items() if name.startswith(start))
    weight = find_weight(name, request.spec.weights)
    if weight is None:
        return adapter(request, name, None)
    place = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weight.url).path).name)
    try:
        return adapter(request, name, weight)
    except (OSError, RuntimeError, EOFError, LookupError, UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100].rstrip(". ")
        what = "is damaged" if place.is_file() else "could not be downloaded"
        raise TerraFMError(
            f"The weights {weight.name} of {name} cannot be loaded, because their file {what} ({reason}): fetch "
            f"{weight.url} to {place}."
        ) from error


def find_weight(name: str, weights: str | None) -> WeightsEnum | None:
    """Finds the weight of that name, with or without the enum's; "default" for the only one there is.

    Raises:
        TerraFMError: If there is none, or "default" could be several.
    """
    if weights is None:
        return None
    try:
        members: list[WeightsEnum] = list(get_model_weights(name).__members__.values())
    except KeyError as error:
        raise TerraFMError(f"TorchGeo has no weights of {name}: leave `weights` out for random ones.") from error
    if weights == "default" and len(members) == 1:
        return members[0]
    for member in members:
        if weights in (member.name, str(member)):
            return member
    raise TerraFMError(f"{name} has no weights {weights!r}: use one of {', '.join(member.name for member in members)}.")
