"""What a download will fetch: files of the source, rows of each, bytes over the line and on disk."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np
import pandas as pd

from terrafm_tg.errors import TerraFMError

from .catalogue import KEPT, ROWS, product_url
from .http import Http
from .local import LocalProduct, row_keys
from .parts import Batch, PartRows

#: Files of which a dry run reads the footers, per product; the others are estimated from them.
SAMPLE = 8
_BATCH = 16  # rows per connection that a worker is given at once


@dataclass(frozen=True)
class Sizes:
    """Bytes of rows.

    Args:
        line: That travel.
        disk: That they take.
        largest: The most that one file takes.
        looked_at: Files of which the footer is known; others are estimated.
    """

    line: int
    disk: int
    largest: int
    looked_at: int


def missing_parts(
    root: Path, source: str, chosen: pd.DataFrame, local: dict[str, LocalProduct], extra: Sequence[str]
) -> list[PartRows]:
    """The files of the source that hold rows which are chosen and not on disk, in the source's order."""
    parts = []
    for modality, rows in chosen.groupby("modality", sort=False):
        held = local[modality].keys()
        if len(held):
            rows = rows[~row_keys(rows["cell"], rows["product_id"]).isin(held)]
        rows = rows.sort_values(["part", "group"])
        own = tuple(name for name in extra if name != "B10" or modality == "s2l1c")
        for name, group in rows.groupby("part", observed=True):
            parts.append(
                PartRows(
                    root=root,
                    modality=str(modality),
                    url=f"{product_url(source, modality)}/images/{name}",
                    name=local[modality].free_name(str(name)),
                    rows=tuple(
                        zip(group["group"].astype(int), group["cell"], group["product_id"], strict=True)
                    ),
                    extra=own,
                )
            )
    return parts


def measure(http: Http, parts: Sequence[PartRows], connections: int, sample: bool) -> Sizes:
    """How many bytes the rows of one product take, from the footers of its files.

    Args:
        http: Reads them; those on disk are not read again.
        parts: The files.
        connections: Footers that are read at the same time.
        sample: Read only some, and estimate the rest.

    Raises:
        TerraFMError: If the source cannot be read or does not fit its table.
    """
    picked = np.linspace(0, len(parts) - 1, SAMPLE).round().astype(int) if sample else range(len(parts))
    look_at = [parts[i] for i in dict.fromkeys(picked)] if len(parts) > SAMPLE else list(parts)

    def size(part: PartRows) -> tuple[int, int]:
        file = part.open(http)
        rows = [file.row_bytes(group) for group, _, _ in part.rows]
        return sum(line for line, _ in rows), sum(disk for _, disk in rows)

    pool = ThreadPoolExecutor(connections)
    try:
        sizes = np.array(list(pool.map(size, look_at)), dtype=np.int64).reshape(-1, 2)
    finally:
        pool.shutdown(cancel_futures=True)
    known, rows = sum(len(part.rows) for part in look_at), sum(len(part.rows) for part in parts)
    line, disk = (int(total * rows / known) for total in sizes.sum(axis=0)) if known else (0, 0)
    return Sizes(line, disk, int(sizes[:, 1].max(initial=0)), len(look_at))


def check_room(root: Path, need: int, spare: int, max_gb: float | None) -> None:
    """Refuse what does not fit the budget or the disk.

    Args:
        root: Where it is to go.
        need: Bytes to come.
        spare: Bytes that are needed besides while files are put together.
        max_gb: The budget in GB.

    Raises:
        TerraFMError: If it does not fit; it says by how much.
    """
    if max_gb is not None and need > max_gb * 1e9:
        raise TerraFMError(
            f"The selection needs {need / 1e9:,.3f} GB more, {need / 1e9 - max_gb:,.3f} GB above `max_gb` {max_gb:g}: "
            f"choose less, such as a `share` of {_floor(max_gb * 1e9 / need):g} of it, or raise the budget."
        )
    free = disk_usage(root).free
    if need + spare > free:
        raise TerraFMError(
            f"The selection needs {(need + spare) / 1e9:,.3f} GB while it is written, and {root} has "
            f"{free / 1e9:,.3f} GB free: choose less, such as a `share` of {_floor(free / (need + spare)):g} of it, "
            "or another disk."
        )


def batches(
    parts: Iterable[PartRows], connections: int, workers: int | None, retries: int, timeout: float
) -> list[Batch]:
    """Files for the workers: a large one by itself, small ones together, so that no connection idles."""
    each = max(1, connections // max(1, workers or 1))
    found, batch, rows = [], list[PartRows](), 0
    for part in parts:
        batch.append(part)
        rows += len(part.rows)
        if rows >= _BATCH * each:
            found.append(Batch(tuple(batch), each, retries, timeout))
            batch, rows = [], 0
    return [*found, Batch(tuple(batch), each, retries, timeout)] if batch else found


def staged_bytes(root: Path) -> int:
    """Bytes of the rows that wait to be put together."""
    total = 0
    for path in (root / KEPT).glob(f"*/{ROWS}/*/*.parquet"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # put together meanwhile
            continue
    return total


def _floor(share: float) -> float:
    """A share in two digits, not above."""
    scale = 10 ** (np.floor(np.log10(share)) - 1)
    return float(np.floor(share / scale) * scale)
