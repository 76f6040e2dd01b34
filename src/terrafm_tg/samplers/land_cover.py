"""The sampler of pretraining: an epoch is one list of draws, weighted by what lies where, that ranks share."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch.distributed as dist
from torch.utils.data import DistributedSampler
from torchgeo.samplers import GeoSampler

from terrafm_tg.datasets.tiles.dataset import TileDataset, TileSlice
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import OCEAN
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, SHARE, checked
from terrafm_tg.utils.shared import shared_arrays

_log = logging.getLogger(__name__)

#: The columns of an index that the paper spreads sampling over jointly.
SPREAD = ("land_cover", "climate", "region")

#: Expected counts are kept as fixed-point numbers with this many binary places, so that their sums are exact.
_BITS = 32
#: Golden ratio in that fixed point: adding it from epoch to epoch spreads the phases most evenly.
_GOLDEN = 2654435769
_PART = 1 << 18  # rows that are counted at once


@checked(length=COUNT, ocean_keep=SHARE, seed=NOT_NEGATIVE, rank=NOT_NEGATIVE, world_size=COUNT)
class LandCoverSampler(GeoSampler, DistributedSampler):
    """Draws tiles by land cover, climate and region; sees one epoch as one list, of which each rank takes its share.

    The expected count of a tile in an epoch is ``w = length * p`` with ``p`` proportional to ``share **
    -power``, where ``share`` is the share of the tile's group among the kept tiles. Systematic sampling makes
    the real count ⌊w⌋ or ⌈w⌉ in every epoch, keeps each group's count within one of its expectation too, and
    turns a tile of weight 1/4 up about every fourth epoch. The list is then permuted by (seed, epoch). A
    draw's ``position`` in it is what all later randomness is keyed by, so nothing depends on rank, worker or
    micro-batch.

    Ocean (paper, Data): a cell is ocean where more than half of its tiles with known land cover are. All
    tiles of such a cell are kept or dropped together, by a hash of (seed, cell). Ocean tiles of a land cell
    stay.

    It is a ``DistributedSampler`` by name only: Lightning then leaves it as it is, whatever
    ``use_distributed_sampler``. What it knows of millions of rows is shared by the processes of a machine
    (:mod:`terrafm_tg.utils.shared`); each has the row numbers of its own draws in the current epoch.

    Args:
        dataset: Gives the index and the slices.
        rows: Candidate rows of the index; all where None.
        length: Draws per epoch over all ranks; the number of kept tiles where None.
        power: Power of inverse frequency: 0 draws every tile equally often, 1 every group.
        by: Index columns that form a group together. Those of :data:`SPREAD` that the index has where None.
            Unknown is a value too.
        ocean_keep: Probability that an ocean cell is kept.
        seed: Of the ocean cells, the draws and the order.
        rank: This process; asked of ``torch.distributed`` when first needed where None.
        world_size: Number of processes; likewise.
        shuffle: Permute the list and drop the tail that does not go round all ranks, or fill an optimizer
            step where ``step`` says how many draws one has (training); otherwise rows come in their own order
            and none is dropped (evaluation).

    Raises:
        TerraFMError: If a setting is out of range, a column is missing, no tile is left, or there are more
            processes than draws.
    """

    def __init__(
        self,
        dataset: TileDataset,
        rows: np.ndarray | None = None,
        length: int | None = None,
        power: float = 0.5,
        by: Sequence[str] | str | None = None,
        ocean_keep: float = 0.02,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.tiles = dataset
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.start = 0  # position in the epoch's list of the first draw; a resumed loader sets it
        self.step = 1  # draws of an optimizer step over all ranks; in training no step is cut short
        self._rank, self._world_size = rank, world_size

        index = dataset.table
        candidates = np.arange(len(index)) if rows is None else np.asarray(rows)
        if by is None:
            by = [name for name in SPREAD if name in index or name == "land_cover"]
        self.by = [by] if isinstance(by, str) else list(by)
        settings = length, power, self.by if power else [], ocean_keep, seed
        self._plan = shared_arrays(index, f"draws {settings}", lambda: _plan(index, candidates, *settings), candidates)
        self.global_length = len(self.rows) if length is None else length
        if power and "land_cover" in self.by and not self._plan["share"].any():
            _log.warning(
                "Land cover is unknown for all %d tiles, so none is drawn more often for it: write it with "
                "`terrafm index` and a WorldCover folder.",
                len(self.rows),
            )

    @property
    def rows(self) -> np.ndarray:
        """The index rows that can be drawn, int32."""
        return self._plan["rows"]

    @property
    def world_size(self) -> int:
        """Number of processes.

        Raises:
            TerraFMError: If there are more of them than draws.
        """
        size = _processes()[1] if self._world_size is None else self._world_size
        if size > self.global_length:
            raise TerraFMError(
                f"{size} processes cannot share {self.global_length} tiles: start at most "
                f"{self.global_length} processes, or give more tiles."
            )
        return size

    @property
    def _place(self) -> int:
        return _processes()[0] if self._rank is None else self._rank

    @property
    def expected_counts(self) -> np.ndarray:
        """Expected count of each of ``rows`` in an epoch, float64."""
        counts = np.empty(len(self.rows))
        counts[self._plan["order"]] = np.diff(self._plan["cumulative"], prepend=0) / 2.0**_BITS
        return counts

    def land_cover_share(self) -> np.ndarray:
        """Expected share of the draws per class, (12,); tiles of unknown class count only below the line."""
        return self._plan["share"]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose list the next iteration gives; Lightning calls it. Evaluation has one list."""
        self.epoch = epoch if self.shuffle else 0

    def global_rows(self) -> np.ndarray:
        """The epoch's whole list: the index row of each position, (global_length,)."""
        phase = int(np.random.default_rng([self.seed, 1]).integers(1 << _BITS))
        phase = (phase + self.epoch * _GOLDEN) % (1 << _BITS)
        counts, before = np.empty(len(self.rows), np.int32), 0
        for part in (slice(start, start + _PART) for start in range(0, len(counts), _PART)):  # so as to take no memory
            sums = (self._plan["cumulative"][part] + phase) >> _BITS
            counts[self._plan["order"][part]] = np.diff(sums, prepend=before)
            before = sums[-1]
        draws = np.repeat(self.rows, counts)
        if self.shuffle:
            np.random.default_rng([self.seed, 2, self.epoch]).shuffle(draws)
        return draws

    def random_row(self, rng: np.random.Generator) -> int:
        """One row drawn by the same weights, to stand in for a tile that cannot be read."""
        sums = self._plan["cumulative"]
        place = np.searchsorted(sums, rng.integers(sums[-1]), side="right")
        return int(self.rows[self._plan["order"][place]])

    def __len__(self) -> int:
        """Draws of this rank in an epoch."""
        return len(range(self._place, self._end(0), self.world_size))

    def __iter__(self) -> Iterator[TileSlice]:
        """Yield this rank's draws, from position ``start`` of the list on."""
        epoch, first, ranks = self.epoch, self.start + self._place, self.world_size
        for place, row in enumerate(self.own_rows()):
            yield self.tiles.tile_slice(int(row), position=first + place * ranks, epoch=epoch)

    def own_rows(self) -> np.ndarray:
        """The index rows of this rank's draws in the epoch from ``start`` on, int32."""
        mine = self.global_rows()[self.start + self._place : self._end(self.start) : self.world_size]
        return mine.copy()  # so that the whole list can be freed

    def _end(self, start: int) -> int:
        """The end of an epoch that is resumed at ``start``: in training behind its last whole optimizer step."""
        step = max(self.step, self.world_size)
        return self.global_length - (self.global_length - start) % step if self.shuffle else self.global_length


