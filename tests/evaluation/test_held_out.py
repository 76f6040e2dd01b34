"""Evaluation of encoders on a datamodule's bank and queries."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation import BASELINE, FUSED, evaluate_held_out
from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.models import build_encoder
from terrafm_tg.models.embedding import embed_sensors
from terrafm_tg.transforms import SensorBatch


def _tiles(first: int, count: int) -> list[dict[str, Tensor]]:
    """Batches of 4 flat tiles of 24 px; land cover decides the level of a band; every fourth lacks S1."""
    generator = torch.Generator().manual_seed(first)
    batches = []
    for start in range(first, first + count, 4):
        row = torch.arange(start, start + 4)
        land_cover = row % 5
        batch = {"row": row, "land_cover": land_cover, "position": torch.full((4,), -1), "epoch": torch.zeros(4)}
        for m in MODALITIES.values():
            at = torch.arange(1, 4) if m.name == "s1rtc" else torch.arange(4)
            batch[f"sample_idx_{m.name}"] = at
            for resolution, bands in m.native.items():
                side = 24 * 10 // resolution
                level = torch.rand(5, len(bands), generator=torch.Generator().manual_seed(resolution))[land_cover[at]]
                noise = 1 + 0.2 * torch.rand(len(at), len(bands), side, side, generator=generator)
                x = (0.05 + level[..., None, None]) * noise
                batch[m.native_key(resolution)] = x / 5 if m.unit == "dB" else (2000 * x).to(torch.uint16)
        batches.append(batch)
    return batches


class Tiles(LightningDataModule):
    def __init__(self, held_out: bool = True) -> None:
        super().__init__()
        self.held_out = held_out

    def val_dataloader(self) -> list[DataLoader]:
        sides = [_tiles(0, 60), _tiles(1000, 40)] if self.held_out else []
        return [DataLoader(batches, batch_size=None) for batches in sides]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", depth=2)


def test_table_of_encoders_and_baseline(encoder: nn.Module):
    frame = evaluate_held_out({"one": encoder, "same": encoder}, Tiles(), size=32, progress=False)
    assert list(frame.encoder.unique()) == ["one", "same", BASELINE]
    one, same = (
        frame[frame.encoder == name].drop(columns="encoder").reset_index(drop=True) for name in ("one", "same")
    )
    assert one.equals(same), "evaluation is deterministic"
    assert len(one) == 2 * 4 + 2 * 6 + 6
    counts = one[(one.task == KNN) & (one.metric == "accuracy")].set_index("bank")
    assert counts.n_bank.to_dict() == {"s1rtc": 45, "s2l1c": 60, "s2l2a": 60, FUSED: 60}
    assert counts.n_query.to_dict() == {"s1rtc": 30, "s2l1c": 40, "s2l2a": 40, FUSED: 40}
    assert (counts.score > counts.chance + 0.3).all(), "flat tiles of five kinds are easy"
    retrieval = one[one.task == RETRIEVAL].set_index(["query", "bank"])
    assert retrieval.n_query[("s2l2a", "s1rtc")] == 30
    assert retrieval.chance[("s2l2a", "s1rtc")] == pytest.approx(10 / 30)
    baseline = frame[frame.encoder == BASELINE]
    assert (baseline[baseline.task == KNN].score > 0.9).all()
    pairs = baseline[baseline.task == CROSS_SENSOR]
    assert set(zip(pairs.bank, pairs["query"], strict=True)) == {("s2l1c", "s2l2a"), ("s2l2a", "s2l1c")}


def test_chosen_sensors(encoder: nn.Module):
    frame = evaluate_held_out({"one": encoder}, Tiles(), 32, ["s2l2a"], progress=False)
    assert set(frame.bank) == set(frame["query"]) == {"s2l2a"}
    assert set(frame.encoder) == {"one", BASELINE}


class Gap(nn.Module):
    """An encoder that moves each sensor's embeddings far aside."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, modality: str | None = None, **places: Tensor) -> Tensor:
        embeddings = self.encoder(x, modality=modality, **places)
        return embeddings + 100 * torch.eye(embeddings.shape[1])[[*MODALITIES, None].index(modality)]


def test_centering_removes_a_gap_between_sensors(encoder: nn.Module):
    encoders = {"one": encoder, "gap": Gap(encoder)}
    plain, centred = (
        evaluate_held_out(encoders, Tiles(), 32, centered=flag, progress=False).set_index("encoder").score
        for flag in (False, True)
    )
    assert (plain["gap"].to_numpy() - plain["one"].to_numpy()).any()
    assert centred["gap"].to_numpy() == pytest.approx(centred["one"].to_numpy(), abs=0.06)


def test_own_statistics_reach_the_images(encoder: nn.Module):
    published = {m.name: {"mean": list(m.mean), "std": list(m.std)} for m in MODALITIES.values()}
    own = {name: {"mean": x["mean"], "std": [2 * std for std in x["std"]]} for name, x in published.items()}
    plain, same, other = (
        evaluate_held_out({"one": encoder}, Tiles(), 32, statistics=statistics, progress=False)
        for statistics in (None, published, own)
    )
    assert plain.equals(same)
    changed = (plain.score - other.score).ne(0).groupby(plain.encoder).any()
    assert changed.to_dict() == {"one": True, BASELINE: False}


def test_bfloat16_is_close(encoder: nn.Module):
    plain, half = (
        evaluate_held_out({"one": encoder}, Tiles(), 32, autocast=flag, progress=False).score for flag in (False, True)
    )
    assert (plain - half).abs().mean() < 0.05


def test_fused_takes_what_each_tile_has(encoder: nn.Module):
    torch.manual_seed(0)
    encoder.eval()
    x = {"s1rtc": torch.rand(2, 2, 32, 32), "s2l2a": torch.rand(2, 12, 32, 32)}
    views = SensorBatch(x, {"s1rtc": torch.tensor([0, 3]), "s2l2a": torch.tensor([3, 1])}, 5)
    with torch.inference_mode():
        embeddings, idx = embed_sensors(encoder, views)
        both = encoder({"s1rtc": x["s1rtc"][1:], "s2l2a": x["s2l2a"][:1]})
    assert idx[FUSED].tolist() == [0, 1, 3], "the tiles that have any of the sensors"
    torch.testing.assert_close(embeddings[FUSED][0], embeddings["s1rtc"][0])
    torch.testing.assert_close(embeddings[FUSED][1], embeddings["s2l2a"][1])
    torch.testing.assert_close(embeddings[FUSED][2:], both)
    with torch.inference_mode():  # a sensor alone
        embeddings, idx = embed_sensors(encoder, SensorBatch({"s1rtc": x["s1rtc"]}, {"s1rtc": torch.arange(2)}, 2))
    assert torch.equal(embeddings[FUSED], embeddings["s1rtc"])
    assert torch.equal(idx[FUSED], idx["s1rtc"])


def test_nothing_held_out_is_said(encoder: nn.Module):
    with pytest.raises(TerraFMError, match="hold tiles out by `val_share`"):
        evaluate_held_out({"one": encoder}, Tiles(held_out=False), 32, progress=False)
