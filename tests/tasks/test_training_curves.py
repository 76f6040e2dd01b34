from pathlib import Path

import pytest
from curves import LOSS, main


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_fast_and_plain_training_end_alike(tmp_path: Path) -> None:
    """Three seeds each on the simulated world: loss and every k-NN accuracy, within noise."""
    result = main(tmp_path)
    assert result.loc[LOSS, "fast"] == pytest.approx(result.loc[LOSS, "plain"], rel=0.02)
    noise = (2.5 * result.error).clip(lower=0.04)  # of 240 queries and three seeds
    assert (result.difference.abs() <= noise)[result.index != LOSS].all(), result
