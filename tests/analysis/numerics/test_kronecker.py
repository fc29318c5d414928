"""Kronecker products, against the matrix written out and its SVD."""

import ml_dtypes
import numpy as np
import pytest

from analysis.numerics import decompose, kronecker
from analysis.numerics.turning import TURNED
from analysis.pairs import merging
from analysis.update import Factor, KroneckerUpdate

SINGLE = np.dtype(np.float32)
SHAPES = [((4, 3), (5, 6)), ((1, 1), (7, 2)), ((3, 5), (6, 2))]


def factor(rng, m, n, inner=None, dtype=SINGLE):
    """A random matrix, or a product of two of this inner size, stored in this dtype."""
    if inner is None:
        return Factor(rng.standard_normal((m, n)).astype(dtype), None, dtype)
    left, right = rng.standard_normal((m, inner)), rng.standard_normal((inner, n))
    return Factor(left.astype(dtype), right.astype(dtype), dtype)


@pytest.mark.parametrize(("one", "two"), SHAPES)
@pytest.mark.parametrize("inner", [None, 2, 9])
def test_singular_values_are_those_of_the_dense_product(rng, one, two, inner):
    update = KroneckerUpdate("q", factor(rng, *one), factor(rng, *two, inner), scale=-1.5)
    s, bound = kronecker.singular_values(update)
    want = np.linalg.svd(update.dense(), compute_uv=False)
    assert s.shape == (update.capacity,)
    np.testing.assert_allclose(s, want[: s.size], rtol=0, atol=bound + 1e-14 * want[0])
    assert bound < 1e-11 * want[0]
    assert not want[s.size :].max(initial=0) > bound + 1e-14 * want[0]  # the capacity is enough


@pytest.mark.parametrize(("one", "two"), SHAPES)
@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_factors_give_back_the_product(rng, one, two, scale):
    update = KroneckerUpdate("q", factor(rng, *one, 2), factor(rng, *two), scale, source="a.st")
    low = kronecker.low_rank(update)
    np.testing.assert_allclose(low.dense(), update.dense(), atol=1e-12)
    assert (low.capacity, low.source, low.stored) == (update.capacity, "a.st", (SINGLE, SINGLE))
    found = decompose.decomposition(update)
    U, V = found.left.vectors(), found.right.vectors()
    np.testing.assert_allclose(U * found.s @ V.T, update.dense(), atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(found.s.size), atol=1e-10)


def test_a_scaled_matrix_scales_the_values(rng):
    first, second = factor(rng, 4, 3), factor(rng, 5, 6)
    s, bound = kronecker.singular_values(KroneckerUpdate("q", first, second))
    twice, more = kronecker.singular_values(KroneckerUpdate("q", first, second, scale=2.0))
    np.testing.assert_array_equal(twice, 2 * s)
    assert more == 2 * bound
    turned, _ = kronecker.singular_values(KroneckerUpdate("q", second, first))
    np.testing.assert_allclose(turned, s, rtol=1e-12)


def test_zero_and_infinite_numbers(rng):
    zero = Factor(np.zeros((3, 2)), None, SINGLE)
    update = KroneckerUpdate("q", factor(rng, 4, 3), zero)
    assert not kronecker.singular_values(update)[0].any()
    found = decompose.decomposition(update)
    assert found.rank == 0
    assert found.turning.largest.min() > TURNED
    infinite = Factor(np.full((3, 2), np.inf), None, SINGLE)
    with pytest.raises(Exception, match="holds NaN or Inf"):
        decompose.spectrum(KroneckerUpdate("q", zero, infinite))
    with pytest.raises(Exception, match="holds NaN or Inf"):
        decompose.decomposition(KroneckerUpdate("q", infinite, zero))


def test_float64_is_taken_as_exact(rng):
    double = np.dtype(np.float64)
    update = KroneckerUpdate("q", factor(rng, 4, 3, dtype=double), factor(rng, 5, 6, dtype=double))
    assert decompose.decomposition(update).turning is None
    low = kronecker.low_rank(update)
    assert low.sizes is None
    assert low.inner is None


@pytest.mark.parametrize("inner", [None, 2])
def test_the_variances_are_those_of_rounded_copies(rng, inner):
    """Rounding to bfloat16 many times: uᵢᵀ E vⱼ has the variances that `inner` says."""
    narrow = np.dtype(ml_dtypes.bfloat16)
    first, second = factor(rng, 4, 4), factor(rng, 5, 6, inner)
    stored = Factor(first.left, None, narrow), Factor(second.left, second.right, narrow)
    told = KroneckerUpdate("q", *stored)
    low = kronecker.low_rank(told)
    S = np.linalg.norm(low.A, axis=1)
    B, V = low.B, (low.A / S[:, None]).T
    unit = float(ml_dtypes.finfo(narrow).eps) ** 2 / 12
    want = unit * low.inner * S**2
    exact = told.dense()

    def noisy(x):
        """x, with uniform noise of the spacing of bfloat16."""
        spacing = 2.0 ** np.floor(np.log2(np.abs(x))) * float(ml_dtypes.finfo(narrow).eps)
        return x + spacing * rng.uniform(-0.5, 0.5, x.shape)

    def sample():
        right = None if second.right is None else noisy(second.right)
        parts = Factor(noisy(first.left), None, SINGLE), Factor(noisy(second.left), right, SINGLE)
        return B.T @ (KroneckerUpdate("q", *parts).dense() - exact) @ V

    got = np.mean([sample() ** 2 for _ in range(2000)], axis=0)
    significant = want > 1e-3 * want.max()
    np.testing.assert_allclose(got[significant], want[significant], rtol=0.25)
    assert got[~significant].max(initial=0) < 5e-3 * want.max()


def test_rounded_copies_turn_no_more_than_the_bound(rng):
    narrow = np.dtype(np.float16)
    U, V = (np.linalg.qr(rng.standard_normal((8, 3)))[0] for _ in range(2))
    w1, w2 = (U * [4.0, 1.0, 0.9]) @ V.T, rng.standard_normal((6, 5))
    exact = KroneckerUpdate("q", Factor(w1, None, narrow), Factor(w2, None, narrow))
    half = KroneckerUpdate(
        "q", Factor(w1.astype(narrow), None, narrow), Factor(w2.astype(narrow), None, narrow)
    )
    known, rounded = decompose.decomposition(exact), decompose.decomposition(half)
    for i in range(1, 8):
        if known.turning.largest[i - 1] > 1:
            continue
        A, B = known.left.vectors(i), rounded.left.vectors(i)
        sine = np.linalg.norm(B - A @ (A.T @ B), 2)
        assert sine <= known.turning.largest[i - 1]


def test_entries_are_picked_without_the_product(rng):
    update = KroneckerUpdate("q", factor(rng, 4, 3), factor(rng, 5, 6, 2), scale=-2.0)
    rows, cols = np.array([0, 7, 19]), np.array([1, 6, 17])
    np.testing.assert_allclose(
        merging._entries(update, rows, cols) * 2, update.dense()[np.ix_(rows, cols)], rtol=1e-12
    )
