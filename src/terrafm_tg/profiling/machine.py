"""The machine of a measurement: the rate of a large matrix product, and the memory that a process took."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from terrafm_tg.utils.devices import has_bf16_units

_STATUS = Path("/proc/self/status")
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


def computing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the type in which a device multiplies at a precision of the Trainer: float32 where it emulates bfloat16.

    Args:
        precision: Such as ``bf16-mixed`` or ``32-true``.
        device: Of the run.
    """
    dtype = _DTYPES[precision.split("-")[0]]
    return torch.float32 if dtype == torch.bfloat16 and not has_bf16_units(device) else dtype


def peak_teraflops(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the best rate of one large matrix product, 10^12 operations per second."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    repeats = 20 if device.type == "cuda" else 1
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device, repeats) for _ in range(6)) / 1e12


def clock_of(device: torch.device) -> Callable[[], float]:
    """Returns processor time where one thread does all the work; other programs disturb it less than wall time."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def seconds_of(forward: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Measures the time of one call, the mean of ``repeats``."""
    clock = clock_of(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(repeats):
        forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / repeats


def peak_bytes() -> int:
    """Returns the largest resident memory of this process so far.

    On Linux the program's own (``VmHWM``, proc_pid_status(5)): what ``getrusage`` calls the maximum counts the process
    that started it too.
    """
    if _STATUS.exists():
        return next(1024 * int(line.split()[1]) for line in _STATUS.open() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
