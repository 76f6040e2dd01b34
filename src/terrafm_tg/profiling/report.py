"""A profile as a table and as a figure, and the limit of its step."""

from pathlib import Path
from tempfile import TemporaryFile

from rich.table import Table

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import atomic_write

from .profile import Profile, Run, Stage

#: Stages that bring data to the device.
FEEDING = ("loader", "view plan", "transfer")
#: From these shares on a limit is named.
_FEEDING, _WAITING, _PRODUCTS = 0.1, 0.5, 0.5


def profile_table(profile: Profile) -> Table:
    """Stages with time, share and rate; below them what the step reaches, what bounds it, and the whole run."""
    processes = f" on {profile.processes} processes" if profile.processes > 1 else ""
    table = Table(
        title=f"{profile.task}: {profile.batches} batches of {profile.batch} tiles{processes}, {profile.precision}\n"
        f"{profile.device}",
        caption="\n".join(in_words(profile)),
        caption_justify="left",
    )
    table.add_column("stage")
    unit, factor = ("GFLOP/s", 1000) if profile.peak < 1 else ("TFLOP/s", 1)
    for name in ("ms/batch", "share", unit, "of the peak"):
        table.add_column(name, justify="right")
    for stage in profile.stages:
        own = stage.teraflops
        rates = ("", "") if own is None else (f"{own * factor:.0f}", f"{own / profile.peak:.0%}")
        table.add_row(stage.name, f"{1000 * stage.seconds:.1f}", f"{stage.share:.1%}", *rates)
    table.add_section()
    own = profile.teraflops
    rates = ("", "") if own is None else (f"{own * factor:.0f}", f"{profile.mfu:.0%}")
    table.add_row("batch", f"{1000 * profile.seconds:.1f}", "100.0%", *rates)
    return table


def in_words(profile: Profile) -> list[str]:
    """Sums up the numbers, a sentence each."""
    lines = [reached(profile)]
    if profile.operations is not None:
        lines.append(_operations(profile, profile.operations))
    memory = [f"{profile.memory['host'] / 2**30:.2f} GiB of the main process"]
    if "device" in profile.memory:
        memory.append(f"{profile.memory['device'] / 2**30:.2f} GiB of tensors on the GPU")
    lines.append(f"Peak memory: {', '.join(memory)}.")
    lines.append(f"Bound by: {bound(profile)}")
    if profile.graphs or profile.recompiled:
        graphs = f"{profile.graphs} during the warm-up, {profile.recompiled} afterwards"
        lines.append(f"Compiled graphs: {graphs}.")
    if profile.run is not None:
        lines.append(_whole_run(profile.run, "process" if profile.device.startswith("CPU") else "GPU"))
    return lines


def reached(profile: Profile) -> str:
    """Samples per second, and the rate of the matrix products beside the measured one."""
    speed = profile.samples_per_second
    said = f"{speed:,.1f} samples/s" if speed >= 10 else f"{speed:.3g} samples/s"
    if profile.teraflops is not None:
        share = f"{profile.mfu:.0%} of a matrix product in the same run ({rate(profile.peak)})"
        said += f", {rate(profile.teraflops)}: {share}"
    return f"{said}."


def rate(teraflops: float) -> str:
    """In the unit in which it is easy to read."""
    return f"{teraflops:,.3g} TFLOP/s" if teraflops >= 1 else f"{1000 * teraflops:.3g} GFLOP/s"


def _operations(profile: Profile, operations: float) -> str:
    if profile.operations_as_written is None:
        return f"{operations / 1e12:.3g} TFLOP per sample, as torch counts a step."
    return (
        f"{operations / 1e12:.3g} TFLOP per sample (matrix products, teacher included, every block in full, the stem's "
        f"linear pairs as one; as written {profile.operations_as_written / 1e12:.3g}) with E[M] = "
        f"{profile.modalities:.3f} modalities per view"
        + ("." if profile.modalities_met is None else f", {profile.modalities_met:.3f} met in these batches.")
    )


def _whole_run(run: Run, device: str) -> str:
    predicted = "" if run.efficiency == 1 else f" at a predicted efficiency of {run.efficiency:.1%}"
    return (
        f"The whole configured run: {run.samples / 1e6:,.4g} million samples in {run.steps:,} optimizer steps on "
        f"{run.processes} process{'es' * (run.processes > 1)}{predicted}: {describe_duration(run.hours)}, "
        f"{run.device_hours:,.{1 if run.device_hours < 10 else 0}f} {device}-hours, without validation."
    )


