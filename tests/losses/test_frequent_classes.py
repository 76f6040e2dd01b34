import numpy as np
import pytest

from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.losses.dual_center import frequent_by_name, frequent_by_share


def test_frequent_exceeds_an_even_share_of_the_classes_present() -> None:
    share = np.array([0.5, 0, 0.2, 0.19, 0, 0, 0, 0.11, 0, 0, 0, 0])
    assert frequent_by_share(share) == [0]  # four classes: more than 0.25
    assert frequent_by_share(np.array([0.4, 0.3, 0.28, 0.02] + [0] * 8)) == [0, 1, 2]


def test_names_in_any_case() -> None:
    assert frequent_by_name(["tree cover", CLASS_NAMES[11].upper()]) == [0, 11]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: frequent_by_share(None), "land cover of every tile is unknown"),
        (lambda: frequent_by_share(np.zeros(12)), "land cover of every tile is unknown"),
        (lambda: frequent_by_share(np.eye(12)[4]), "1 class"),
        (lambda: frequent_by_name(["Jungle"]), "'Jungle'"),
        (lambda: frequent_by_name([]), "is empty"),
    ],
)
def test_no_frequent_class_gives_one_sentence(call, says: str) -> None:
    with pytest.raises(TerraFMError, match=says):
        call()
