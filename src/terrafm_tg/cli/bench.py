"""``terrafm bench``: any encoders on the benchmarks, beside the published scores."""

from collections.abc import Sequence

from terrafm_tg.evaluation.bench.command import run_bench

from .options import find_configs, read_options


def run(command: str, words: Sequence[str]) -> None:
    """Runs the benchmarks; the same command again resumes."""
    run_bench(**read_options(command, find_configs(words), run_bench))
