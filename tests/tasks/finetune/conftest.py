"""A published encoder as a file, in its own layout and as TorchGeo's tasks take it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import published_weights
from terrafm_tg.models import export_encoder


@pytest.fixture(scope="package")
def published() -> dict[str, Tensor]:
    """`terrafm_tiny` in the published layout."""
    return published_weights.tiny()


@pytest.fixture(scope="package")
def file(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("weights") / "TerraFM-T.pth"
    torch.save(published, path)
    return path


@pytest.fixture(scope="package")
def checkpoint(file: Path) -> Path:
    """The same as TorchGeo's tasks take it."""
    return export_encoder(file, file.with_name("encoder"))[1]
