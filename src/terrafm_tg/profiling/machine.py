"""The clock of a measurement, and the machine's limit on a matrix product."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

#: A short forward is repeated until a measurement takes this many seconds.
_SHORTEST = 0.1


def peak_teraflops(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """The best rate of one large matrix product, 10^12 operations per second."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> Tensor:
        return a @ b

    repeats = repeats_of(product, device)
    return 2 * side**3 / min(seconds_of(product, device, repeats) for _ in range(rounds)) / 1e12


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time where one thread does all the work; other programs disturb it less than wall time."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def seconds_of(forward: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Time of one call, the mean of ``repeats``."""
    clock = clock_of(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(repeats):
        forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / repeats


def repeats_of(forward: Callable[[], object], device: torch.device) -> int:
    """How often to run a forward in one measurement; the first calls, which allocate and compile, do not count."""
    seconds_of(forward, device, 1)
    return max(1, round(_SHORTEST / seconds_of(forward, device, 1)))
