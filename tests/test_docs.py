"""The documentation quotes the source as it is, and links to what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
QUOTE = re.compile(r'```python title="(?P<path>[^"]+)"\n(?P<code>.*?)```', re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _bare(code: str) -> str:
    """Without what a formatter may change: white space and trailing commas."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


def _quotes() -> list[tuple[str, str, str]]:
    return [(page.name, m["path"], m["code"]) for page in PAGES for m in QUOTE.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "path", "code"), _quotes())
def test_quoted_lines_are_the_source(page: str, path: str, code: str):
    assert _bare(code) in _bare((ROOT / path).read_text()), f"{page} quotes lines that {path} no longer has"


def test_formulas_stand_beside_code():
    assert sum(page == "method.md" for page, _, _ in _quotes()) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {', '.join(missing)}"


def test_the_examples_of_the_quick_start_run(small_world: Path, tmp_path: Path):
    """In their order, in one namespace, as a reader would type them."""
    names = {"world": small_world, "out": tmp_path}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/quick_start.md").read_text(), re.DOTALL):
        exec(compile(code, "docs/quick_start.md", "exec"), names)
    assert names["embedding"].shape == (4, 192)
