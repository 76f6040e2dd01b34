"""Write the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from terrafm_tg.utils.files import write_text

from .content import sections
from .markdown import to_markdown
from .page import to_html

_TITLE = "Benchmark of encoders"


def write_report(
    results: pd.DataFrame, out: Path, skipped: Sequence[Mapping[str, Any]] = (), title: str = _TITLE
) -> Path:
    """Write ``report.md`` and ``report.html``; the same table gives the same bytes.

    The page needs nothing but itself: no script, no font, no picture from elsewhere.

    Args:
        results: The tidy table of ``terrafm bench``, one row per score.
        out: The folder; made where missing.
        skipped: What was asked for and not run: a mapping each, such as ``{"dataset": "m-so2sat", "why": "..."}``.
        title: Above the report.

    Returns:
        The path of the page.

    Raises:
        TerraFMError: If the table lacks a column.
    """
    chapters = sections(results, skipped)
    write_text(out / "report.md", to_markdown(chapters, title))
    page = out / "report.html"
    write_text(page, to_html(chapters, title))
    return page
