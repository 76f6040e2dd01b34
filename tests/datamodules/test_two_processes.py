"""Real ``ddp`` over gloo, by a script's default settings: ranks share each epoch's list; both validate."""

import json
from itertools import chain

import numpy as np
import toy_runs
from memory_tiles import MemoryDataModule

from processes import start


def test_two_processes_share_the_draws(tmp_path) -> None:
    process = start(toy_runs.run_on_two_processes, tmp_path)
    process.join(120)
    assert process.exitcode == 0

    def lines(name):
        return [
            [json.loads(line) for line in (tmp_path / f"{name}.{rank}").read_text().splitlines()] for rank in (0, 1)
        ]

    data = MemoryDataModule(edge=8, batch_size=3, epoch_length=31, val_bank=9, val_queries=5)
    for epoch in (0, 1):
        data.sampler.set_epoch(epoch)
        whole = data.sampler.global_rows()
        ranks = [[line for line in rank if line[0] == epoch] for rank in lines("train")]
        assert [len(rank) for rank in ranks] == [5, 5]  # 31 draws: 5 steps of 2 x 3
        for step, (first, second) in enumerate(zip(*ranks, strict=True)):
            positions = sorted(first[1] + second[1])
            assert positions == list(range(6 * step, 6 * step + 6))
            assert dict(zip(first[1] + second[1], first[2] + second[2], strict=True)) == {
                p: int(whole[p]) for p in positions
            }
    for name, picked in (("val0", data.bank[:8]), ("val1", data.queries[:4])):
        ranks = [[line for line in rank if line[0] == 0] for rank in lines(name)]
        assert len(ranks[0]) == len(ranks[1])
        seen = sorted(chain.from_iterable(row for _, _, row in chain(*ranks)))
        np.testing.assert_array_equal(seen, picked)
