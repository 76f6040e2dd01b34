"""Batches through the ring: the same as without it, for any number of workers; nothing is left behind."""

import gc
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_tiles import Changed, MemoryTiles, make_index, square
from torch import Tensor
from torch.utils.data import get_worker_info

from processes import start
from terrafm_tg.datamodules import CachedTiles, DamageLog, FaultTolerant, TileDataLoader
from terrafm_tg.datamodules.loading.faults import collate
from terrafm_tg.datamodules.loading.loader import largest_sample
from terrafm_tg.datamodules.loading.ring import AVAILABLE, Pool, Ring, SlotBatch, SlotWriter
from terrafm_tg.errors import TerraFMError
from terrafm_tg.samplers import LandCoverSampler

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no memfd on this system: batches come without a ring")
DAMAGED = (5, 17, 40, 41)
INDEX = make_index(*square(4))


class InPlace(MemoryTiles):
    """Decodes into given arrays, as a packed store does; ``elsewhere`` counts what it decoded into others."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.elsewhere = torch.zeros(len(self), 2, dtype=torch.int32).share_memory_()

    def _read(self, row, modality):
        self.elsewhere[row, self.modalities.index(modality)] += 1
        return super()._read(row, modality)

    def _read_into(self, row, modality, out):
        for resolution, group in super()._read(row, modality).items():
            out[resolution][...] = group
        return True


def make(tiles=None, workers=0, rows=None, shuffle=True, **options) -> TileDataLoader:
    tiles = MemoryTiles(INDEX, DAMAGED) if tiles is None else tiles
    sampler = LandCoverSampler(tiles, rows, power=0, ocean_keep=1, seed=2, shuffle=shuffle)
    given = {"batch_size": 7, "num_workers": workers, **options}
    return TileDataLoader(FaultTolerant(tiles, sampler), DamageLog(1.0), sampler=sampler, **given)


def epochs(batches: TileDataLoader, count: int = 2) -> list[dict[str, Tensor]]:
    read = []
    for epoch in range(count):
        batches.sampler.set_epoch(epoch)
        read += list(batches)
    return read


def in_fours(tiles, rows, ring=None) -> list[dict[str, Tensor]]:
    """Batches of four tiles, read here in this process: through a ring as a worker does, or in the ordinary way."""
    samples = make(tiles).dataset
    samples.slots = ring and SlotWriter(ring, 0, 4)
    batches = []
    for chunk in np.array_split(rows, len(rows) // 4):
        batch = collate(samples.__getitems__([int(row) for row in chunk]))
        batches.append(DamageLog(1.0).check(batch.copy() if isinstance(batch, SlotBatch) else batch))
    return batches


def assert_same_through_slots(tiles, rows) -> None:
    assert_same(in_fours(tiles, rows, Ring(1, 2, 4 * largest_sample(tiles))), in_fours(tiles, rows))


def assert_same(batches: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert batch[key].dtype == other[key].dtype, key
            assert torch.equal(batch[key], other[key]), key


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Tensor]]:
    """Two epochs of batches read in this process."""
    return epochs(make())


@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_same_batches_for_any_number_of_workers(plain, workers, ring) -> None:
    """Bit for bit and in order: with damaged tiles, tiles without radar, and a last batch that is smaller."""
    assert len(plain[0]["sample_idx_s1rtc"]) < len(plain[0]["row"])
    assert len(plain[9]["row"]) == 64 % 7
    batches = make(workers=workers, ring=ring)
    assert_same(epochs(batches), plain)
    assert batches.damage.damaged == 2 * len(DAMAGED)
    assert len(batches.damage.names) == len(DAMAGED)


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.soak), "forkserver"])
def test_workers_that_are_not_forked(plain, method) -> None:
    batches = make(workers=2, persistent_workers=True, prefetch_factor=1, multiprocessing_context=method)
    assert_same(epochs(batches), plain)


@pytest.mark.parametrize("persistent", [True, False])
def test_decoded_where_it_travels(plain, persistent) -> None:
    """All but a worker's first tile of each modality, which tells the size."""
    tiles = InPlace(INDEX, DAMAGED)
    batches = make(tiles, 2, persistent_workers=persistent)
    assert_same(epochs(batches), plain)
    intact = tiles.elsewhere.clone()
    intact[list(DAMAGED)] = 0  # what cannot be decoded may have been the first
    assert intact.sum() == 2 * 2 * (1 if persistent else 2)


@pytest.mark.parametrize("persistent", [True, False])
def test_epochs_that_are_left_early(plain, persistent) -> None:
    batches = make(workers=2, persistent_workers=persistent)
    for taken in (1, 3):
        assert_same([batch for batch, _ in zip(batches, range(taken), strict=False)], plain[:taken])
    assert_same(epochs(batches), plain)


def test_two_iterators_at_once_have_a_ring_each(plain) -> None:
    batches = make(workers=1)
    pairs = list(zip(batches, batches, strict=True))
    assert_same([one for one, _ in pairs], plain[:10])
    assert_same([other for _, other in pairs], plain[:10])


