"""``terrafm profile scaling``: what is left of one GPU's speed on many, computed from its step and the bytes reduced.

Data-parallel processes do the same work as one, and besides reduce gradients (fp32, in buckets that are ready while the
backward pass goes on); the sums of the centers are small and hide behind the student's passes. A ring all-reduce of S
bytes over n processes moves 2 (n - 1) / n S bytes through each link. What does not fit beside the backward pass, and
the last bucket, which is ready at its end, lengthen the step. So does the slowest process, for which all others wait:
with deviation s of a step's time it takes about s sqrt(2 ln n) longer than the mean.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, checked

from .profile import Profile, read_profile

#: Bytes per bucket of gradients.
_BUCKET = 50e6
#: Seconds per message within a machine, and between machines.
_LATENCY, _HOP = 5e-6, 15e-6


@dataclass(frozen=True)
class Network:
    """Links between processes. The defaults are a machine of eight H200 and a 400 Gbit/s card for each.

    Args:
        machine: GPUs per machine.
        within: GB/s of an all-reduce between the GPUs of a machine (its bus bandwidth).
        between: GB/s from a machine to another, all its cards together, as reached.
    """

    machine: int = 8
    within: float = 350.0
    between: float = 320.0

    def __post_init__(self) -> None:
        if min(self.machine, self.within, self.between) <= 0:
            raise TerraFMError(f"{self} is no network: give sizes and rates above 0.")

    def all_reduce(self, size: float, processes: int) -> float:
        """Seconds of one all-reduce of ``size`` bytes."""
        machines = -(-processes // self.machine)
        rate = self.within if machines == 1 else min(self.within, self.between)
        # Messages by rings, or by trees where these are faster.
        ring = (processes - machines) * _LATENCY + (machines - (machines == 1)) * _HOP
        tree = math.log2(min(processes, self.machine)) * _LATENCY + math.log2(machines) * _HOP
        return 2 * (processes - 1) / processes * size / rate / 1e9 + 2 * min(ring, tree)


class Scaled(NamedTuple):
    """An optimizer step of many processes: its seconds, and of these what the reduction and the slowest add to one's.

    Attributes:
        seconds: Of the whole step.
        efficiency: Share of one process's speed that each has left.
        reduction: All gradients' reduction, hidden or not.
        seen: Its part that the backward pass does not hide.
        slowest: Waiting for the slowest process.
    """

    seconds: float
    efficiency: float
    reduction: float
    seen: float
    slowest: float


def predict_step(profile: Profile, processes: int, network: Network | None = None) -> Scaled:
    """Predicts a step of many processes from one of a single process.

    Args:
        profile: Of one process.
        processes: GPUs, at least one.
        network: Network between them.
    """
    buckets = max(1, math.ceil(profile.gradients / _BUCKET))
    each = (network or Network()).all_reduce(profile.gradients / buckets, processes)
    # Gradients are reduced in the last of the accumulated batches. The first bucket is ready when its share of the
    # backward pass is done, the last one at its end.
    seen = each + max(0.0, each * (buckets - 1) - profile.stages.get("backward", 0.0) * (1 - 1 / buckets))
    slowest = profile.deviation * math.sqrt(profile.accumulated * 2 * math.log(processes))
    alone = profile.accumulated * profile.seconds
    seconds = alone + seen + slowest
    return Scaled(seconds, alone / seconds, each * buckets, seen, slowest)


@checked(gpus=COUNT)
def scaling_table(result: Path, gpus: list[int] | int | None = None, network: Network | None = None) -> Table:
    """Predicts speed and efficiency on many GPUs from the profile of one.

    Args:
        result: JSON of `terrafm profile ... --json RESULT`, of one process.
        gpus: Numbers of GPUs; 1, 8, 64 and 512 by default.
        network: Network between them, such as --network.between 40 for one 400 Gbit/s card per machine.

    Raises:
        TerraFMError: If there is no such profile, it is of several processes, or a number is not positive.
    """
    profile = read_profile(result)
    gpus = [gpus] if isinstance(gpus, int) else gpus or [1, 8, 64, 512]
    if profile.processes > 1 or min(gpus) < 1:
        raise TerraFMError(
            f"A profile of {profile.processes} processes and {gpus} GPUs: profile one process, and give numbers of 1 "
            "or more."
        )
    net = network or Network()
    table = Table(title=f"{profile.task} on {profile.device}, {profile.accumulated} x {profile.batch} tiles per GPU")
    for column in ("GPUs", "ms/step", "reduction\n(ms)", "seen\n(ms)", "slowest\n(ms)", "efficiency", "samples/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for count in gpus:
        step = predict_step(profile, count, net)
        times = (f"{1000 * x:.1f}" for x in (step.seconds, step.reduction, step.seen, step.slowest))
        rate = count * profile.accumulated * profile.batch / step.seconds
        table.add_row(str(count), *times, f"{step.efficiency:.1%}", f"{rate:,.{0 if rate > 100 else 1}f}")
    table.caption = (
        f"Computed: {profile.gradients / 1e6:.0f} MB of gradients per step, {net.machine} GPUs per machine, "
        f"{net.within:g} GB/s within and {net.between:g} GB/s between machines. Seen: what the backward pass does not "
        "hide; slowest: waiting for the slowest process."
    )
    return table
