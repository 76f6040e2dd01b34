"""``terrafm simulate``: a world to try everything on, without a download."""

from collections.abc import Sequence

from terrafm_tg.simulation.dataset import simulate

from .options import ToolParser


def run(command: str, words: Sequence[str]) -> None:
    """Writes the world, and names the next command."""
    parser = ToolParser(command)
    parser.add_function(simulate, skip={"part_bytes"})
    options = parser.parse(words)
    simulate(**options)
    print(
        f"Simulated world of {options['cells']} cells in {options['root']}. Next: terrafm fit --config "
        f"pretrain --config data/simulated --data.root {options['root']}"
    )
