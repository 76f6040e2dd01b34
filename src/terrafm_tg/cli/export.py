"""``terrafm export``: the teacher encoder of a pretraining checkpoint, for other projects."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder, export_encoder, export_onnx, load_encoder_state, reparameterize
from terrafm_tg.utils.arguments import checked

from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Exports, and names the files."""
    for path in export(**read_options(command, words, export)):
        print(path)


@checked()
def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    onnx: list[str] | str | None = None,
    bands: list[str] | dict[str, list[str]] | None = None,
    size: int | str = 224,
    fold: bool = False,
) -> list[Path]:
    """Writes OUT.safetensors, OUT.ckpt for the `weights=` of TorchGeo's tasks, and OUT.onnx on demand.

    Args:
        checkpoint: A checkpoint of `terrafm fit`, or any other file that `get_model(..., weights=...)` takes.
        out: Path of the new files, without an ending.
        onnx: Modality that OUT.onnx reads, or several that it fuses, such as s2l2a or [s1rtc,s2l2a].
        bands: For ONNX: bands of the input in the order of its channels, such as [B04,B03,B02]; all by default.
        size: For ONNX: height and width in pixels, one number or such as 224x320. Only the batch is dynamic.
        fold: For ONNX: whether to fold the stem's linear maps, which is faster and exact up to rounding.

    Returns:
        The files.

    Raises:
        TerraFMError: If there is no such checkpoint, or it is of no registered size and ONNX was asked for.
    """
    if onnx is None and (bands, size, fold) != (None, 224, False):
        raise TerraFMError(f"`bands` {bands}, `size` {size} and `fold` {fold} are of an ONNX file: give `onnx`, too.")
    path = Path(checkpoint)
    if (path.suffix or path.parent != Path()) and not path.exists():
        raise TerraFMError(f"There is no checkpoint {checkpoint}: correct `checkpoint`, the first word.")
    paths = list(export_encoder(checkpoint, out))
    if onnx is not None:
        name = load_encoder_state(paths[0])[1]["model"]
        if name is None:
            raise TerraFMError(f"{checkpoint} is of no registered size: load it in Python and call export_onnx().")
        modalities = [onnx] if isinstance(onnx, str) else onnx
        own = modalities[0] if len(modalities) == 1 else None
        encoder = build_encoder(name, paths[0], modality=own, bands=bands)
        sides: list[Any] = [int(side) if side.isdigit() else side for side in str(size).split("x")]
        pixels = (sides[0], sides[1]) if len(sides) == 2 else sides[0]  # export_onnx() says what is wrong with them
        encoder = reparameterize(encoder) if fold else encoder
        paths.append(export_onnx(encoder, paths[0].with_suffix(".onnx"), modalities, pixels))
    return paths
