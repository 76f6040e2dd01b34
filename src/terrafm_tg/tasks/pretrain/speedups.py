"""What makes the training step fast, by name, so that each can be turned off and its gain be measured."""

from collections.abc import Collection

from terrafm_tg.errors import TerraFMError

#: Name -> what it is. None changes what is learnt, but for rounding.
SPEEDUPS: dict[str, str] = {
    "pack": "every linear map runs once over the tokens of all crops",
    "fold": "pairs of linear maps of the stem are multiplied first",
    "class_token": "the last block is computed for the class token only",
    "skip": "what stochastic depth drops is not computed",
    "attention": "the fused attention kernel, where it is faster",
    "loss": "one normalisation per view and one product for all pairs",
    "average": "the teacher's average in one kernel for many tensors",
    "optimizer": "AdamW in one kernel for many tensors",
    "reduce": "centres are summed over processes while the student runs",
}


def check_speedups(names: Collection[str] | None) -> frozenset[str]:
    """The names to do without.

    Raises:
        TerraFMError: If one is unknown.
    """
    names = (names,) if isinstance(names, str) else names or ()
    for name in names:
        if name not in SPEEDUPS:
            raise TerraFMError(
                f"`without` names {name!r}, which is no speed-up: use any of {', '.join(SPEEDUPS)}."
            )
    return frozenset(names)
