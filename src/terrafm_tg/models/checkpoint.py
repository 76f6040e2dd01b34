"""Encoder weights from files and URLs, into a model."""

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write

from .sizes import SIZES, find_size
from .vit import TerraFMViT

#: A tensor that every TerraFM encoder has: its place in a checkpoint is the encoder's.
_ANCHOR = "patch_embed.conv2d_s1.weight"

#: Parts that a model may have and a checkpoint lack: they start fresh.
_FRESH = ("head.", "fc_norm.", "attn_pool.")


def read_encoder(
    source: str, expected: str | None = None, progress: bool = True, option: str = "weights"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an encoder from a file or a URL; see :func:`~terrafm_tg.models.load_encoder_state`.

    Args:
        source: A path, or a URL.
        expected: The size that must be in it.
        progress: Whether a download shows a progress bar.
        option: The setting that the source was given as, for messages.

    Returns:
        The tensors, and ``model``, ``embed_dim``, ``depth`` and ``hyper_parameters``.

    Raises:
        TerraFMError: If there is no such file, it is damaged, or holds no TerraFM encoder or one of another
            size.
    """
    remote = urlparse(source).scheme in ("http", "https", "file")
    content = _read_url(source, progress, option) if remote else _read(Path(source), option)
    state = find_encoder(content, source)
    width = state["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    model = find_size(width, depth)
    if expected is not None and SIZES[expected]["embed_dim"] != width:
        raise TerraFMError(
            f"{source} holds {model or 'an encoder'} ({width} wide), not {expected}: build the size it was "
            "trained with."
        )
    hyper_parameters = content.get("hyper_parameters")
    return state, {
        "model": model,
        "embed_dim": width,
        "depth": depth,
        "hyper_parameters": dict(hyper_parameters) if isinstance(hyper_parameters, Mapping) else {},
    }


def load_weights(model: TerraFMViT, state: Mapping[str, Tensor], source: str) -> None:
    """Puts an encoder's tensors into a model and checks that nothing was left out.

    Where the checkpoint has no fusion the model's own stays; a head of other classes is not taken.

    Args:
        model: Receives the tensors.
        state: From :func:`read_encoder`.
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
        raise TerraFMError(f"{source} does not fit the model ({reason}): build it as it was trained.") from error
    missing = [name for name in missing if not name.startswith(_FRESH)]
    if missing or unexpected:
        raise TerraFMError(
            f"{source} does not fit the model (missing: {', '.join(missing[:3]) or 'nothing'}; unknown: "
            f"{', '.join(unexpected[:3]) or 'nothing'}): build it as it was trained."
        )


def find_encoder(content: object, source: str) -> dict[str, Tensor]:
    """Finds the encoder's tensors, wherever they are nested, and names them as published; the teacher's of several.

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


def _read(path: Path, option: str, url: str | None = None) -> dict[str, Any]:
    """The content of a checkpoint file, ``url`` being where it was just downloaded from."""
    if not path.is_file():
        raise TerraFMError(
            f"There is no checkpoint file {path}: correct `{option}`, or use a name such as terrafm_base."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes the readers of zips and pickles raise whatever they stumble over
        reason = str(error).split("\n")[0].split(". ")[0][:100] or type(error).__name__
        advice = "try again later" if url else f"give a whole one as `{option}`, fetched or exported again"
        raise TerraFMError(f"The checkpoint {url or path} is damaged or not one ({reason}): {advice}.") from error
    return content if isinstance(content, dict) else {}


def _read_url(url: str, progress: bool, option: str) -> dict[str, Any]:
    """The content of a URL's file in the torch hub cache, which a download enters only if it holds an encoder."""
    name = Path(urlparse(url).path).name
    target = Path(torch.hub.get_dir(), "checkpoints", name)
    if target.is_file():
        return _read(target, option)
    sha256 = torch.hub.HASH_REGEX.search(name)
    try:
        with atomic_write(target) as partial:
            torch.hub.download_url_to_file(url, str(partial), sha256[1] if sha256 else None, progress)
            content = _read(partial, option, url)
            find_encoder(content, url)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise TerraFMError(
            f"{url} could not be downloaded ({error}): put the file at {target}, or pass its path as `{option}`."
        ) from error
    return content