def describe_duration(hours: float) -> str:
    """Returns minutes, hours or days, whichever reads best."""
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"


def write_figure(profile: Profile, path: Path) -> None:
    """Draws the stages: the matrix products' least time at the measured rate, and what they take beyond it.

    Args:
        profile: What was measured.
        path: PNG, PDF or SVG to write.
    """
    from matplotlib.figure import Figure

    stages = profile.stages[::-1]
    figure = Figure(figsize=(8, 1.6 + 0.34 * len(stages)), layout="constrained")
    axes = figure.add_subplot()
    times = [1000 * stage.seconds for stage in stages]
    products = [
        min(time, max(0.0, time - 1000 * beyond_products(stage, profile)))
        for stage, time in zip(stages, times, strict=True)
    ]
    rest = [time - product for time, product in zip(times, products, strict=True)]
    names = [stage.name for stage in stages]
    axes.barh(names, products, color="#1f4e79", label=f"products at {rate(profile.peak)}")
    axes.barh(names, rest, left=products, color="#9cc3e4", label="beyond them")
    for place, (stage, time) in enumerate(zip(stages, times, strict=True)):
        axes.text(time, place, f"  {time:,.1f} ms, {stage.share:.1%}", va="center", fontsize=9)
    axes.set_xlim(0, 1.25 * max(times))
    axes.set_xlabel("ms per batch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    title = f"{profile.task}, {profile.batch} tiles, {profile.precision}, {profile.device}\n{reached(profile)}"
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_write(path) as beside:
        figure.savefig(beside, dpi=150, format=path.suffix.removeprefix(".") or "png")


def bound(profile: Profile) -> str:
    """One sentence: what has to become faster for the step to become faster.

    A stage's matrix products take at least their operations divided by the measured rate; what a stage takes beyond
    that is memory traffic, small kernels and products of unfavourable shapes.
    """
    feeding = [stage for stage in profile.stages if stage.name in FEEDING]
    if (share := sum(stage.share for stage in feeding)) > _FEEDING:
        worst = max(feeding, key=lambda stage: stage.share)
        return (
            f"The supply of data: {share:.0%} of the step, most of it the {worst.name}. More workers, a packed store "
            "or `cache` help."
        )
    if profile.waiting is not None and profile.waiting > _WAITING:
        return (
            f"The host: at {profile.waiting:.0%} of the stages' boundaries the GPU had nothing left to do. A larger "
            "batch or `compile` helps."
        )
    rest = sorted(profile.stages, key=lambda stage: beyond_products(stage, profile), reverse=True)[:2]
    around = " and ".join(
        f"{stage.name} ({beyond_products(stage, profile) / profile.seconds:.0%} of the step)" for stage in rest
    )
    if profile.mfu is None:
        return f"What surrounds the matrix products, which were not counted: {around}."
    if profile.mfu >= _PRODUCTS:
        return f"Matrix products: at the measured rate they alone take {profile.mfu:.0%} of the step."
    return (
        f"What surrounds the matrix products (memory traffic, small kernels, thin shapes): at the measured rate the "
        f"products take {profile.mfu:.0%} of the step; most beyond them is in {around}."
    )


def beyond_products(stage: Stage, profile: Profile) -> float:
    """Seconds of a stage that its matrix products would not take at the measured rate."""
    return stage.seconds - (stage.operations or 0.0) / profile.peak / 1e12


def check_writable(json: Path | None, figure: Path | None = None) -> None:
    """Makes the folders of files to write, and checks that they can be written.

    Args:
        json: File for the numbers, if any.
        figure: File for a picture, if any.

    Raises:
        TerraFMError: If a file cannot be written, or the picture's format is unknown.
    """
    if figure is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if figure.suffix and figure.suffix[1:].lower() not in known:
            raise TerraFMError(f"{figure} is of no known format: let it end in one of .{', .'.join(known)}.")
    for path in filter(None, (json, figure)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                reason = "it is a folder" if path.is_dir() else None
        except OSError as error:
            reason = error.strerror
        if reason:
            raise TerraFMError(f"{path} cannot be written ({reason}): give a file in a folder of yours.")
