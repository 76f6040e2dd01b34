import numpy as np
import pytest

from terrafm_tg.tasks.pretrain.optimization import Schedules, warmup_steps

PAPER = Schedules(
    steps=1000,
    lr=(2e-3, 1e-6),
    lr_warmup=100,
    weight_decay=(0.04, 0.4),
    teacher_momentum=(0.996, 1.0),
    teacher_temp=(0.04, 0.06),
    temp_warmup=300,
    frozen=10,
)


def cosine(start: float, end: float, count: int) -> np.ndarray:
    """DINO's ``cosine_scheduler`` without warm-up, over ``count`` steps, both ends included."""
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(count) / (count - 1)))


def test_follow_the_formulas() -> None:
    values = np.array([PAPER.at(step) for step in range(PAPER.steps)])
    lr, weight_decay, momentum, temp = values.T
    np.testing.assert_allclose(lr[:100], 2e-3 * np.arange(1, 101) / 100)
    np.testing.assert_allclose(lr[100:], cosine(2e-3, 1e-6, 900))
    np.testing.assert_allclose(weight_decay, cosine(0.04, 0.4, 1000))
    np.testing.assert_allclose(momentum, cosine(0.996, 1.0, 1000))
    np.testing.assert_allclose(temp[:300], 0.04 + 0.02 * np.arange(300) / 300)
    np.testing.assert_allclose(temp[300:], 0.06)


def test_stay_at_their_end_after_the_last_step() -> None:
    assert PAPER.at(1000) == PAPER.at(999)


@pytest.mark.parametrize(("epochs", "expected"), [(0, 0), (2, 20), (5, 50), (5.5, 50), (30, 50)])
def test_a_warmup_takes_at_most_half_of_the_run(epochs: float, expected: int) -> None:
    assert warmup_steps("warmup_epochs", epochs, steps_per_epoch=10, steps=100) == expected