def test_tiles_of_another_size_or_type_than_those_before_travel_in_memory_of_their_own() -> None:
    smaller = Changed(INDEX, lambda name, x: x[:, :2, :2])
    steps = Changed(INDEX, lambda name, x: x.astype(np.int16) if name == "s1rtc" else x)
    for tiles, what in ((smaller, "size"), (steps, "type")):
        assert_same_through_slots(tiles, np.arange(64))
        with pytest.raises(TerraFMError, match=f"differs in {what} within a batch"):
            in_fours(tiles, np.array([4, 5, 40, 41]), Ring(1, 2, 4 * largest_sample(tiles)))
    larger = Changed(INDEX, lambda name, x: x.repeat(300, 1).repeat(9, 2))
    assert_same_through_slots(larger, np.arange(56, 64))  # than the slot


def test_transformed_and_ten_metre_samples() -> None:
    def change(sample):
        """In place, and to a view on the same memory in another order."""
        for key, x in sample.items():
            if key.startswith("image"):
                x.numpy()[..., 0] = 9
                sample[key] = x.mT
        return sample

    tiles = InPlace(INDEX)
    tiles.transforms = change
    assert_same_through_slots(tiles, np.arange(16))
    tiles = MemoryTiles(INDEX)
    tiles.native = False
    assert_same_through_slots(tiles, np.arange(16))


def test_cached_tiles_are_decoded_once(plain) -> None:
    tiles = MemoryTiles(INDEX, DAMAGED)
    cached = CachedTiles(tiles)
    tiles.reads[:] = 0
    batches = make(cached, 2, persistent_workers=True, multiprocessing_context="fork")
    assert_same(epochs(batches), plain)
    batches.sampler.set_epoch(0)
    tiles.reads[:] = 0
    assert_same(list(batches), plain[:10])  # by now all come from the cache
    assert not np.delete(tiles.reads, DAMAGED, axis=0).any()


def test_batches_keep_their_own_memory_and_give_it_back() -> None:
    pool = Pool()
    first, second = pool.take("a", 100), pool.take("a", 100)
    assert first.data_ptr() != second.data_ptr()
    place, view = first.data_ptr(), first.view(torch.int16)[3:].numpy()
    del first
    assert pool.take("a", 100).data_ptr() != place  # a view of it is still held
    del view
    assert pool.take("a", 40).data_ptr() == place
    assert pool.take("b", 40).data_ptr() != place
    held = [pool.take("c", 8) for _ in range(9)]
    del held
    assert len(pool._free["c"]) == 2


def test_users_own_function_runs_in_each_worker(plain) -> None:
    began = torch.zeros(3, dtype=torch.int32).share_memory_()

    def begin(worker: int) -> None:
        began[worker] += 1 + 10 * (get_worker_info().dataset.slots is not None)

    batches = make(workers=2, worker_init_fn=begin)
    assert_same(epochs(batches), plain)
    assert began.tolist() == [22, 22, 0]
    assert batches.worker_init_fn is begin


def test_memory_is_taken_where_written_and_given_back() -> None:
    """A ring for 16 workers with large batches costs nothing before use; descriptors do not add up."""
    ring = Ring(16, 3, 1 << 30)
    assert os.fstat(ring._descriptor).st_size == 48 << 30
    assert os.fstat(ring._descriptor).st_blocks == 0
    assert os.readlink(f"/proc/self/fd/{ring._descriptor}").startswith("/memfd:")  # not in /dev/shm
    del ring
    gc.collect()
    batches, held = make(workers=1), []
    for _ in range(3):
        list(batches)
        gc.collect()
        held.append(_memories())
    assert held[0] == held[1] == held[2]


def _memories() -> int:
    """Memfds that this process holds; those of other tests' loaders may be among them."""
    paths = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum("memfd" in os.readlink(path) for path in paths if os.path.lexists(path))


def test_system_without_room_is_said(caplog) -> None:
    batches = make(workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        ring = batches._make_ring()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ring is None
    assert "No shared memory for a ring ([Errno 27] File too large)" in caplog.text


def _killed(pipe: multiprocessing.connection.Connection) -> None:
    """Ends itself in the middle of an epoch."""
    batches = iter(make(workers=2, persistent_workers=True))
    next(batches)
    maps = Path("/proc/self/maps").read_text()
    assert "/memfd:terrafm_tiles" in maps  # what batches travel through
    assert "/dev/shm/torch" not in maps
    pipe.send([os.getpid(), *(process.pid for process in multiprocessing.active_children())])
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_after_sigkill() -> None:
    """Of a process that is killed while its workers read: no worker, and no file of theirs in /dev/shm."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = start(_killed, theirs)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    processes = ours.recv()
    assert len(processes) == 3
    for pid in processes:
        _wait_for_end(pid)  # each worker notices within seconds that it has lost its parent
    assert not [name for name in os.listdir("/dev/shm") if any(f"_{pid}_" in name for pid in processes)]


def _wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = multiprocessing.connection.wait([descriptor], timeout=60)
    os.close(descriptor)
    assert ended


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches(plain) -> None:
    batches = epochs(make(workers=2, pin_memory=True))
    assert all(tensor.is_pinned() for batch in batches for tensor in batch.values())
    assert_same(batches, plain)
