"""What bounds a step: the loader, the host, the matrix products, or what lies around them."""

from .profile import Profile, Stage

#: Stages that bring data to the device.
FEEDING = ("loader", "view plan", "transfer")
#: From these shares on a limit is named.
_FEEDING, _WAITING, _PRODUCTS = 0.1, 0.5, 0.5


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
        f"{stage.name} ({beyond_products(stage, profile) / profile.seconds:.0%} of the step)"
        for stage in rest
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
