"""A process knows its own peak, whatever the process that started it took."""

import inspect
import subprocess
import sys

import numpy as np

from terrafm_tg.profiling.machine import peak_bytes


def test_the_peak_stays_and_is_the_process_own() -> None:
    before = peak_bytes()
    size = before + 200_000_000  # more than was ever resident
    np.ones(size, dtype=np.uint8)
    assert peak_bytes() > before + 100_000_000
    imports = "import resource, sys; from pathlib import Path; _STATUS = Path('/proc/self/status')"
    code = f"{imports}\n{inspect.getsource(peak_bytes)}\nprint(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < 100_000_000
