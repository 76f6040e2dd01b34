"""``terrafm simulate``: a world to try everything on, without a download."""

from collections.abc import Sequence

from terrafm_tg.simulation.dataset import simulate

from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Writes the world, and names the next command."""
    options = read_options(command, words, simulate, skip={"part_bytes"})
    simulate(**options)
    print(
        f"Simulated world of {options['cells']} cells in {options['root']}. Next: terrafm fit --config "
        f"pretrain --config data/simulated --data.root {options['root']}"
    )
