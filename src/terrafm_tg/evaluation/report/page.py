"""The report as one HTML page that asks the network for nothing."""

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from .blocks import Curves, Dots, Group, Section, Table

_FILES = files("terrafm_tg.evaluation.report")
_KINDS = {Table: "table", Group: "group", Dots: "dots", Curves: "curves"}


def to_html(sections: Sequence[Section], title: str) -> str:
    """All sections with their charts; every text is escaped."""
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["kind"] = lambda block, name: _KINDS[type(block)] == name
    style = Markup(_read("report.css"))  # ours, and CSS must not be escaped
    return environment.get_template("report.html.j2").render(sections=sections, title=title, style=style)


def _read(name: str) -> str:
    return (_FILES / name).read_text()
