import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("terrafm_processes.py")


def read(path: Path) -> dict[str, list]:
    return {line[0]: line[1:] for line in map(json.loads, path.read_text().splitlines())}


def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, small_world: Path) -> None:
    """Bit for bit, with a worker, stochastic depth and validation between.

    Once from a checkpoint of an epoch's last batch, once from mid-epoch with accumulation.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, SCRIPT, tmp_path, small_world]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for accumulate, place, first in ((1, 5, "1/0"), (2, 3, "0/2")):
        whole = read(tmp_path / f"whole_{accumulate}.txt")
        killed = read(tmp_path / f"killed_{accumulate}.txt")
        resumed = read(tmp_path / f"killed_resumed_{accumulate}.txt")
        assert len(whole) == 8
        assert killed == dict(list(whole.items())[:place])
        assert next(iter(resumed)) == first
        assert resumed == dict(list(whole.items())[list(whole).index(first) :])
