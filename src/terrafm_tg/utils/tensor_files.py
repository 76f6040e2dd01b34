"""Files of tensors: written with a digest, verified when read, and said truly what they are where they are none."""

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from terrafm_tg.errors import TerraFMError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # torch's format before 1.6, which has no checksum
#: A member beside torch's own, with a digest of all: their own checksums do not tell when two change places.
_DIGEST = "terrafm.sha256"
_GLOBAL = re.compile(r"GLOBAL (\S+)")
#: First bytes of what people have in the place of a checkpoint, and what to do.
_OTHERS = {
    rb"version https://git-lfs": "a pointer of Git LFS, not the file itself: run `git lfs pull` there",
    rb"\s*<(!doctype|html|\?xml)": "a web page, not the file itself: download the file behind its link",
    rb"\s*[{\[]": "JSON, not tensors: give the file of the weights",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf": "a compressed archive: unpack it first",
    rb"$": "empty: get it again",
}


class TensorFileError(TerraFMError):
    """A file of tensors that is damaged, or is none; the message says what it is."""


def save_archive(content: Any, path: str | PathLike[str]) -> None:
    """Saves as ``torch.save`` does, with a digest of all members."""
    with open(path, "wb") as file:  # by a path, its name would be in the archive
        torch.save(content, file)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(f"archive/{_DIGEST}"), _digest_of(archive))  # without the time of day


def load_archive(path: str | PathLike[str], map_location: Any = "cpu", weights_only: bool = True) -> Any:
    """Loads what ``torch.save`` wrote, after its bytes were verified.

    Args:
        path: The file.
        map_location: As ``torch.load`` takes it.
        weights_only: Read tensors and plain values only; False runs code that the file holds.

    Raises:
        TensorFileError: If the file is damaged, is none, or holds more than tensors and plain values.
        OSError: If it cannot be opened.
    """
    verify_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # holds the settings in DINO's own checkpoints
            return torch.load(path, map_location=map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        kind = _GLOBAL.search(str(error))
        if kind is None:
            raise TensorFileError(f"{path} is damaged ({_first_line(error)}): use another copy.") from error
        raise TensorFileError(
            f"{path} was not read, because it holds a `{kind[1]}` and only tensors and plain values are taken from a "
            "file: save its tensors again, alone."
        ) from error
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise whatever they stumble over
        raise TensorFileError(f"{path} is damaged ({_first_line(error)}): use another copy.") from error


def save_tensors(tensors: Mapping[str, Tensor], path: str | PathLike[str], metadata: Mapping[str, str]) -> None:
    """Writes safetensors with a digest of names, types, shapes, values and metadata in its metadata."""
    save_file(dict(tensors), path, metadata=dict(metadata) | {"sha256": _digest(tensors, metadata)})


def load_tensors(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads safetensors, and verifies the digest of :func:`save_tensors`, which files of others lack.

    Returns:
        The tensors on the CPU, and the metadata.

    Raises:
        TensorFileError: If the file is damaged, or is none.
        OSError: If it cannot be opened.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TensorFileError(_other(path) or f"{path} is damaged ({_first_line(error)}): use another copy.") from error
    digest = metadata.pop("sha256", None)
    if digest != _digest(tensors, metadata) and (digest or {"model", "depth"} & metadata.keys()):
        raise TensorFileError(f"{path} is damaged: its digest is not that of its tensors. Use another copy.")
    return tensors, metadata


def read_metadata_of(path: str | PathLike[str]) -> dict[str, str]:
    """Reads the metadata of safetensors, without the tensors.

    Raises:
        TensorFileError: If the file is none.
        OSError: If it cannot be opened.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise TensorFileError(_other(path) or f"{path} is damaged ({_first_line(error)}): use another copy.") from error


def verify_archive(path: str | PathLike[str]) -> None:
    """Compares the checksum of every member of a zip archive, and the digest of all where there is one.

    Raises:
        TensorFileError: If one is wrong, or the file is none that torch saved.
        OSError: If it cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:1] == _PICKLE:
        return
    if head != _ZIP:
        raise TensorFileError(_other(path) or f"{path} is no file that torch saved: use another.")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            held = [member for member in archive.infolist() if member.filename.endswith(f"/{_DIGEST}")]
            right = not held or (held[0].file_size < 99 and archive.read(held[0]).decode() == _digest_of(archive))
    except Exception as error:  # the errors of seeking and of decompressing, too
        raise TensorFileError(f"{path} is damaged ({_first_line(error)}): use another copy.") from error
    if bad or not right:
        where = f"the checksum of {bad} in it" if bad else "the digest of its members"
        raise TensorFileError(f"{path} is damaged: {where} is wrong. Use another copy.")


def _digest_of(archive: zipfile.ZipFile) -> str:
    members = sorted((m.filename, m.CRC, m.file_size) for m in archive.infolist() if not m.filename.endswith(_DIGEST))
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _other(path: str | PathLike[str]) -> str | None:
    """Says what a file is that is no file of tensors, where its first bytes tell."""
    with open(path, "rb") as file:
        head = file.read(200)
    return next((f"{path} is {what}." for start, what in _OTHERS.items() if re.match(start, head, re.IGNORECASE)), None)


def _first_line(error: Exception) -> str:
    """Returns the first sentence of a library's message."""
    return re.split(r"\n|\. ", str(error))[0][:120].rstrip(".") or type(error).__name__
