import pytest
import torch

from terrafm_tg.datasets import collate_tiles
from terrafm_tg.errors import TerraFMError


def test_modalities_keep_their_places():
    coarse = torch.full((2, 1, 1), 5).to(torch.uint16)
    samples = [
        {"image_s1rtc_10m": torch.full((2, 6, 6), 1.0), "image_s2l2a_60m": coarse, "row": torch.tensor(7)},
        {"image_s2l2a_60m": coarse, "row": torch.tensor(8)},
        {"image_s1rtc_10m": torch.full((2, 6, 6), 3.0), "row": torch.tensor(9)},
    ]
    batch = collate_tiles(samples)
    assert batch["sample_idx_s1rtc"].tolist() == [0, 2]
    assert batch["image_s1rtc_10m"][:, 0, 0, 0].tolist() == [1.0, 3.0]
    assert batch["sample_idx_s2l2a"].tolist() == [0, 1]
    assert batch["image_s2l2a_60m"].dtype == torch.uint16
    assert batch["row"].tolist() == [7, 8, 9]
    assert not [key for key in batch if "s2l1c" in key]


def test_tiles_of_different_size_are_refused_in_words():
    samples = [{"image_s1rtc": torch.zeros(2, 6, 6)}, {"image_s1rtc": torch.zeros(2, 12, 12)}]
    with pytest.raises(TerraFMError, match=r"2 x 6 x 6 and 2 x 12 x 12.*tile_size"):
        collate_tiles(samples)
