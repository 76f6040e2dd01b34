"""The weights' preprocessing against the paper's formula."""

import numpy as np
import pytest
import torch
from torchgeo.models import get_weight

from terrafm_tg.modalities import MODALITIES


@pytest.mark.parametrize("name", MODALITIES)
def test_normalises_as_the_paper(name: str) -> None:
    modality = MODALITIES[name]
    transforms = get_weight("terrafm_base").transforms(name, size=32)
    mean, std = (np.array(v)[:, None, None] for v in (modality.mean, modality.std))
    x = np.random.default_rng(0).normal(mean, std, (2, len(modality.bands), 32, 32))
    ours = transforms(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(ours, (x - (mean - 2 * std)) / (4 * std), atol=1e-5)
    np.testing.assert_allclose(transforms(torch.from_numpy(mean + np.zeros((1, 32, 32)))), 0.5, atol=1e-6)


def test_resizes_and_takes_bands() -> None:
    transforms = get_weight("terrafm_base").transforms(bands=("B04", "B03", "B02"))
    assert transforms(1000 * torch.rand(2, 3, 264, 120)).shape == (2, 3, 224, 224)
    mean = torch.tensor([1526.9789, 1382.2553, 1135.3391])[:, None, None].expand(3, 224, 224)
    torch.testing.assert_close(transforms(mean), torch.full((3, 224, 224), 0.5))
