"""Damaged tiles: replaced alike in every run, named once, too many end the run."""

import logging

import numpy as np
import pytest
import torch
from memory_tiles import Changed, MemoryTiles, make_index, square

from terrafm_tg.datamodules import DamageLog, FaultTolerant, TileDataLoader
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler

DAMAGED = (5, 17, 40)


def loader(damaged=DAMAGED, workers=0, share=0.2, **options) -> TileDataLoader:
    tiles = MemoryTiles(make_index(*square(4)), damaged)
    sampler = LandCoverSampler(tiles, power=1, seed=2, **options)
    return TileDataLoader(
        FaultTolerant(tiles, sampler), DamageLog(share), sampler=sampler, batch_size=8, num_workers=workers
    )


def epoch(batches: TileDataLoader) -> dict[str, np.ndarray]:
    collected = list(batches)
    assert all(isinstance(value, torch.Tensor) for batch in collected for value in batch.values())
    keys = ("position", "row", "damaged", "land_cover")
    return {key: torch.cat([batch[key] for batch in collected]).numpy() for key in keys}


def test_each_damaged_tile_costs_its_sample_only(caplog) -> None:
    batches = loader()
    seen = epoch(batches)
    drawn = batches.sampler.global_rows()
    np.testing.assert_array_equal(seen["position"], np.arange(64))
    replaced = np.isin(drawn, DAMAGED)
    np.testing.assert_array_equal(seen["damaged"], np.where(replaced, drawn, -1))
    np.testing.assert_array_equal(seen["row"][~replaced], drawn[~replaced])
    assert not np.isin(seen["row"], DAMAGED).any()
    assert batches.damage.seen == 64
    assert batches.damage.damaged == replaced.sum() == 3
    # By name, with the reason, once: also after a second epoch.
    epoch(batches)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    names = sorted(batches.dataset.dataset.name(row) for row in DAMAGED)
    assert sorted(message.split()[1] for message in messages) == names
    assert all("the file is truncated" in message for message in messages)


def test_replacements_depend_on_the_draw_alone() -> None:
    one, two, other = epoch(loader()), epoch(loader(workers=2)), loader()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])
    parts = [epoch(loader(rank=rank, world_size=2)) for rank in (0, 1)]
    order = np.argsort(np.concatenate([part["position"] for part in parts]))
    np.testing.assert_array_equal(np.concatenate([part["row"] for part in parts])[order], one["row"])
    # Another epoch, another replacement.
    row = {}
    for number in range(12):
        other.sampler.set_epoch(number)
        seen = epoch(other)
        row[number] = seen["row"][seen["damaged"] == 5].tolist()
    assert len({tuple(rows) for rows in row.values()}) > 5


def test_replacements_stay_among_the_samplers_rows() -> None:
    rows = np.arange(0, 20)
    seen = epoch(loader(damaged=range(2, 12), rows=rows, share=1))
    assert np.isin(seen["row"], rows).all()
    np.testing.assert_array_equal(np.sort(seen["damaged"])[-10:], np.arange(2, 12))


def test_a_few_never_end_it_and_none_is_strict() -> None:
    epoch(loader(share=0.001))
    with pytest.raises(TerraFMError, match="`max_damaged_share` is 0"):
        epoch(loader(share=0))
    with pytest.raises(TerraFMError, match="`max_share` is 2: it must be from 0 and up to 1"):
        DamageLog(2)


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (range(0, 64, 4), r"^1\d of \d\d samples were damaged, and `max_damaged_share` is 0.05:.*$"),
        (range(64), "Nor can 10 tiles drawn in its place"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_run(workers, damaged, words) -> None:
    with pytest.raises(TerraFMError, match=words) as error:
        epoch(loader(damaged=damaged, workers=workers, share=0.05))
    assert "Traceback" not in str(error.value)


def ambiguous(name: str, pixels: np.ndarray) -> np.ndarray:
    """Finds a wrong setting only when it reads."""
    raise TerraFMError("Set `ambiguous_offset`.")


@pytest.mark.parametrize(
    ("change", "words"), [(ambiguous, "Set `ambiguous_offset`"), (lambda name, x: x[..., :2], "differs in size")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_arrive_as_one_sentence(change, words, workers) -> None:
    tiles = Changed(make_index(*square(4)), change)
    sampler = LandCoverSampler(tiles)
    batches = TileDataLoader(FaultTolerant(tiles, sampler), sampler=sampler, batch_size=8, num_workers=workers)
    with pytest.raises(TerraFMError, match=words) as error:
        list(batches)
    assert "Traceback" not in str(error.value)
