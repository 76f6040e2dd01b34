"""Encoder weights: registered ones, in the form of torchvision and TorchGeo, and those of files and URLs."""

import hashlib
import http.client
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener, url2pathname

import torch
from rich.console import Console
from torch import Tensor
from torchvision.models._api import Weights, WeightsEnum

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L2A
from terrafm_tg.transforms import Normalize
from terrafm_tg.transforms.statistics import Statistics, find_statistics
from terrafm_tg.utils.arguments import COUNT, checked
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.progress import count_units
from terrafm_tg.utils.tensor_files import TensorFileError, load_archive, load_tensors

from .sizes import SIZES, find_size
from .vit import TerraFMViT

#: A tensor that every TerraFM encoder has: its place in a checkpoint is the encoder's.
_ANCHOR = "patch_embed.conv2d_s1.weight"

#: Parts that a model may have and a checkpoint lack: they start fresh.
_FRESH = ("head.", "fc_norm.", "attn_pool.")

_MOST = 1 << 33  # bytes of a downloaded checkpoint: a whole one of `terrafm_large`, with its optimizer
_TIMEOUT = 60.0  # seconds without a byte after which to give up
_SLOWEST, _GRACE = 1000.0, 60.0  # bytes per second, after so many seconds

#: The published checkpoint of the base model.
PUBLISHED_URL = "https://huggingface.co/MBZUAI/TerraFM/resolve/main/TerraFM-B.pth"


@checked(size=COUNT)
def terrafm_transforms(
    modality: str | None = S2L2A.name,
    bands: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    size: int | None = 224,
) -> Normalize:
    """Makes the expected preprocessing, normalization without clipping and a resize.

    The arguments, and what is raised, are those of :class:`~terrafm_tg.transforms.Normalize`.
    """
    return Normalize(modality, bands, size)


class TerraFMWeights(WeightsEnum):
    """Weights of an encoder; this class, without members, is that of the sizes that have none.

    Members are equal where their values are one: the same weight by its two names.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TerraFMWeights) and self.value is other.value

    def __hash__(self) -> int:
        return hash(self.value.url)

    def get_state_dict(self, *args: Any, progress: bool = True, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the encoder's tensors by their published names, from the torch hub cache or the network.

        Args:
            args: As torchvision's, and without effect: only tensors are ever unpickled.
            progress: Whether a download shows a progress bar.
            kwargs: As ``args``.

        Raises:
            TerraFMError: If the file is neither cached nor to be had, or is damaged.
        """
        return load_encoder_state(self, progress=progress)[0]


class TerraFM_Base_Weights(TerraFMWeights):
    """TerraFM-B, pretrained on Sentinel-1 RTC and Sentinel-2 L1C and L2A.

    The file holds no fusion parameters: with it several modalities give their mean.
    """

    SENTINEL12_ALL_DINO = Weights(
        url=PUBLISHED_URL,
        transforms=terrafm_transforms,
        meta={
            "dataset": "Major-TOM Core",
            "model": "terrafm_base",
            "in_chans": len(S2L2A.bands),
            "modalities": tuple(MODALITIES),
            "bands": {name: modality.bands for name, modality in MODALITIES.items()},
            "publication": "https://arxiv.org/abs/2506.06281",
            "repo": "https://github.com/mbzuai-oryx/TerraFM",
            "license": "MIT",
            "ssl_method": "dino",
            "num_params": 112_951_296,
        },
    )


class ShortNames(TerraFMWeights):
    """The registered weights once more, named after their size alone."""

    terrafm_base = TerraFM_Base_Weights.SENTINEL12_ALL_DINO.value

    def __str__(self) -> str:
        return self.name


#: The registered weights of the sizes that have some.
WEIGHTS: dict[str, type[TerraFMWeights]] = {"terrafm_base": TerraFM_Base_Weights}


def registered_weights(size: str) -> TerraFMWeights:
    """Returns the first weight of a size.

    Raises:
        TerraFMError: If there is none.
    """
    if size not in WEIGHTS:
        raise TerraFMError(f"There are no published weights of {size}: pass your own file as `weights`, or pretrain.")
    return next(iter(WEIGHTS[size].__members__.values()))


