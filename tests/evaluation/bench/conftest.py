"""The benchmarks in small, written once."""

from pathlib import Path

import pytest
from tiny_bench import write_benchmarks, write_weights


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all datasets."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny encoder."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pth")
