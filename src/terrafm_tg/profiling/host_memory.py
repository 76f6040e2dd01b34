"""The most memory that a process has had."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    On Linux the program's own (``VmHWM``, proc_pid_status(5)): what ``getrusage`` calls the maximum counts the process
    that started it too.
    """
    if _STATUS.exists():
        return next(1024 * int(line.split()[1]) for line in _STATUS.open() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
