"""``terrafm view``: one HTML page that shows maps and searches in embeddings."""

from collections.abc import Sequence

from terrafm_tg.inference.view import write_page

from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Writes the page, and says what it holds and what was reduced."""
    written = write_page(**read_options(command, words, write_page))
    scenes = f"{len(written.scenes)} scene{'s' * (len(written.scenes) != 1)}"
    print(f"{written.path}: {scenes}, {written.size / 1e6:.1f} MB. Open it in a browser.")
    for note in written.notes:
        print(note)
