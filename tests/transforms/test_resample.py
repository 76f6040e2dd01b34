import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d
from scipy.interpolate import make_interp_spline

from terrafm_tg.transforms.resample import blur_matrices, full_precision, resample, with_shares

WHOLE = [0.0, 1.0, 0.0, 1.0]


def one(image, box, size, complete=False, **settings):
    """One view (C, size, size) of one image (C, H, W)."""
    images = image[None] if complete else with_shares(image[None])
    source, box = torch.zeros(1, dtype=torch.int64), torch.tensor([box])
    return resample(images, source, box, size, shares=not complete, **settings)[0]


def interval():
    ends = st.tuples(st.floats(0, 0.95), st.floats(0.05, 1)).map(lambda t: (t[0], t[0] + (1 - t[0]) * t[1]))
    return st.tuples(ends, st.booleans()).map(lambda t: t[0][::-1] if t[1] else t[0])


@settings(max_examples=60, deadline=None)
@given(
    tile=st.integers(2, 90).map(lambda n: 6 * n),
    size=st.sampled_from([1, 7, 16, 48, 49, 96, 97, 224]),
    rows=interval(),
    columns=interval(),
    extent=st.booleans(),
    blurred=st.booleans(),
)
def test_a_ramp_is_equal_in_every_resolution(tile, size, rows, columns, extent, blurred):
    """Bands of 10, 20 and 60 m show the same map coordinate in each cell, to 0.05 of a 10 m pixel."""
    box = (*rows, *columns)
    largest = max(abs(rows[1] - rows[0]), abs(columns[1] - columns[0])) if extent else 1.0
    blur = blur_matrices(torch.zeros(1), size, 3) if blurred else None
    centre = (np.arange(size) + 0.5) / size
    y, x = (tile * (a + (b - a) * centre) for a, b in (rows, columns))
    for step in (1, 2, 6):
        pixels = (np.arange(tile // step) + 0.5) * step  # map coordinates in pixels of 10 m
        image = np.stack(np.meshgrid(pixels, pixels, indexing="ij"))
        stored = torch.from_numpy(np.round(100 * image)).to(torch.uint16)
        view = one(stored, box, size, extent=largest, blur=blur).numpy() / 100
        np.testing.assert_allclose(view[0], np.broadcast_to(y[:, None], (size, size)), atol=0.05)
        np.testing.assert_allclose(view[1], np.broadcast_to(x, (size, size)), atol=0.05)


def integrate(image, box, size):
    """The mean of the linear interpolant over each cell, by SciPy's exact integral of splines of degree 1."""
    for axis, (a, b) in enumerate((box[:2], box[2:])):
        n = image.shape[axis]
        spline = make_interp_spline(np.arange(n), image, k=1, axis=axis).antiderivative()
        edges = (a + (b - a) * np.linspace(0, 1, size + 1)) * n - 0.5
        image = np.diff(spline(edges, extrapolate=True), axis=axis)
        image /= np.expand_dims(np.diff(edges), 1 - axis)
    return image


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 70), st.integers(2, 70)),
    size=st.sampled_from([1, 5, 16, 33, 64]),
    rows=interval(),
    columns=interval(),
    seed=st.integers(0, 99),
)
def test_equals_the_integral_of_the_interpolant(shape, size, rows, columns, seed):
    image = 1 + np.random.default_rng(seed).random(shape)
    view = one(torch.from_numpy(image)[None].float(), (*rows, *columns), size, complete=True)[0]
    np.testing.assert_allclose(view, integrate(image, (*rows, *columns), size), atol=2e-4)


def test_blur_equals_kornias():
    image = 1 + torch.rand(2, 128, 128, generator=torch.Generator().manual_seed(0))
    box = [0.2, 0.8, 0.3, 0.9]
    for sigma in (0.3, 1.2):
        blur = blur_matrices(torch.tensor([sigma]), 64, 4)
        ours = one(image, box, 64, blur=blur, extent=0.6)
        theirs = gaussian_blur2d(one(image, box, 64)[None], (9, 9), (sigma, sigma))[0]
        torch.testing.assert_close(ours[:, 4:-4, 4:-4], theirs[:, 4:-4, 4:-4], atol=1e-4, rtol=0)


def test_blur_of_a_whole_tile_keeps_its_brightness():
    blur = blur_matrices(torch.tensor([1.5]), 32, 4)
    view = one(torch.full((1, 40, 40), 7.0), WHOLE, 32, blur=blur)
    torch.testing.assert_close(view, torch.full_like(view, 7.0))


@pytest.mark.parametrize("hole", [0.0, -32768.0, float("nan"), float("inf"), -float("inf")])
def test_missing_pixels_spread_nowhere(hole):
    image = torch.full((2, 60, 60), 5.0)
    image[0, 20:40, 10:30] = hole
    view = one(image, WHOLE, 30)
    missing = view.isnan()
    assert missing[0, 10:20, 5:15].all()
    assert missing.sum() == 100  # no cell besides those of the hole, and none in the other band
    torch.testing.assert_close(view[~missing], torch.full_like(view[~missing], 5.0))


def test_missing_integers():
    image = torch.full((1, 30, 30), 60_000, dtype=torch.int32).to(torch.uint16)
    image[0, :, :5] = 0
    view = one(image, WHOLE, 60)
    assert view[0, :, :10].isnan().all()
    torch.testing.assert_close(view[0, :, 10:], torch.full((60, 50), 60_000.0))


def test_a_cell_is_missing_where_less_than_half_of_it_is_there():
    image = torch.full((1, 40, 40), 3.0)
    image[0, ::4] = 0  # a quarter of each cell of 4 x 4 pixels
    assert not one(image, WHOLE, 10).isnan().any()
    image[0, 1::4] = image[0, 2::4] = 0
    assert one(image, WHOLE, 10).isnan().all()


def test_neither_autocast_nor_a_lower_precision_touches_it():
    image = torch.arange(534.0).expand(1, 534, 534) + 1
    expected = one(image, WHOLE, 224)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            ours = one(image, WHOLE, 224)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_precision_is_restored_after_an_error():
    def fail():
        with full_precision(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise KeyError

    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError):
            fail()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
