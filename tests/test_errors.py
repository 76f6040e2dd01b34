"""Errors reach a person as one sentence, from whichever process."""

import pytest
from torch.utils.data import DataLoader, Dataset

from terrafm_tg.errors import TerraFMError


class Damaged(Dataset):
    """Every sample of it is damaged, for a reason."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        try:
            return int("nothing")
        except ValueError as error:
            raise TerraFMError(f"sample_{index}.tif cannot be read: fetch it again.") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_error_is_the_same_sentence(workers: int) -> None:
    with pytest.raises(TerraFMError) as info:
        next(iter(DataLoader(Damaged(), num_workers=workers)))
    assert str(info.value) == "sample_0.tif cannot be read: fetch it again."