def _processes() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    known = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if known else (0, 1)


def _plan(
    index: pd.DataFrame,
    candidates: np.ndarray,
    length: int | None,
    power: float,
    by: Sequence[str],
    ocean_keep: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """Weighs tiles; arguments as of the class.

    Returns:
        ``rows`` int32 (n,), the candidates that are kept; ``order`` int32 (n,), in which sampling walks them;
        ``cumulative`` int64 (n,), their fixed-point expected counts summed up in that order; ``share`` (12,), the
        expected share of the draws per class.
    """
    kept = candidates[~_dropped_ocean(index, ocean_keep, seed)[candidates]]
    if len(kept) == 0:
        raise TerraFMError(
            f"No tile is left to draw from: of {len(candidates)}, `ocean_keep={ocean_keep}` drops those "
            "in ocean cells: raise it, or check the index."
        )
    length = len(kept) if length is None else length
    groups = _groups(index, kept, by)
    weights = np.bincount(groups)[groups] ** -float(power)
    fixed = np.rint(weights / weights.sum() * length * 2.0**_BITS).astype(np.int64)
    fixed[fixed.argmax()] += (length << _BITS) - fixed.sum()  # rounding: below 0.001 draws
    # Systematic sampling walks the groups one by one, tiles of a group in random order: in index order, a
    # step of four tiles would meet the same quadrant of every cell.
    shuffled = np.random.default_rng([seed, 0]).permutation(len(kept)).astype(np.int32)
    by_size = groups.astype(np.min_scalar_type(groups.max()))  # short integers sort five times as fast
    order = shuffled[np.argsort(by_size[shuffled], kind="stable")]
    land_cover = _column(index, "land_cover", kept)
    known = land_cover >= 0
    share = np.bincount(land_cover[known], fixed[known], OCEAN + 1) / fixed.sum()
    return {"rows": kept.astype(np.int32), "order": order, "cumulative": np.cumsum(fixed[order]), "share": share}


def _column(index: pd.DataFrame, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Some rows of a class column as integers, unknown as -1; all unknown where land cover was never looked up.

    Raises:
        TerraFMError: If the index has no such column.
    """
    if name in index:
        return index[name].iloc[rows].fillna(-1).to_numpy(np.int64)
    if name == "land_cover":
        return np.full(len(index), -1)[rows]
    raise TerraFMError(
        f"The index has no column {name!r} to weigh tiles by: write it with `terrafm index`, or leave it out of `by`."
    )


def _groups(index: pd.DataFrame, rows: np.ndarray, by: Sequence[str]) -> np.ndarray:
    """The number of each row's group: one group per combination of values that occurs."""
    groups = np.zeros(len(rows), np.int64)
    for name in by:
        values = pd.factorize(_column(index, name, rows))[0]
        groups = pd.factorize(groups * (values.max() + 1) + values)[0]
    return groups


def _dropped_ocean(index: pd.DataFrame, keep: float, seed: int) -> np.ndarray:
    """Returns whether each tile lies in an ocean cell that is left out, bool (rows,)."""
    land_cover = None if keep == 1 else _column(index, "land_cover")
    if land_cover is None or not (land_cover == OCEAN).any():
        return np.zeros(len(index), bool)
    codes, names = pd.factorize(index["cell"])
    ocean = 2 * np.bincount(codes, land_cover == OCEAN) > np.bincount(codes, land_cover >= 0)
    # SipHash keyed by the seed: the same on every machine, whatever else the index holds.
    hashes = pd.util.hash_array(np.asarray(names[ocean], object), hash_key=f"{seed % 2**64:016x}")
    ocean[ocean] = hashes / 2.0**64 >= keep
    return ocean[codes]
