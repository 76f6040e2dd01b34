"""Embeddings: made once, kept whole, known by what they are made of."""

import os
from pathlib import Path

import pytest
import torch

from data.tiny_bench import TinyBench, tiny_data
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.evaluation.encoders.embeddings import Embedded, embedding_key, embeddings
from terrafm_tg.modalities import S2L2A


@pytest.fixture
def data(tmp_path: Path) -> TinyBench:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", {"s2l2a": S2L2A.bands}, count=7)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def encoder(data: TinyBench, **settings: object):
    return load_encoder(ModelSpec("pixel-statistics", **settings), data.task, data)


def same(one: Embedded, other: Embedded) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_and_workers_change_nothing(data: TinyBench) -> None:
    made = embeddings(encoder(data), data, batch_size=3)
    assert torch.equal(made.target, data.targets())
    assert same(made, embeddings(encoder(data), data, batch_size=7, num_workers=2))
    model = load_encoder(ModelSpec("terrafm_nano"), data.task, data)
    kept = embeddings(model, data, batch_size=3)
    with torch.inference_mode():
        alone = model.embed({"image_s2l2a": data[4]["image_s2l2a"][None]})
    for pooling in ("token", "mean"):
        torch.testing.assert_close(kept.pooled(pooling)[4:5], alone[pooling], rtol=1e-3, atol=1e-4)


def test_a_second_run_reads_no_image(data: TinyBench, cache: Path) -> None:
    model = encoder(data)
    made = embeddings(model, data, cache=cache)
    (file,) = cache.iterdir()
    key = embedding_key(model, data)  # of the files as they were
    for path in data.files:
        os.truncate(path, 0)
    assert same(embeddings(model, data, cache=cache), made)
    assert file.name == f"{key}.safetensors"
    file.unlink()
    with pytest.raises(TerraFMError, match="cannot be read"):
        embeddings(model, data, cache=cache)
    assert not list(cache.iterdir())


def test_other_weights_settings_or_data_have_another_key(data: TinyBench, tmp_path: Path) -> None:
    def key(model: str = "terrafm_nano", own: TinyBench = data, **settings: object) -> str:
        return embedding_key(load_encoder(ModelSpec(model, **settings), own.task, own), own)

    (tmp_path / "more").mkdir()
    more = tiny_data(tmp_path / "more", {"s2l2a": S2L2A.bands}, count=8)
    keys = [key(), key(seed=1), key(size=16), key(own=more), key("pixel-statistics")]
    assert len(set(keys)) == len(keys)
    assert key(pooling="mean") == keys[0]  # one forward gives both


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_a_damaged_file_is_made_again(data: TinyBench, cache: Path, damage: str) -> None:
    made = embeddings(encoder(data), data, cache=cache)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"nothing of the kind")
    with pytest.warns(UserWarning, match="are damaged .*: they are computed again"):
        again = embeddings(encoder(data), data, cache=cache)
    assert same(made, again)
    assert file.read_bytes() == content


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_sentence(data: TinyBench, workers: int) -> None:
    os.truncate(data.files[5], 100)
    with pytest.raises(TerraFMError) as caught:
        embeddings(encoder(data), data, num_workers=workers)
    message = str(caught.value)
    assert message.startswith(f"{data.files[5]} cannot be read (")
    assert "\n" not in message


def test_nothing_to_embed(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2L2A.bands}, count=1)
    model = encoder(data)
    data.target = data.target[:0]
    with pytest.raises(TerraFMError, match="The train split of tiny-multiclass is empty"):
        embeddings(model, data)
