"""The encoder as files for other projects: tensors, and a graph in ONNX."""

import copy
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modalities
from terrafm_tg.transforms.statistics import with_statistics
from terrafm_tg.utils.arguments import COUNT, checked
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.tensor_files import save_archive, save_tensors

from .builders import data_config
from .vit import TerraFMViT
from .weights import load_encoder_state

#: Largest difference from the encoder that is rounding (fp32, outputs of unit order).
_TOLERANCE = 1e-3


@checked()
def export_encoder(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes a checkpoint's encoder for other projects, with statistics of its own; each file is written atomically.

    Args:
        checkpoint: Anything that :func:`load_encoder_state` reads; of our pretraining, its teacher is taken.
        out: Path without ending. Folders are made.

    Returns:
        ``<out>.safetensors``, and ``<out>.ckpt``, which TorchGeo's tasks take as ``weights=``.

    Raises:
        TerraFMError: If the checkpoint cannot be read, or a file would overwrite it.
    """
    state, meta = load_encoder_state(checkpoint, option="checkpoint")
    name = meta["model"] or str(meta["hyper_parameters"].get("model"))
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    # The prefix and the hyper-parameter are what TorchGeo's extract_backbone looks for.
    wrapped = {f"model.{key}": tensor for key, tensor in tensors.items()}
    settings: dict[str, Any] = {"model": name, "depth": meta["depth"]}
    said = {"format": "pt", "model": name, "depth": str(meta["depth"])}
    if meta["statistics"] is not None:
        settings["statistics"], said["statistics"] = meta["statistics"], json.dumps(meta["statistics"])
    lightning = {"state_dict": wrapped, "hyper_parameters": settings}
    target = Path(out)
    if target.suffix in (".ckpt", ".safetensors"):
        target = target.with_suffix("")
    paths = target.with_name(f"{target.name}.safetensors"), target.with_name(f"{target.name}.ckpt")
    for path in paths:
        if path.exists() and path.samefile(checkpoint):
            raise TerraFMError(f"{path} would overwrite the checkpoint that is exported: give `out` another name.")
    with atomic_write(paths[0]) as partial:
        save_tensors(tensors, partial, said)
    with atomic_write(paths[1]) as partial:
        save_archive(lightning, partial)
    return paths


@checked(size=COUNT)
def export_onnx(
    model: TerraFMViT,
    path: str | os.PathLike[str],
    modality: str | Sequence[str] | None = None,
    size: int | tuple[int, int] = 224,
) -> Path:
    """Writes an encoder as ONNX and compares it with the encoder in onnxruntime; the file is written atomically.

    The graph has an input (batch, C, H, W) per modality, named after it and normalized as the encoder's, and one
    output, ``embedding`` or ``logits``. Its metadata ``terrafm`` is JSON: the bands of each input, their unit, and the
    ``mean`` and ``std`` of (x - mean) / std.

    Args:
        model: The encoder with its bands, plain or folded; it is not changed.
        path: The file; ``.onnx`` is added where missing, folders are made.
        modality: What the graph reads; several are fused. The encoder's own by default.
        size: Height and width in pixels, or one number for both.

    Returns:
        The file's path.

    Raises:
        TerraFMError: If a size or modality is missing or cannot be read, or if the result differs from the encoder.
        ModuleNotFoundError: If a package of the extra ``onnx`` is missing.
    """
    import onnxruntime

    names = modality or model.modality
    if names is None:
        raise TerraFMError("Nothing says what the exported encoder reads: name a `modality`, or several to be fused.")
    sensors = get_modalities([names] if isinstance(names, str) else list(names))
    height, width = _fixed(size)

    encoder = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    shapes = {m.name: (len(encoder.columns[m.name]), height, width) for m in sensors}
    example = {name: torch.rand(2, *shape) for name, shape in shapes.items()}
    encoder(example)  # what the encoder refuses, it refuses here in one sentence
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*axis name.*will not be used")  # modalities share their batch
        program = torch.onnx.export(
            encoder,
            kwargs={"x": example},
            input_names=list(example),
            output_names=["logits" if encoder.num_classes else "embedding"],
            dynamic_shapes={"x": {name: {0: batch} for name in example}},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise TerraFMError("This torch returned no ONNX program: use a version of constraints.txt.")
    inputs = {
        m.name: data_config(with_statistics(m, encoder.statistics), columns)
        | {"bands": m.channel_names(columns), "unit": m.unit}
        for m, columns in ((m, encoder.columns[m.name]) for m in sensors)
    }
    program.model.metadata_props["terrafm"] = json.dumps(inputs)

    target = Path(path)
    target = target if target.suffix == ".onnx" else target.with_name(f"{target.name}.onnx")
    with atomic_write(target) as partial:
        program.save(partial, external_data=False)
        # At a batch other than the traced one.
        images = {name: torch.rand(3, *shape) for name, shape in shapes.items()}
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {name: image.numpy() for name, image in images.items()})
        difference = (torch.from_numpy(output) - encoder(images)).abs().max().item()
        if not difference <= _TOLERANCE:
            raise TerraFMError(
                f"The ONNX file differs from the encoder by {difference:.2g}, more than {_TOLERANCE}: nothing was "
                "written; use the versions of constraints.txt."
            )
    return target


def _fixed(size: object) -> tuple[int, int]:
    """Height and width, in words where there is no one of each."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TerraFMError(
            f"An ONNX file has one height and width in pixels, and `size` is {size!r}: the positions are resized for "
            "one size, so export once for each (only the batch is dynamic)."
        )
    return sides[0], sides[1]
