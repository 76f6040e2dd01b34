"""PCA and quantization of vectors, against scikit-learn and by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.products.reduce import MISSING, Reduction


@pytest.fixture
def cloud() -> np.ndarray:
    """2,000 vectors of 24 dimensions far from the origin, some of them missing."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(2000, 6)) * [9, 5, 3, 2, 1, 0.5] @ rng.normal(size=(6, 24)) + 400
    vectors = (vectors + rng.normal(size=vectors.shape) * 0.1).astype(np.float32)
    vectors[::50] = np.nan
    vectors[7, 3] = np.inf
    return vectors


def test_principal_components_are_those_of_scikit_learn(cloud: np.ndarray) -> None:
    ours = Reduction.fit(np.array_split(cloud, 7), 24, pca=5)
    there = np.isfinite(cloud).all(1)
    theirs = PCA(5, svd_solver="full").fit(cloud[there].astype(np.float64))
    np.testing.assert_allclose(ours.components, theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-4)
    stored = ours.encode(cloud)
    np.testing.assert_allclose(stored[there], theirs.transform(cloud[there]), atol=2e-3)
    assert np.isnan(stored[~there]).all()
    np.testing.assert_allclose(ours.restore(stored)[there], theirs.inverse_transform(stored[there]), atol=2e-3)


def test_how_vectors_arrive_does_not_matter(cloud: np.ndarray) -> None:
    whole, cut = (Reduction.fit(np.array_split(cloud, n), 24, "int8", 5) for n in (1, 300))
    np.testing.assert_allclose(whole.scale, cut.scale, rtol=1e-6)
    assert Reduction.fit(np.array_split(cloud, 9), 24, "int8", 5).to_json() == (
        Reduction.fit(np.array_split(cloud, 9), 24, "int8", 5).to_json()
    )


def test_a_sample_is_the_same_however_it_is_cut() -> None:
    values = np.arange(200_000, dtype=np.float32)[:, None] % 7919
    scales = {float(Reduction.fit(np.array_split(values, n), 1, "int8").scale[0]) for n in (1, 3, 1000)}
    assert len(scales) == 1
    assert scales.pop() == pytest.approx(1.25 * 7911 / 127, rel=2e-3)


def test_int8_is_within_half_a_step_and_outliers_clip(cloud: np.ndarray) -> None:
    cloud = cloud - 400
    cloud[1, 0] = 1e6  # one value of 1,960
    reduction = Reduction.fit([cloud], 24, "int8")
    numbers = reduction.encode(cloud)
    values = reduction.decode(numbers)
    there = np.isfinite(cloud).all(1)
    assert numbers.dtype == np.int8
    assert (numbers[~there] == MISSING).all()
    assert (numbers[there] > MISSING).all()
    inside = np.abs(cloud[there]) <= 127 * reduction.scale
    error = np.abs(values - cloud)[there] / reduction.scale
    assert error[inside].max() <= 0.5 + 1e-4
    assert numbers[1, 0] == 127
    assert reduction.scale[0] * 127 < 200  # not made coarse by the one
    assert reduction.clipped == pytest.approx(np.mean(np.abs(cloud[there]) > 127.5 * reduction.scale))
    assert 0 < reduction.clipped < 0.002
    assert np.isnan(values[~there]).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1e9, 1e9, width=32)),
    st.sampled_from(["float32", "float16", "int8"]),
    st.sampled_from([None, 1, 3]),
)
def test_any_vectors_come_back_as_far_as_the_type_can(vectors: np.ndarray, dtype: str, pca: int | None) -> None:
    reduction = Reduction.from_json(Reduction.fit([vectors], 3, dtype, pca).to_json())
    numbers = reduction.encode(vectors)
    assert numbers.shape == (len(vectors), pca or 3)
    assert numbers.dtype == dtype
    values = reduction.decode(numbers)
    assert np.isfinite(values).all()
    expected = Reduction.fit([vectors], 3, "float32", pca).encode(vectors)
    step = 0.0
    if dtype == "int8":
        step = 0.501 * reduction.scale
        expected = expected.clip(-127 * reduction.scale, 127 * reduction.scale)
    elif dtype == "float16":
        expected = expected.clip(-65504, 65504)
        step = 2.0**-11 * np.abs(expected) + 1e-7
    assert (np.abs(values - expected) <= step).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_constant_scene_and_an_empty_dimension(dtype: str) -> None:
    vectors = np.tile(np.float32([3.0, 0.0, -2.0]), (50, 1))
    for pca in (None, 2):
        reduction = Reduction.fit([vectors], 3, dtype, pca)
        back = reduction.restore(reduction.decode(reduction.encode(vectors)))
        np.testing.assert_allclose(back, vectors, atol=0.02)


def test_it_is_kept_in_a_file_and_used_again(cloud: np.ndarray, tmp_path: Path) -> None:
    first = Reduction.fit([cloud], 24, "int8", 4)
    first.save(tmp_path / "a.pca.json")
    again = Reduction.load(tmp_path / "a.pca.json")
    assert (again.encode(cloud) == first.encode(cloud)).all()
    assert Reduction.fit([], 24, "int8", again) is again
    half = Reduction.fit([], 24, "float16", again)
    assert (half.components == first.components).all()
    assert half.scale is None
    np.testing.assert_allclose(
        half.decode(half.encode(cloud)).clip(-127 * first.scale, 127 * first.scale),
        first.decode(first.encode(cloud)),
        atol=float(first.scale.max()),
    )
    other = Reduction.fit([cloud[:500]], 24, "int8", half)
    assert (other.components == first.components).all()
    assert (other.scale != first.scale).any()


def test_what_does_not_fit_is_refused(cloud: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(TerraFMError, match=r"int16.*choose one of float32, float16, int8"):
        Reduction.fit([cloud], 24, "int16")
    for number in (0, 25):
        with pytest.raises(TerraFMError, match="from 1 to 24"):
            Reduction.fit([cloud], 24, pca=number)
    with pytest.raises(TerraFMError, match="reduces 24 dimensions to 2, which the model's 12"):
        Reduction.fit([], 12, pca=Reduction.fit([cloud], 24, pca=2))
    with pytest.raises(TerraFMError, match="all are missing"):
        Reduction.fit([cloud * np.nan], 24, "int8")
    with pytest.raises(TerraFMError, match="is no file"):
        Reduction.load(tmp_path / "none.json")
    text = Reduction.fit([cloud], 24, "int8", 2).to_json()
    for wrong in (
        "",
        "[]",
        "{}",
        text[:-3],
        text.replace('"depth": 24', '"depth": 12'),
        text.replace("int8", "float32"),
    ):
        with pytest.raises(TerraFMError, match="cannot be read"):
            Reduction.from_json(wrong)
