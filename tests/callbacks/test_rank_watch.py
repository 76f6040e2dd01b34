import pytest

from terrafm_tg.callbacks import RankWatch
from terrafm_tg.errors import TerraFMError


@pytest.mark.parametrize(("interval", "silence"), [(5, 5), (0, 30), (40, 30)])
def test_an_impossible_silence_gives_one_sentence(interval: float, silence: float) -> None:
    with pytest.raises(TerraFMError, match=f"`interval` is {interval} and `silence` {silence}: seconds between"):
        RankWatch(interval, silence)
