"""Names of the encoder: the sizes, and what a name's ending presets."""

from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L1C, S2L2A

#: Width, blocks and heads of each size. Base and large are the paper's, small its scaling study's, nano and tiny ours.
SIZES: dict[str, dict[str, int]] = {
    "terrafm_nano": {"embed_dim": 192, "depth": 4, "num_heads": 3},
    "terrafm_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "terrafm_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "terrafm_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "terrafm_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}

#: Sentinel-2 without its 60 m bands, in the order of the product.
_WITHOUT_60M = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_TO_B08 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08")

#: What a name's ending presets, for callers that pass only a name, ``in_chans`` and ``num_classes``: the modality, and
#: the bands in the order of the channels.
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"_{name}": {"modality": name} for name in MODALITIES},
    "_rgb": {"modality": S2L2A.name, "bands": ("B04", "B03", "B02")},
    "_rgbn": {"modality": S2L2A.name, "bands": ("B04", "B03", "B02", "B08")},
    "_s2l2a_10": {"modality": S2L2A.name, "bands": _WITHOUT_60M},
    "_s2l1c_10": {"modality": S2L1C.name, "bands": _WITHOUT_60M},
    # B10, cirrus, is in these files and in no stem: it is read past.
    "_s2l1c_13": {"modality": S2L1C.name, "bands": (*_TO_B08, "B8A", "B09", "B10", "B11", "B12")},
    "_eurosat": {"modality": S2L1C.name, "bands": (*_TO_B08, "B09", "B10", "B11", "B12", "B8A")},
}

#: Every registered name.
NAMES = [size + ending for size in SIZES for ending in ("", *VARIANTS)]


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Splits a name: ``terrafm_base_s1rtc`` is of size ``terrafm_base``, and its ending presets the modality.

    Returns:
        The size, and settings of the encoder.

    Raises:
        TerraFMError: If the name is unknown.
    """
    if name not in NAMES:
        raise TerraFMError(
            f"Model {name!r} is unknown: use one of {', '.join(SIZES)}, alone or with one of the endings "
            f"{', '.join(VARIANTS)}."
        )
    size = "_".join(name.split("_")[:2])
    return size, VARIANTS.get(name.removeprefix(size), {})


def find_size(width: int, depth: int) -> str | None:
    """Finds the size of an encoder: of its width and depth, or of its width where a run chose the depth itself."""
    shapes = {(size["embed_dim"], size["depth"]): name for name, size in SIZES.items()}
    widths = {size["embed_dim"]: name for name, size in SIZES.items()}
    return shapes.get((width, depth), widths.get(width))


def names_for(channels: int) -> list[str]:
    """Lists the endings that read so many channels, with their bands, for messages."""
    return [
        f"terrafm_<size>{ending} ({preset['modality']} {', '.join(preset['bands'])})"
        for ending, preset in VARIANTS.items()
        if len(preset.get("bands", ())) == channels
    ]
