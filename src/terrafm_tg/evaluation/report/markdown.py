"""The report as Markdown, with tables that line up in a plain text editor."""

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from .blocks import Cell, Section, Table


def to_markdown(sections: Sequence[Section], title: str) -> str:
    """All sections; charts are left out, since every number of them stands in a table."""
    parts = [f"# {escape(title)}"]
    for section in sections:
        parts.append(f"{'#' * section.level} {escape(section.title)}")
        parts += [escape(text) for text in section.text]
        for block in section.blocks:
            if isinstance(block, Table):
                parts += list(_table(block, section.title))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML inside of it show as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)


def _table(table: Table, above: str) -> Iterator[str]:
    if table.title != above:
        yield f"**{escape(table.title)}**"
    rows = [[escape(name) for name in table.header], *([_cell(cell) for cell in row] for row in table.rows)]
    widths = [max(3, *(cell_len(row[i]) for row in rows)) for i in range(len(table.header))]
    right = [i >= table.words and table.kind != "words" for i in range(len(widths))]
    rule = [f"{'-' * (w - 1)}:" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    lines = [
        "| " + " | ".join(_pad(text, w, r) for text, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in [rows[0], rule, *rows[1:]]
    ]
    yield "\n".join(lines)
    if table.note:
        yield escape(table.note)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.tone == "best":
        text = f"**{text}**"
    return f"{text} ({escape(cell.small)})" if cell.small else text


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space
