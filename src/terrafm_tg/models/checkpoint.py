"""Encoder weights from files and URLs, and back into files that other projects load."""

import http.client
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models._api import WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write

from .sizes import SIZES
from .vit import TerraFMViT
from .weights import find_weights

#: A tensor that every TerraFM encoder has: its place in a checkpoint is the encoder's.
_ANCHOR = "patch_embed.conv2d_s1.weight"

#: Parts that a model may have and a checkpoint lack: they start fresh.
_FRESH = ("head.", "fc_norm.", "attn_pool.")

#: What reading a damaged file raises.
_DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    SafetensorError,
)


def load_encoder_state(
    source: WeightsEnum | str | os.PathLike[str], *, expected: str | None = None, progress: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an encoder's tensors and what they say about the model.

    Takes the published file (flat, or wrapped under keys such as ``model``), a Lightning checkpoint of our
    pretraining (its teacher), an exported ``.ckpt`` or ``.safetensors``, and a checkpoint of TorchGeo's
    tasks. Only tensors and plain values are unpickled.

    Args:
        source: A registered weight or its name, a path, or a URL. A URL's file is kept in the torch hub cache
            and read from there, offline too.
        expected: The size that must be in it, such as ``terrafm_base``.
        progress: Whether a download shows a progress bar.

    Returns:
        The state dict with the published names, on the CPU, and a dict of ``model`` (the size's name, None
        for an unusual width), ``embed_dim``, ``depth`` and ``hyper_parameters`` (of the file; may be empty).

    Raises:
        TerraFMError: If there is no such file, it is damaged, or holds no TerraFM encoder or one of another
            size.
    """
    weight = source if isinstance(source, WeightsEnum) else find_weights(os.fspath(source))
    if weight is not None:
        if expected not in (None, weight.meta["model"]):
            raise TerraFMError(f"{weight} is of {weight.meta['model']}, not of {expected}: build that model.")
        source = weight.url
    place = source if isinstance(source, str) else os.fspath(source)
    remote = urlparse(place).scheme in ("http", "https", "file")
    content = _read_url(place, progress) if remote else _read(Path(place))
    state = find_encoder(content, place)
    width = state["cls_token"].shape[-1]
    found = next((name for name, size in SIZES.items() if size["embed_dim"] == width), None)
    if expected not in (None, found):
        raise TerraFMError(
            f"{place} holds {found or 'an encoder'} ({width} wide), not {expected}: build the size it was "
            "trained with."
        )
    hyper_parameters = content.get("hyper_parameters")
    return state, {
        "model": found,
        "embed_dim": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "hyper_parameters": dict(hyper_parameters) if isinstance(hyper_parameters, Mapping) else {},
    }


def load_weights(model: TerraFMViT, state: Mapping[str, Tensor], source: str) -> None:
    """Puts an encoder's tensors into a model and checks that nothing was left out.

    Where the checkpoint has no fusion the model's own stays; a head of other classes is not taken.

    Args:
        model: Receives the tensors.
        state: From :func:`load_encoder_state`.
        source: What a message calls the checkpoint.

    Raises:
        TerraFMError: If a tensor is missing, unknown, or of another shape.
    """
    own = model.state_dict()
    heads = [sd["head.weight"].shape if "head.weight" in sd else None for sd in (own, state)]
    if heads[0] != heads[1]:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise TerraFMError(
            f"{source} does not fit the model ({reason}): build it as it was trained."
        ) from error
    missing = [name for name in missing if not name.startswith(_FRESH)]
    if missing or unexpected:
        raise TerraFMError(
            f"{source} does not fit the model (missing: {', '.join(missing[:3]) or 'nothing'}; unknown: "
            f"{', '.join(unexpected[:3]) or 'nothing'}): build it as it was trained."
        )


def export_encoder(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes a checkpoint's encoder for other projects; each file appears whole or not at all.

    Args:
        checkpoint: Anything that :func:`load_encoder_state` reads; of our pretraining, its teacher is taken.
        out: Path without ending. Folders are made.

    Returns:
        ``<out>.safetensors``, and ``<out>.ckpt``, which TorchGeo's tasks take as ``weights=``.

    Raises:
        TerraFMError: If the checkpoint cannot be read.
    """
    state, meta = load_encoder_state(checkpoint)
    name = meta["model"] or str(meta["hyper_parameters"].get("model"))
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    # The prefix and the hyper-parameter are what TorchGeo's extract_backbone looks for.
    wrapped = {f"model.{key}": tensor for key, tensor in tensors.items()}
    lightning = {"state_dict": wrapped, "hyper_parameters": {"model": name, "depth": meta["depth"]}}
    target = Path(out)
    if target.suffix in (".ckpt", ".safetensors"):
        target = target.with_suffix("")
    paths = target.with_name(f"{target.name}.safetensors"), target.with_name(f"{target.name}.ckpt")
    with atomic_write(paths[0]) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "model": name, "depth": str(meta["depth"])})
    with atomic_write(paths[1]) as partial, partial.open("wb") as file:
        torch.save(lightning, file)
    return paths


def find_encoder(content: object, source: str) -> dict[str, Tensor]:
    """The encoder's tensors by their published names, wherever they are nested; the teacher's of several.

    Args:
        content: Nested dicts with tensors.
        source: What a message calls them.

    Raises:
        TerraFMError: If there is no encoder or more than one, or it is incomplete.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in _flatten(content)}
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name.endswith(_ANCHOR)]
    chosen = [prefix for prefix in prefixes if prefix.endswith("teacher.")] or prefixes
    if len(chosen) != 1:
        raise TerraFMError(
            f"{source} holds {len(chosen) or 'no'} TerraFM encoder{'s' * bool(chosen)} (tensors {_ANCHOR}): "
            "pass the published checkpoint, one of `terrafm fit`, or one of `terrafm export`."
        )
    state = {name.removeprefix(chosen[0]): t for name, t in tensors.items() if name.startswith(chosen[0])}
    if "cls_token" not in state:
        raise TerraFMError(f"{source} holds an incomplete TerraFM encoder (no cls_token): export it again.")
    return state


def _flatten(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts, with their keys joined by dots."""
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.")


def _read(path: Path, url: str | None = None) -> dict[str, Any]:
    """The content of a checkpoint file, ``url`` being where it was just downloaded from."""
    if not path.is_file():
        raise TerraFMError(
            f"There is no checkpoint file {path}: correct `weights`, or use a name such as terrafm_base."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).split("\n")[0].split(". ")[0][:100] or type(error).__name__
        advice = "try again later" if url else "delete it and fetch or export it again"
        raise TerraFMError(
            f"The checkpoint {url or path} is damaged or not one ({reason}): {advice}."
        ) from error
    return content if isinstance(content, dict) else {}


def _read_url(url: str, progress: bool) -> dict[str, Any]:
    """The content of a URL's file in the torch hub cache, which a download enters only if it holds an encoder."""
    name = Path(urlparse(url).path).name
    target = Path(torch.hub.get_dir(), "checkpoints", name)
    if target.is_file():
        return _read(target)
    sha256 = torch.hub.HASH_REGEX.search(name)
    try:
        with atomic_write(target) as partial:
            torch.hub.download_url_to_file(url, str(partial), sha256[1] if sha256 else None, progress)
            content = _read(partial, url)
            find_encoder(content, url)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise TerraFMError(
            f"{url} could not be downloaded ({error}): put the file at {target}, or pass its path as "
            "`weights`."
        ) from error
    return content
