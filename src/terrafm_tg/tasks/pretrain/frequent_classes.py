"""Which land-cover classes are frequent, for dual centering."""

from collections.abc import Sequence

import numpy as np

from terrafm_tg.errors import TerraFMError


def class_names() -> tuple[str, ...]:
    """Names of WorldCover's 11 classes and ocean."""
    from terrafm_tg.land_cover import CLASS_NAMES

    return tuple(CLASS_NAMES)


def frequent_by_name(names: Sequence[str]) -> list[int]:
    """Classes of those names, in any case.

    Raises:
        TerraFMError: If a name is unknown, or none is given.
    """
    known = [name.lower() for name in class_names()]
    for name in names:
        if name.lower() not in known:
            raise TerraFMError(
                f"`center.frequent_classes` names {name!r}: use names of {', '.join(class_names())}."
            )
    if not names:
        raise TerraFMError(
            "`center.frequent_classes` is empty: name classes, or set `center.alpha: 1` for one centre only."
        )
    return sorted(known.index(name.lower()) for name in names)


def frequent_by_share(share: np.ndarray | None) -> list[int]:
    """Classes whose share of the sampler's draws exceeds 1 / (number of classes present).

    The paper does not say which classes count as frequent; this is our rule.

    Args:
        share: Share of the draws per class, (12,); None where nothing is known of it.

    Raises:
        TerraFMError: If there is no such class.
    """
    present = 0 if share is None else int(np.count_nonzero(share))
    frequent = [] if share is None else [int(i) for i in np.flatnonzero(share > 1 / max(present, 1))]
    if not frequent:
        met = (
            "the land cover of every tile is unknown"
            if present == 0
            else f"all {present} classes come equally often"
        )
        raise TerraFMError(
            f"Dual centering needs land-cover classes that are drawn more often than others, but {met}: "
            "build the index with `terrafm index --worldcover`, name "
            "`center.frequent_classes`, or set `center.alpha: 1` "
            "for one centre only."
        )
    return frequent
