"""Errors reach a person as one sentence, from whichever process."""

import pytest
from torch.utils.data import DataLoader

from terrafm_tg.errors import TerraFMError


def damaged(samples: list[int]) -> None:
    """Cannot be read, for a reason."""
    try:
        int("nothing")
    except ValueError as error:
        raise TerraFMError(f"sample_{samples[0]}.tif cannot be read: fetch it again.") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_error_is_the_same_sentence(workers: int) -> None:
    with pytest.raises(TerraFMError) as info:
        next(iter(DataLoader(range(2), collate_fn=damaged, num_workers=workers)))
    assert str(info.value) == "sample_0.tif cannot be read: fetch it again."
