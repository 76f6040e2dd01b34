"""Weights of a tiny encoder, written once."""

from pathlib import Path

import pytest
import torch

from terrafm_tg.models import build_encoder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny encoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(build_encoder("terrafm_nano", depth=4).state_dict(), path)
    return path
