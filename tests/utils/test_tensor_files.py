"""Files of tensors: any damage is found and said in one sentence, and what is none is called what it is."""

import argparse
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from terrafm_tg.callbacks import AtomicCheckpointIO
from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import load_encoder_state
from terrafm_tg.utils.tensor_files import TensorFileError, load_archive, load_tensors, save_archive, save_tensors

TENSORS = {f"layer.{i}.weight": torch.arange(3000.0) * (i + 1) for i in range(4)}
WRITERS = {
    "last.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint(
        {"state_dict": TENSORS, "hyper_parameters": {"model": "x"}, "epoch": 3}, path
    ),
    "exported.ckpt": lambda path: save_archive({"state_dict": TENSORS}, path),
    "exported.safetensors": lambda path: save_tensors(TENSORS, path, {"model": "x", "depth": "1"}),
}


def load(path: Path) -> dict[str, Tensor]:
    return load_tensors(path)[0] if path.suffix == ".safetensors" else load_archive(path)["state_dict"]


def swap_members(path: Path) -> None:
    """Exchanges two tensors of an archive, each with its right checksum."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    first, second = sorted(name for name in members if "/data/" in name)[:2]
    members[first], members[second] = members[second], members[first]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def damage(path: Path, chance: random.Random) -> str:
    """Does one thing to a file that happens to files."""
    content, size = bytearray(path.read_bytes()), path.stat().st_size
    kind, at = chance.choice(["bit", "zeros", "cut", "garbage", "moved"]), chance.randrange(size)
    if kind == "bit":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "zeros":
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
    elif kind == "cut":
        del content[at:]
    elif kind == "garbage":
        content[at : at + 64] = chance.randbytes(len(content[at : at + 64]))
    else:
        other = chance.randrange(size)
        content[at : at + 512], content[other : other + 512] = content[other : other + 512], content[at : at + 512]
    path.write_bytes(content)
    return f"{kind} at {at} of {size}"


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", WRITERS)
def test_damage_never_loads_as_other_weights(name: str, count: int, tmp_path: Path) -> None:
    """What still loads, because the damage met bytes that mean nothing, loads the very tensors."""
    chance, whole, said = random.Random(count), tmp_path / f"whole-{name}", list[str]()
    WRITERS[name](whole)
    for _ in range(count):
        path = Path(shutil.copy(whole, tmp_path / name))
        what = damage(path, chance)
        if path.read_bytes() == whole.read_bytes():
            continue
        try:
            loaded = load(path)
        except TensorFileError as error:
            said.append(str(error))
        else:
            assert loaded.keys() == TENSORS.keys(), what
            assert all(torch.equal(loaded[key], TENSORS[key]) for key in TENSORS), what
    assert len(said) > 0.8 * count
    assert not any("\n" in message or "delete" in message for message in said)


def test_tensors_that_changed_places_are_found(tmp_path: Path) -> None:
    WRITERS["last.ckpt"](tmp_path / "last.ckpt")
    swap_members(tmp_path / "last.ckpt")
    with pytest.raises(TerraFMError, match="is damaged: the digest of its members is wrong"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    torch.save({"state_dict": TENSORS}, tmp_path / "others.ckpt")
    assert load(tmp_path / "others.ckpt").keys() == TENSORS.keys()  # without a digest, as of other projects


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("last.ckpt", "exported.ckpt"):  # safetensors orders its metadata by chance
        WRITERS[name](tmp_path / name)
        first = (tmp_path / name).read_bytes()
        WRITERS[name](tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"M", "no file that torch saved|is damaged"),
        (b"", "is empty"),
        (b"# The paper's base recipe\nseed_everything: 0\n", "no file that torch saved|is damaged"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a pointer of Git LFS"),
        (b'{"message": "Not Found"}', "is JSON"),
        (b"\x1f\x8b\x08\x00", "is a compressed archive"),
        (b"PK\x03\x04 and no more", "is damaged"),
        (b"\x80\x02}q\x00X\x04\x00\x00\x00", "is damaged"),
    ],
)
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, said: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_bytes(content)
    for read in (load_encoder_state, AtomicCheckpointIO().load_checkpoint)[: 2 if ending == "ckpt" else 1]:
        with pytest.raises(TerraFMError, match=said) as told:
            read(path)
        assert "\n" not in str(told.value)
        assert "delete" not in str(told.value)


def test_more_than_tensors_is_said_with_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "numpy.ckpt"
    torch.save({"state_dict": TENSORS, "best": np.float64(0.5)}, path)
    for read in (load_encoder_state, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(TerraFMError, match=r"holds a `numpy.*scalar` and only tensors and plain values"):
            read(path)


def test_a_checkpoint_of_dino_itself(tmp_path: Path) -> None:
    """Student and teacher as its own script writes them, with the arguments of its command line."""
    small = {"patch_embed.conv2d_s1.weight": torch.zeros(6, 2, 2, 2), "cls_token": torch.zeros(1, 1, 2)}
    student = {f"module.backbone.{name}": tensor + 1 for name, tensor in small.items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in small.items()}
    args = argparse.Namespace(arch="vit_base", lr=0.1)
    torch.save({"student": student, "teacher": teacher, "args": args, "epoch": 3}, tmp_path / "checkpoint.pth")
    state, _ = load_encoder_state(tmp_path / "checkpoint.pth")
    assert all(torch.equal(state[name], tensor) for name, tensor in small.items())


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    """Its metadata would be unpickled, which can run code."""
    (tmp_path / ".metadata").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(TerraFMError, match="is a folder, and checkpoints are single files"):
        AtomicCheckpointIO().load_checkpoint(tmp_path)
