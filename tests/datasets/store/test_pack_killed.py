"""Packing that is killed, at any moment, by itself or one process of its cluster: the store comes out the same."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time

import psutil
import pytest
from packing_checks import CELLS, digests, source, write_root
from tiny_files import product

from terrafm_tg.datasets.store.pack import pack

ONE_CELL = 0.004  # MB: less than two cells of any modality
_fork = multiprocessing.get_context("fork")


def write_damaged_root(root):
    """Three parts per modality; one tile of one modality is damaged, so that there is a list to write."""
    rows = [product("s2l2a", cell) for cell in CELLS]
    rows[2]["bands"]["B11"] = rows[2]["bands"]["B11"][:400]
    return write_root(root, s2l2a=rows)


def run(root, out, kill_at=None, merge=True):
    """Pack in this process, which is killed before its n-th operation on files of the store."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(out) in str(arguments[0]):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at is not None:
        sys.addaudithook(watch)
    pack(source(root), out, shard_mb=ONE_CELL, workers=0, merge=merge, progress=False)
    if kill_at is not None:
        (out.parent / "operations").write_text(str(seen))


def killed(root, out, **how):
    process = _fork.Process(target=run, args=(root, out), kwargs=how)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_damaged_root(tmp_path_factory.mktemp("source") / "root")


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """The store's digests, and how many operations on files it takes."""
    out = tmp_path_factory.mktemp("packed") / "store"
    assert not killed(root, out, kill_at=1_000_000)
    return digests(out), int((out.parent / "operations").read_text())


def check(root, out, undisturbed, kill_at):
    assert killed(root, out, kill_at=kill_at)
    run(root, out)
    assert digests(out) == undisturbed[0]


def test_killed_before_an_operation_on_its_files(root, undisturbed, tmp_path):
    assert "damaged.csv" in undisturbed[0]
    last = undisturbed[1]
    # Among shards; while the index waits for its name; then up to the end.
    moments = [random.Random(0).randint(1, last - 28), *range(last - 26, last - 20, 2), *range(last - 18, last + 1, 6)]
    for number, moment in enumerate(moments):
        check(root, tmp_path / str(number), undisturbed, moment)


@pytest.mark.soak
def test_killed_before_every_operation_on_its_files(root, undisturbed, tmp_path):
    for moment in range(1, undisturbed[1] + 1):
        check(root, tmp_path / str(moment), undisturbed, moment)
        shutil.rmtree(tmp_path / str(moment))


@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.soak)])
def test_killed_while_a_log_is_merged_or_written(root, tmp_path, every):
    """Before any operation on the index and the log, and after it: the same store as without a log."""
    cells = [[CELLS[3]], [CELLS[4]], list(CELLS)]
    roots = [write_root(tmp_path / f"root{number}", part) for number, part in enumerate(cells)]

    def pack_parts(out, kill_at=None, logged=(True, True, False)):
        for part, log in zip(roots, logged, strict=True):
            at = kill_at if part is roots[1 if kill_at and kill_at < 0 else 2] else None
            if at is not None and not killed(part, out, kill_at=abs(at), merge=not log):
                return False
            run(part, out, merge=not log)
        return True

    pack_parts(tmp_path / "plain", logged=(False, False, False))
    plain = digests(tmp_path / "plain")
    for sign in (1, -1):
        moment = 1
        while pack_parts(tmp_path / "store", sign * moment):
            assert digests(tmp_path / "store") == plain
            shutil.rmtree(tmp_path / "store")
            moment += every
        shutil.rmtree(tmp_path / "store")
        assert moment > 10


def test_one_of_two_worker_processes_is_killed(dask_from_server, tmp_path):
    """While it writes a shard, when half of them are there."""
    from distributed import LocalCluster

    root = write_root(tmp_path / "root", [f"{row}U_101R" for row in range(536, 548)])
    run(root, tmp_path / "alone")
    out, shards = tmp_path / "store", len(list((tmp_path / "alone").rglob("*.arrow")))
    stop, victims = threading.Event(), []

    def kill(pid):
        while not stop.is_set() and not victims:
            opened = [file.path for file in psutil.Process(pid).open_files()]
            if len(list(out.rglob("*.arrow"))) >= shards // 2 and any(p.endswith(".tmp") for p in opened):
                os.kill(pid, signal.SIGKILL)
                victims.append(pid)
            time.sleep(0.001)

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill, args=(next(iter(cluster.workers.values())).pid,))
        killer.start()
        pack(source(root), out, shard_mb=ONE_CELL, scheduler=cluster.scheduler_address, progress=False)
        stop.set()
        killer.join()
    assert victims
    assert digests(out) == digests(tmp_path / "alone")
