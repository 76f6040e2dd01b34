"""``terrafm bench``: any encoders on the benchmarks, beside the published scores."""

from collections.abc import Sequence

from terrafm_tg.evaluation.bench.command import run_bench

from .main import SENTENCES
from .options import ToolParser, find_configs


def run(command: str, words: Sequence[str]) -> None:
    """Runs the benchmarks; the same command again resumes.

    Args:
        command: Name of the command.
        words: Its options: those of :func:`~terrafm_tg.evaluation.bench.command.run_bench`, such as ``--config
            conf/bench/geobench_knn.yaml --root data/bench --models [terrafm_base,pixel-statistics]``.
    """
    parser = ToolParser(command, SENTENCES[command])
    parser.add_function(run_bench)
    run_bench(**parser.parse(find_configs(words)))
