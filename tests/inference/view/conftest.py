"""A page of two scenes, and the engines that run its script: Node.js alone, or a real browser."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.view.browser import VARIABLE, Page, find_browser
from inference.view.maps import write_scene
from terrafm_tg.inference import view
from terrafm_tg.inference.view import Written, write_page


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scenes: embeddings, preview, classes and change of each."""
    folder = tmp_path_factory.mktemp("maps")
    for seed, name in enumerate(("march", "july")):
        write_scene(folder, name, seed=seed)
    return folder


@pytest.fixture(scope="session")
def written(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The page of both scenes."""
    return write_page(maps, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="session")
def script() -> Callable[..., Any]:
    """Runs an expression with the page's arithmetic in Node.js; ``given`` is what it is given as plain values."""
    if (node := shutil.which("node")) is None:
        pytest.skip("no Node.js on the path: the page's arithmetic is not run without a browser")

    def run(expression: str, given: Any = None) -> Any:
        logic = (Path(view.__file__).parent / "map.js").read_text()
        end = f"(async () => {expression})().then((found) => console.log(JSON.stringify(found)));"
        code = f'{logic}\nconst given = JSON.parse(require("fs").readFileSync(0, "utf8"));\n{end}'
        found = subprocess.run([node, "-e", code], input=json.dumps(given), capture_output=True, text=True, timeout=60)
        assert not found.returncode, found.stderr
        return json.loads(found.stdout)

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A real browser with one page."""
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: set {VARIABLE} to a Chromium or Chrome, or install one (CONTRIBUTING.md)")
    page = Page(program, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()