@checked()
def load_encoder_state(
    source: WeightsEnum | str | os.PathLike[str],
    *,
    expected: str | None = None,
    progress: bool = True,
    option: str = "weights",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an encoder's tensors and what they say about the model.

    Takes the published file (flat, or wrapped under keys such as ``model``), a Lightning checkpoint of our
    pretraining (its teacher), an exported ``.ckpt`` or ``.safetensors``, and a checkpoint of TorchGeo's
    tasks. Only tensors and plain values are unpickled.

    Args:
        source: A registered weight or its name, a path, or a URL. A URL's file is kept in the torch hub cache
            and read from there, offline too.
        expected: The size that must be in it, such as ``terrafm_base``; its depth may be another.
        progress: Whether a download shows a progress bar.
        option: The setting that the source was given as, for messages.

    Returns:
        The state dict with the published names, on the CPU, and a dict of ``model`` (the size's name, None
        for an unusual width), ``embed_dim``, ``depth``, ``hyper_parameters`` (of the file; may be empty) and
        ``statistics`` (those that it was trained with; None for the published ones).

    Raises:
        TerraFMError: If there is no such file, it is damaged, or holds no TerraFM encoder or one of another
            size.
    """
    names = {str(weight): weight for enum in WEIGHTS.values() for weight in enum.__members__.values()}
    if expected is not None and expected not in SIZES:
        raise TerraFMError(f"`expected` is {expected!r}: give one of {', '.join(SIZES)}.")
    if source in SIZES:
        source = registered_weights(str(source))
    weight = source if isinstance(source, WeightsEnum) else names.get(os.fspath(source))
    if weight and expected not in (None, weight.meta["model"]):
        raise TerraFMError(f"{weight} is of {weight.meta['model']}, not of {expected}: build that model.")
    place = weight.url if weight else os.fspath(source)
    if (scheme := urlparse(place).scheme) in ("http", "https"):
        content = _read_url(place, progress, option)
    else:
        content = _read(Path(url2pathname(urlparse(place).path) if scheme == "file" else place), option)
    state = find_encoder(content, place)
    width = state["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    model = find_size(width, depth)
    if expected is not None and SIZES[expected]["embed_dim"] != width:
        raise TerraFMError(
            f"{place} holds {model or 'an encoder'} ({width} wide), not {expected}: build the size it was trained with."
        )
    settings = content.get("hyper_parameters")
    settings = dict(settings) if isinstance(settings, Mapping) else {}
    statistics = settings.pop("statistics", None)
    if not isinstance(statistics, Mapping | None):
        raise TerraFMError(f"{place} holds {str(statistics)[:80]!r} as its statistics: export it again.")
    meta = {"model": model, "embed_dim": width, "depth": depth, "hyper_parameters": settings}
    return state, meta | {"statistics": find_statistics(statistics)}


@checked()
def load_weights(
    model: TerraFMViT, state: Mapping[str, Tensor], source: str, statistics: Statistics | None = None
) -> None:
    """Puts an encoder's tensors into a model and checks that nothing was left out.

    Where the checkpoint has no fusion the model's own stays; a head of other classes is not taken.

    Args:
        model: Receives the tensors.
        state: From :func:`load_encoder_state`.
        source: What a message calls the checkpoint.
        statistics: Those that it was trained with where they are not the published ones: the model keeps them, and a
            warning says so.

    Raises:
        TerraFMError: If a tensor is missing, unknown, or of another shape.
    """
    model.statistics = find_statistics(statistics)
    if model.statistics is not None:
        warnings.warn(
            f"{source} was trained with statistics of its own for {', '.join(model.statistics)}: normalize its images "
            f"with them, by Normalize(..., statistics={source!r}) or `normalize: true` of a fine-tuning task.",
            UserWarning,
            stacklevel=2,
        )
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
    chosen = [prefix for prefix in prefixes if "teacher" in prefix.split(".")] or prefixes
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
            tensors, said = load_tensors(path)
            return {**tensors, "hyper_parameters": {"statistics": json.loads(said.get("statistics", "null"))}}
        content = load_archive(path)
    except (TensorFileError, OSError, json.JSONDecodeError) as error:
        text = str(error).replace(str(path), url or str(path))
        if url:
            text = re.sub("se another copy", "se the file of another server, or try again later", text)
        raise TerraFMError(f"`{option}`: {text}") from error
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
            _download(url, partial, sha256[1] if sha256 else "", Console(stderr=True, quiet=not progress))
            content = _read(partial, option, url)
            find_encoder(content, url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, TerraFMError):
            raise
        raise TerraFMError(
            f"{url} could not be downloaded ({error}): try again later, put the file at {target}, or pass its path as "
            f"`{option}`."
        ) from error
    return content


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https only, and from https to https only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith("https://" if req.type == "https" else ("http://", "https://")):
            raise OSError(f"it redirects to {newurl[:200]!r}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path, sha256: str, console: Console) -> None:
    """Downloads a file as it is, and no more than a checkpoint can have.

    Args:
        url: Of the file.
        path: Where it goes.
        sha256: First digits of its hash.
        console: Shows how far it is.

    Raises:
        OSError, ValueError, http.client.HTTPException: If it is not to be had, too large, too slow, or another.
    """
    request = Request(url, headers={"User-Agent": "terrafm-tg", "Accept-Encoding": "identity"})
    with build_opener(_Redirects).open(request, timeout=_TIMEOUT) as answer, path.open("wb") as out:
        size, came, begin, digest = int(answer.headers["Content-Length"] or 0), 0, time.monotonic(), hashlib.sha256()
        with count_units(Path(urlparse(url).path).name, size or None, console, in_bytes=True) as show:
            while chunk := answer.read1(1 << 20):
                came += len(chunk)
                if max(size, came) > _MOST:
                    raise OSError(f"it has more than {_MOST / 1e9:.1f} GB")
                if (lasted := time.monotonic() - begin) > _GRACE and came < _SLOWEST * lasted:
                    raise OSError(f"it comes at less than {_SLOWEST:g} bytes per second")
                digest.update(chunk)
                out.write(chunk)
                show(advance=len(chunk))
    if came < size:
        raise OSError(f"{came:,} of {size:,} bytes came")
    if not digest.hexdigest().startswith(sha256):
        raise OSError(f"its hash is {digest.hexdigest()}, expected {sha256}...")
