import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.utils.parallel import run_units


def square(x: int) -> tuple[int, int]:
    return x * x, os.getpid()


def square_but_die_once(folder: Path, x: int) -> tuple[int, int]:
    """The first process that meets unit 5 dies of it."""
    if x == 5 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(x)


def refuse(x: int) -> int:
    if x == 3:
        raise DamagedTileError("897U_171L/2 s2l2a", "B04 is cut off")
    return x


def spend(seconds: float) -> int:
    """Spend processor time."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    return os.getpid()


def always_die(x: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_group(group: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def scheduler(dask_from_server):
    """Address of a cluster of one process; a unit may end one process, not two."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


def test_in_this_process():
    for workers in (0, None):
        results = list(run_units(square, [4, 5, 6], workers=workers, title="Squares", progress=False))
        assert results == [(i, (x * x, os.getpid())) for i, x in enumerate([4, 5, 6])]
    assert list(run_units(square, [], workers=2, title="Squares", progress=False)) == []


def test_processes_of_which_one_is_killed(dask_from_server, tmp_path, capfd):
    sent = 0

    def units():
        nonlocal sent
        for unit in range(60):
            sent = unit + 1
            yield unit

    results, ahead = {}, 0
    for position, result in run_units(partial(square_but_die_once, tmp_path), units(), workers=2, title="Squares"):
        results[position] = result
        ahead = max(ahead, sent - len(results))
    assert {i: result[0] for i, result in results.items()} == {i: i * i for i in range(60)}
    assert (tmp_path / "died").exists()
    assert os.getpid() not in {pid for _, pid in results.values()}
    assert ahead < 12  # millions of units are not sent at once
    shown = capfd.readouterr()
    assert "2 Dask workers; dashboard: http://127.0.0.1:" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("patience", "here"), [(0.0, 0), (0.1, 2)])
def test_units_that_take_long_leave_the_rest_to_processes(dask_from_server, monkeypatch, patience, here):
    from dask.system import CPU_COUNT

    monkeypatch.setattr("terrafm_tg.utils.parallel.PATIENCE", patience)
    results = dict(run_units(spend, [0.06] * 4, title="Units", progress=False))
    assert [results[i] == os.getpid() for i in range(4)] == [i < here or CPU_COUNT == 1 for i in range(4)]


def test_a_cluster_that_runs_already(scheduler):
    results = dict(run_units(square, range(5), scheduler=scheduler, title="Squares", progress=False))
    assert [results[i][0] for i in range(5)] == [0, 1, 4, 9, 16]


def test_errors_arrive_as_they_are(scheduler):
    for where in ({"workers": 0}, {"scheduler": scheduler}):
        with pytest.raises(DamagedTileError, match="B04 is cut off") as caught:
            list(run_units(refuse, range(9), title="Tiles", progress=False, **where))
        assert caught.value.name == "897U_171L/2 s2l2a"


def test_a_unit_that_kills_every_worker(scheduler):
    with pytest.raises(TerraFMError, match=r"Packing: a unit ended 2 worker processes, .* with workers=0"):
        list(run_units(always_die, range(1), scheduler=scheduler, title="Packing", progress=False))


@pytest.mark.soak
def test_ctrl_c_leaves_nothing_running(tmp_path):
    code = (
        "import time\nfrom pathlib import Path\nfrom terrafm_tg.utils.parallel import run_units\n"
        f"def work(x):\n    Path({str(tmp_path / 'begun')!r}).touch()\n    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    import signal\n"  # a shell's background job, which the tests may be, is deaf to it
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    list(run_units(work, range(9), workers=2, title='Work'))\n"
    )
    (tmp_path / "script.py").write_text(code)
    log = (tmp_path / "log").open("wb")
    run = subprocess.Popen([sys.executable, tmp_path / "script.py"], start_new_session=True, stderr=log)
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does: to all processes
    assert run.wait(60) != 0
    with pytest.raises(ProcessLookupError):  # soon, nothing of that group is left
        wait_for_group(run.pid, deadline)
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_bad_settings(monkeypatch):
    def run(**where):
        return list(run_units(square, [1], title="Squares", progress=False, **where))

    with pytest.raises(TerraFMError, match=r"`workers` is -1: give a number"):
        run(workers=-1)
    with pytest.raises(TerraFMError, match=r"`workers` 2 and a scheduler \(tcp://a:1\) are both given"):
        run(workers=2, scheduler="tcp://a:1")
    monkeypatch.setattr("terrafm_tg.utils.parallel._ANSWER", 1)
    with pytest.raises(TerraFMError, match=r"No Dask scheduler with workers answers at 'tcp://127.0.0.1:9'"):
        run(scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)  # as if it were not installed
    with pytest.raises(TerraFMError, match=r'workers=2 needs Dask: pip install "terrafm-tg\[dask\]"'):
        run(workers=2)
    assert run() == [(0, (1, os.getpid()))]
