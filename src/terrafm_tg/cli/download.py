"""``terrafm download``: a subset of Major-TOM Core, by range requests, and its index."""

from collections.abc import Sequence
from dataclasses import fields

from terrafm_tg.datasets.majortom.download import Selection, download, download_summary

from .index import write_index_of
from .options import read_options


def run(command: str, words: Sequence[str]) -> None:
    """Downloads, says what came, and builds the index; the same command again resumes."""
    index_option = (bool, True, "Build the index afterwards, as `terrafm index ROOT` does.")
    options = read_options(command, words, download, Selection, skip={"selection"}, index=index_option)
    index, dry_run = options.pop("index"), options["dry_run"]
    selection = Selection(**{field.name: options.pop(field.name) for field in fields(Selection)})
    print(download_summary(download(selection=selection, **options), dry_run))
    if index and not dry_run:
        write_index_of(options["root"])
    elif not dry_run:
        print(f"Next: terrafm index {options['root']}")
