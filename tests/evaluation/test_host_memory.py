"""A process knows its own peak, whatever the process that started it took."""

import subprocess
import sys

import numpy as np

from terrafm_tg.profiling import host_memory


def test_the_peak_stays_and_is_the_process_own() -> None:
    before = host_memory.peak_bytes()
    size = before + 200_000_000  # more than was ever resident
    np.ones(size, dtype=np.uint8)
    assert host_memory.peak_bytes() > before + 100_000_000
    code = f"exec(open({host_memory.__file__!r}).read()); print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < 100_000_000
