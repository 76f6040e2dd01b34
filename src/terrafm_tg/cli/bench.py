"""``terrafm bench``: any encoders on the benchmarks, beside the published scores."""

from collections.abc import Sequence

from terrafm_tg.evaluation.bench.command import run_bench

from .options import ToolParser, find_configs


def run(command: str, words: Sequence[str]) -> None:
    """Runs the benchmarks; the same command again resumes."""
    parser = ToolParser(command)
    parser.add_function(run_bench)
    run_bench(**parser.parse(find_configs(words)))
