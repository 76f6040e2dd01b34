"""Fixtures of the downloads: a source and its server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.majortom.download_runs import write_source
from datasets.range_server import RangeServer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture
def server(source: Path) -> Iterator[RangeServer]:
    with RangeServer(source) as server:
        yield server
