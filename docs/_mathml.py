"""A hook of the documentation's build: turns TeX into MathML, so that formulas need no script and no network."""

import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r"\\\((?P<inline>.+?)\\\)|\\\[(?P<block>.+?)\\\]", re.DOTALL)
#: HTML's entities, and alphabets that fonts without mathematics lack.
_SIGNS = {"&lt;": "<", "&gt;": ">", "&amp;": "&", r"\mathbb R": "ℝ", r"\mathcal N": "𝒩", r"\mathcal L": "ℒ"}
_SIGNS |= {r"\mathcal H": "ℋ"}


def on_page_content(html: str, **_: object) -> str:
    """Replaces the formulas that `pymdownx.arithmatex` marks by MathML."""

    def mathml(found: re.Match[str]) -> str:
        tex = found["inline"] or found["block"]
        for word, sign in _SIGNS.items():
            tex = tex.replace(word, sign)
        return convert(tex, display="inline" if found["inline"] else "block")

    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>)", html, flags=re.DOTALL)
    parts[::2] = [_FORMULA.sub(mathml, part) for part in parts[::2]]  # code keeps its backslashes
    return "".join(parts)
