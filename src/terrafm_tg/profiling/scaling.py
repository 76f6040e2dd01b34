"""``terrafm profile scaling``: what is left of one GPU's speed on many, computed from its step and the bytes reduced.

Data-parallel processes do the same work as one, and besides reduce gradients (fp32, in buckets that are ready while the
backward pass goes on) and the sums of the centers (beside the student's passes). A ring all-reduce of S bytes over n
processes moves 2 (n - 1) / n S bytes through each link, in 2 (n - 1) messages. What does not fit beside the backward
pass, and the last bucket, which is ready at its end, lengthen the step. So does the slowest process, for which all
others wait: with deviation s of a step's time it takes about s sqrt(2 ln n) longer than the mean.
"""

import math
from dataclasses import dataclass

from rich.table import Table

from terrafm_tg.errors import TerraFMError

from .profile import Profile


@dataclass(frozen=True)
class Network:
    """Links between processes. The defaults are a machine of eight H200 and a 400 Gbit/s card for each.

    Args:
        machine: GPUs per machine.
        within: GB/s of an all-reduce between the GPUs of a machine (its bus bandwidth).
        between: GB/s from a machine to another, all its cards together, as reached.
        latency: Microseconds per message within a machine.
        hop: Microseconds per message between machines.
        bucket: Megabytes per bucket of gradients.
    """

    machine: int = 8
    within: float = 350.0
    between: float = 320.0
    latency: float = 5.0
    hop: float = 15.0
    bucket: float = 50.0

    def __post_init__(self) -> None:
        if min(self.machine, self.within, self.between, self.bucket) <= 0 or min(self.latency, self.hop) < 0:
            raise TerraFMError(f"{self} is no network: give sizes and rates above 0, and latencies of 0 or more.")

    def all_reduce(self, size: float, processes: int) -> float:
        """Seconds of one all-reduce of ``size`` bytes."""
        if processes == 1:
            return 0.0
        machines = -(-processes // self.machine)
        rate = self.within if machines == 1 else min(self.within, self.between)
        inside, outside = 2 * (processes - machines), 2 * (machines - (machines == 1))
        # Trees instead of rings for short messages: latency grows with the logarithm then.
        ring = inside * self.latency + outside * self.hop
        tree = 2 * math.log2(min(processes, self.machine)) * self.latency + 2 * math.log2(machines) * self.hop
        return 2 * (processes - 1) / processes * size / rate / 1e9 + min(ring, tree) / 1e6


@dataclass(frozen=True)
class Scaled:
    """A step of many processes, in seconds per optimizer step.

    Args:
        processes: GPUs.
        alone: One process's own step.
        reduction: All gradients' reduction, hidden or not.
        gradients: Its part that the backward pass does not hide.
        centers: The centers' part that the student's passes do not hide.
        slowest: Waiting for the slowest process.
        samples: Tiles per optimizer step of all processes.
    """

    processes: int
    alone: float
    reduction: float
    gradients: float
    centers: float
    slowest: float
    samples: int

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.alone + self.gradients + self.centers + self.slowest

    @property
    def efficiency(self) -> float:
        """Share of one process's speed that each has left."""
        return self.alone / self.seconds

    @property
    def samples_per_second(self) -> float:
        """Of all processes together."""
        return self.samples / self.seconds

    @property
    def limit(self) -> str:
        """The largest part of the loss."""
        lost = {"gradients": self.gradients, "centers": self.centers, "the slowest": self.slowest}
        name = max(lost, key=lost.__getitem__)
        return f"{name} ({lost[name] / self.seconds:.1%})" if lost[name] > 0.005 * self.seconds else "computation"


def predict_step(profile: Profile, processes: int, network: Network | None = None) -> Scaled:
    """Predicts a step of many processes from one of a single process.

    Args:
        profile: Of one process.
        processes: GPUs, at least one.
        network: Network between them.
    """
    net = network or Network()
    accumulated = profile.accumulated
    size, hidden_behind = profile.reduced["gradients"], profile.stage("backward")
    buckets = max(1, math.ceil(size / net.bucket / 1e6))
    each = net.all_reduce(size / buckets, processes)
    # Gradients are reduced in the last of the accumulated batches. The first bucket is ready when its share of the
    # backward pass is done, the last one at its end.
    waiting = max(0.0, each * (buckets - 1) - hidden_behind * (1 - 1 / buckets))
    centers = accumulated * net.all_reduce(profile.reduced["centers"], processes)
    beside = accumulated * (profile.stage("student") + profile.stage("loss") + profile.stage("backward"))
    deviation = profile.deviation * math.sqrt(accumulated)
    return Scaled(
        processes=processes,
        alone=accumulated * profile.seconds,
        reduction=each * buckets,
        gradients=waiting + each,
        centers=max(0.0, centers - beside),
        slowest=deviation * math.sqrt(2 * math.log(processes)),
        samples=accumulated * processes * profile.batch,
    )


def scaling_table(profile: Profile, gpus: list[int] | int | None = None, network: Network | None = None) -> Table:
    """Predicts speed and efficiency on many GPUs from the profile of one.

    Args:
        profile: Of one process.
        gpus: Numbers of GPUs; 1, 8, 64 and 512 by default.
        network: Network between them, such as --network.between 40 for one 400 Gbit/s card per machine.

    Raises:
        TerraFMError: If the profile is of several processes, or a number is not positive.
    """
    gpus = [gpus] if isinstance(gpus, int) else gpus or [1, 8, 64, 512]
    if profile.processes > 1 or min(gpus, default=0) < 1:
        raise TerraFMError(
            f"A profile of {profile.processes} processes and {gpus} GPUs: profile one process, and give numbers of 1 "
            "or more."
        )
    net = network or Network()
    megabytes = {name: size / 1e6 for name, size in profile.reduced.items()}
    table = Table(
        title=f"{profile.task} on {profile.device}, {profile.batch} tiles per GPU"
        + (f", {profile.accumulated} batches accumulated" if profile.accumulated > 1 else "")
    )
    for column in ("GPUs", "ms/step", "reduction\n(ms)", "seen\n(ms)", "effi-\nciency", "samples/s", "limit"):
        table.add_column(column, justify="left" if column == "limit" else "right", no_wrap=True)
    for count in gpus:
        row = predict_step(profile, count, net)
        times = (f"{1000 * x:.1f}" for x in (row.seconds, row.reduction, row.gradients + row.centers))
        table.add_row(
            str(count),
            *times,
            f"{row.efficiency:.1%}",
            f"{row.samples_per_second:,.{0 if row.samples_per_second > 100 else 1}f}",
            row.limit,
        )
    table.caption = (
        f"Computed: {megabytes['gradients']:.0f} MB of gradients and {megabytes['centers']:.1f} MB of centers per step,"
        f" backward pass {1000 * profile.stage('backward'):.0f} ms, {net.machine} GPUs per machine, {net.within:g} "
        f"GB/s within and {net.between:g} GB/s between machines. Seen: what the step does not hide."
    )
    return table
