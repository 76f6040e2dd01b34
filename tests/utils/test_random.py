import numpy as np
import pytest
from scipy import stats

from terrafm_tg.utils.random import _mix, keyed_uniform

GOLDEN = 0x9E3779B97F4A7C15


def reference(seed, name, epoch, view, position, count):
    """The definition, in Python's own integers."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    key = 0
    for part in (seed, name, epoch, view, position):
        key = mix((key + part + GOLDEN) % 2**64)
    return [(mix((key + k * GOLDEN) % 2**64) >> 11) / 2**53 for k in range(1, count + 1)]


def test_published_splitmix64_sequence():
    steps = 1234567 + np.arange(1, 6, dtype=np.uint64) * np.uint64(GOLDEN)
    assert _mix(steps).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


def test_equals_the_definition():
    ours = keyed_uniform(3, 5, [7, 2**40, -1], view=2, count=4, stream=9)
    for row, position in zip(ours, (7, 2**40, -1), strict=True):
        assert row.tolist() == reference(3, 9, 5, 2, position, 4)


def test_stays_what_it_was():
    """A resumed run must see the views of the run that it continues, whatever the version of NumPy."""
    values = keyed_uniform(0, 1, [0, 1], view=3, count=2, stream="crop")
    assert values.ravel().tolist() == [0.7521913340370348, 0.5637658903866067, 0.6400119533869751, 0.48495445987910335]


def test_independent_of_the_company():
    together = keyed_uniform(0, 0, np.arange(10), view=np.arange(4)[:, None], count=3, stream="x")
    assert together.shape == (4, 10, 3)
    alone = keyed_uniform(0, 0, 6, view=2, count=5, stream="x")
    assert together[2, 6].tolist() == alone[:3].tolist()
    epochs = keyed_uniform(0, np.array([0, 1]), np.array([6, 6]), view=2, count=3, stream="x")
    assert epochs[0].tolist() == together[2, 6].tolist()
    assert epochs[1].tolist() != epochs[0].tolist()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("positions", lambda: keyed_uniform(1, 0, np.arange(20_000), 0, 1)[:, 0]),
        ("views", lambda: keyed_uniform(1, 0, 0, np.arange(20_000), 1)[:, 0]),
        ("epochs", lambda: keyed_uniform(1, np.arange(20_000), 0, 0, 1)[:, 0]),
        ("counts", lambda: keyed_uniform(1, 0, 0, 0, 20_000)),
        ("seeds", lambda: np.concatenate([keyed_uniform(s, 0, 0, 0, 1) for s in range(4_000)])),
    ],
)
def test_uniform_and_independent_of_its_neighbour(name, values):
    u = values()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    pairs, *_ = np.histogram2d(u[:-1], u[1:], bins=8, range=[[0, 1], [0, 1]])
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_streams_are_independent():
    a, b = (keyed_uniform(0, 0, np.arange(20_000), 0, 1, stream)[:, 0] for stream in ("student", "teacher"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
