"""Rules of the house that no linter has: sizes of folders and files, one name one place, docstrings, spelling."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/terrafm_tg"
RELATIVE = re.compile(r"(What|Whose|Who|Whom|Where|Whether|Which|When|How)\b")
# `centre_lat` and `centre_lon` are columns of Major-TOM.
BRITISH = re.compile(
    r"colour|neighbour|[lr]ise[drs]?(_|$)|[lr]ising|isation|[tn]ise[drs]?(_|$)|centre(?!_lat|_lon)|catalogue|metres?(_|$)|grey|behaviour",
    re.IGNORECASE,
)
#: Words that end as British ones do and are not.
SPELLED = re.compile(r"noise|raise|rise|precise|otherwise|likewise|piecewise|pairwise|denoise", re.IGNORECASE)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package by its path below it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def test_a_folder_holds_at_most_fifteen_modules_or_packages() -> None:
    for folder in (path.parent for path in PACKAGE.rglob("__init__.py")):
        inside = [x for x in folder.iterdir() if x.suffix == ".py" or (x / "__init__.py").exists()]
        if folder not in (PACKAGE, PACKAGE / "cli"):
            assert len(inside) - 1 <= 15, folder


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("src", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not {str(p.relative_to(ROOT)) for p in files if len(p.read_text().splitlines()) > 400}


def test_each_test_file_has_a_name_of_its_own() -> None:
    """Or else pytest takes one for the other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_each_public_name_is_defined_once() -> None:
    found = defaultdict(list)
    for path, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    # A command is called as the function that it runs.
    places = {name: [p for p in paths if not p.startswith("cli/")] for name, paths in found.items()}
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_no_docstring_opens_with_a_relative_clause() -> None:
    found = []
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                if RELATIVE.match(text):
                    found.append(f"{path}: {text.splitlines()[0]}")
    assert not found


def names_in(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives: of functions, classes, arguments and what it assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def british(name: str) -> bool:
    """Whether a name is spelled the British way."""
    return bool(BRITISH.search(SPELLED.sub("", name)))


def test_names_are_spelled_the_american_way() -> None:
    assert not {(path, name) for path, tree in modules() for name in names_in(tree) if british(name)}


def test_british_spelling_is_noticed_and_american_left_alone() -> None:
    assert all(map(british, ["normalise", "quantised", "COLOURS", "to_metres", "centres", "neighbour_of"]))
    assert not any(
        map(british, ["normalize", "noise", "precise_rows", "centre_lat", "pairwise", "raises", "parameters"])
    )
