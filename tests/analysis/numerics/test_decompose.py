"""Singular values and vectors against dense SVDs and 60 digits, with their bounds and errors."""

import tracemalloc

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.linalg

from analysis import CheckpointError
from analysis.numerics import decompose
from analysis.update import DenseUpdate, LowRankUpdate

EPS = np.finfo(float).eps
SHAPES = [(9, 5, 2), (3, 8, 6), (7, 7, 1), (1, 5, 4), (64, 48, 16), (200, 300, 64), (20, 20, 40)]


def low_rank(B, A, scale=1.0):
    return LowRankUpdate("layers.0.q", B, A, scale, source="adapter_model.safetensors")


def dense(W):
    return DenseUpdate("layers.0.q", W.shape, lambda: W, source="delta.safetensors")


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def exact(B, A, k):
    """The singular values of B·A in 60 digits, as they would come out without rounding."""
    with mpmath.workdps(60):
        product = mpmath.matrix(B.tolist()) * mpmath.matrix(A.tolist())
        small = product if B.shape[0] <= A.shape[1] else product.T
        squares = mpmath.eigsy(small * small.T, eigvals_only=True)
        return np.array(sorted((float(mpmath.sqrt(abs(x))) for x in squares), reverse=True))[:k]


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize(("d_out", "d_in", "r"), SHAPES)
def test_low_rank_spectrum_matches_dense_svd(rng, d_out, d_in, r, method):
    update = low_rank(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), -1.7)
    got = decompose.spectrum(update, method)
    want = np.linalg.svd(update.dense(), compute_uv=False)[: update.capacity]
    assert got.s.shape == (min(d_out, d_in, r),)
    np.testing.assert_allclose(
        got.s, want, rtol=0, atol=50 * EPS * want[0] * max(d_out, d_in) ** 0.5
    )
    assert np.all(np.diff(got.s) <= 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_stored_dtype_is_read_exactly(rng, dtype):
    B, A = (rng.standard_normal(shape).astype(dtype) for shape in [(90, 8), (8, 70)])
    wide = low_rank(B.astype(np.float64), A.astype(np.float64))
    assert np.array_equal(
        decompose.singular_values(low_rank(B, A)), decompose.singular_values(wide)
    )


def test_float32_grams_would_fail_this_tolerance(rng):
    """Negative control: the shortcut that the float64 Grams are there to avoid."""
    B, A = rng.standard_normal((400, 8)), rng.standard_normal((8, 300))
    want = np.linalg.svd(B @ A, compute_uv=False)[:8]
    L_B, L_A = (
        np.linalg.cholesky((M.T @ M).astype("f4")) for M in (B.astype("f4"), A.T.astype("f4"))
    )
    shortcut = np.linalg.svd(L_B.T @ L_A, compute_uv=False)
    assert np.abs(shortcut - want).max() > 1e-9 * want[0]
    np.testing.assert_allclose(
        decompose.singular_values(low_rank(B, A)), want, rtol=0, atol=1e-13 * want[0]
    )


def graded(rng):
    columns = 10.0 ** rng.uniform(-12, 12, 5)
    return rng.standard_normal((12, 5)) * columns, (rng.standard_normal((9, 5)) / columns).T


def nearly_dependent(rng):
    B = rng.standard_normal((12, 5))
    B[:, 4] = B[:, 0] + 1e-9 * B[:, 4]
    return B, rng.standard_normal((5, 9))


def moderately_dependent(rng):
    B = rng.standard_normal((12, 5))
    B[:, 4] = B[:, 0] + 2e-2 * B[:, 4]
    return B, rng.standard_normal((5, 9))


def cancelling(rng):
    """An update relative to a start: [B, −B0][A; A0], almost nothing of which is left."""
    B0, A0 = rng.standard_normal((12, 3)), rng.standard_normal((3, 9))
    B = B0 + 1e-7 * rng.standard_normal((12, 3))
    return np.hstack([B, -B0]), np.vstack([A0, A0])


def dead_column(rng):
    B, A = rng.standard_normal((12, 5)), rng.standard_normal((5, 9))
    B[:, 2] = 0
    return B, A


def tiny(rng):
    return 1e-150 * rng.standard_normal((12, 5)), 1e-130 * rng.standard_normal((5, 9))


@pytest.mark.parametrize(
    ("factors", "algorithm"),
    [
        (graded, "cholesky"),
        (moderately_dependent, "cholesky"),
        (nearly_dependent, "qr"),
        (cancelling, "qr"),
        (dead_column, "qr"),
        (tiny, "qr"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_error_bound_holds_where_factors_are_difficult(factors, algorithm, seed):
    B, A = factors(np.random.default_rng(seed))
    got = decompose.spectrum(low_rank(B, A))
    error = np.abs(got.s - exact(B, A, got.s.size)).max()
    assert got.algorithm == algorithm
    assert error <= got.error_bound
    size = np.max(np.linalg.norm(B, axis=0) * np.linalg.norm(A, axis=1))
    assert got.error_bound <= 10 * B.shape[1] * EPS * 1e3 * max(got.s[0], size) * (1 + 1e-9)


def test_untrained_update_is_exactly_zero(rng):
    for B, A in [
        (np.zeros((9, 4)), rng.standard_normal((4, 7))),
        (rng.standard_normal((9, 4)), np.zeros((4, 7))),
    ]:
        for method in ("auto", "svd"):
            got = decompose.spectrum(low_rank(B, A), method)
            assert got.error_bound == 0
            np.testing.assert_array_equal(got.s, np.zeros(4))


def test_zero_scale_is_a_zero_update(rng):
    update = low_rank(rng.standard_normal((9, 4)), rng.standard_normal((4, 7)), scale=0.0)
    np.testing.assert_array_equal(decompose.singular_values(update), np.zeros(4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("factor", ["B", "A"])
def test_low_rank_with_a_bad_number_is_refused(rng, bad, factor, method):
    factors = {"B": rng.standard_normal((9, 4)), "A": rng.standard_normal((4, 7))}
    factors[factor][3, 2] = bad
    with pytest.raises(CheckpointError, match=rf"safetensors: layers\.0\.q: {factor} holds NaN"):
        decompose.spectrum(low_rank(**factors), method)


@pytest.mark.filterwarnings("error")
def test_overflow_is_refused(rng):
    B, A = 1e200 * rng.standard_normal((9, 4)), 1e200 * rng.standard_normal((4, 7))
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        decompose.singular_values(low_rank(B, A))
    for of in (decompose.singular_values, decompose.decomposition, decompose.svd):
        with pytest.raises(CheckpointError, match="too large for float64"):
            of(low_rank(B, A / 1e200, scale=1e200))


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (25, 25), (1, 6), (2100, 5)])
@pytest.mark.parametrize(("method", "algorithm"), [("auto", "gram"), ("svd", "svd")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_spectrum_is_within_its_bound(rng, shape, method, algorithm, dtype):
    k = min(shape)
    # Down to 1e-6·s₁, where a Gram matrix has few digits left.
    s = np.geomspace(3, 3e-6, k)
    W = (orthonormal(rng, shape[0], k) * s) @ orthonormal(rng, shape[1], k).T
    W = W.astype(dtype)
    got = decompose.spectrum(dense(W), method)
    want = scipy.linalg.svdvals(W.astype(np.float64))
    assert got.algorithm == algorithm
    assert np.abs(got.s - want).max() <= got.error_bound
    assert got.error_bound <= 2e-6 * want[0]


def test_dense_gram_at_any_size(rng):
    W = rng.standard_normal((30, 20))
    for size in (2.0**-600, 2.0**500):
        np.testing.assert_array_equal(
            decompose.singular_values(dense(size * W)), size * decompose.singular_values(dense(W))
        )


def test_dense_zero():
    for method in ("auto", "svd"):
        got = decompose.spectrum(dense(np.zeros((6, 4), np.float32)), method)
        np.testing.assert_array_equal(got.s, np.zeros(4))
        assert got.error_bound == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["auto", "svd"])
def test_dense_with_a_bad_number_is_refused(rng, bad, method):
    W = rng.standard_normal((6, 4)).astype("f4")
    W[2, 3] = bad
    with pytest.raises(CheckpointError, match=r"delta\.safetensors: layers\.0\.q: ΔW holds NaN"):
        decompose.spectrum(dense(W), method)


@pytest.mark.parametrize(("d_out", "d_in", "r"), SHAPES)
def test_svd_puts_the_update_together_again(rng, d_out, d_in, r):
    update = low_rank(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), -0.3)
    for case in (update, dense(update.dense())):
        U, s, Vh = decompose.svd(case)
        k = case.capacity
        assert (U.shape, s.shape, Vh.shape) == ((d_out, k), (k,), (k, d_in))
        atol = 20 * max(d_out, d_in) * EPS
        np.testing.assert_allclose((U * s) @ Vh, update.dense(), rtol=0, atol=atol * s[0])
        np.testing.assert_allclose(U.T @ U, np.eye(k), rtol=0, atol=atol)
        np.testing.assert_allclose(Vh @ Vh.T, np.eye(k), rtol=0, atol=atol)
        np.testing.assert_allclose(
            s[: update.capacity], decompose.singular_values(update), rtol=0, atol=atol * s[0]
        )


def test_svd_of_a_rank_deficient_update_is_orthonormal(rng):
    B, A = dead_column(rng)
    U, s, Vh = decompose.svd(low_rank(B, A))
    np.testing.assert_allclose(U.T @ U, np.eye(5), rtol=0, atol=100 * EPS)
    np.testing.assert_allclose((U * s) @ Vh, B @ A, rtol=0, atol=100 * EPS * s[0])


def test_unknown_method_is_an_error(rng):
    with pytest.raises(ValueError, match="expected one of auto, svd, topk, density"):
        decompose.spectrum(dense(np.eye(3)), "lanczos")


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_a_rank_beyond_the_sizes_costs_no_square_of_it(rng, method):
    """r = 20,000 and d = 8: a matrix (r, r) would be 3.2 GB."""
    update = low_rank(rng.standard_normal((8, 20_000)), rng.standard_normal((20_000, 6)))
    tracemalloc.start()
    got = decompose.spectrum(update, method)
    U, s, Vh = decompose.svd(update)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    want = np.linalg.svd(update.dense(), compute_uv=False)
    np.testing.assert_allclose(got.s, want, rtol=0, atol=got.error_bound)
    np.testing.assert_allclose(s, want, rtol=0, atol=got.error_bound)
    assert (got.algorithm, U.shape, Vh.shape) == ("qr", (8, 6), (6, 6))


@pytest.mark.parametrize(
    ("error_bound", "floor", "want"),
    [
        (0.0, None, 4),  # rounding of ΔW itself: max(d_out, d_in) · eps · s₁
        (0.0, 1e-20, 4),
        (2e-9, None, 3),
        (1e-9, None, 3),  # a value at the cutoff is not above it
        (0.9e-9, None, 4),
        (2e-9, 0.5, 2),
        (0.5, 2e-9, 2),
        (3.0, None, 0),
    ],
)
def test_the_rank_cutoff_is_the_largest_of_error_noise_and_rounding(error_bound, floor, want):
    update = low_rank(np.ones((100, 5)), np.ones((5, 7)))
    s = np.array([2.0, 1.0, 1e-1, 1e-9, 0.9 * 100 * EPS * 2.0])
    assert decompose.rank(s, error_bound, update, floor) == want
    assert decompose.rank(1e-30 * s, 1e-30 * error_bound, update, floor and 1e-30 * floor) == want
    assert decompose.rank(0 * s, 0.0, update) == 0


@pytest.mark.parametrize(
    "turned",
    [lambda W: W[::-1], lambda W: W[:, ::-1], lambda W: W[::-2, ::-1], lambda W: W.T],
    ids=["rows", "columns", "both", "transposed"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_views_are_decomposed_as_their_copies(rng, turned, dtype):
    """torch refuses negative strides."""
    W = turned(rng.standard_normal((14, 9)).astype(dtype))
    view, copy = (DenseUpdate("q", W.shape, lambda x=x: x) for x in (W, np.ascontiguousarray(W)))
    for method in ("auto", "svd"):
        want = decompose.singular_values(copy, method)
        np.testing.assert_allclose(decompose.singular_values(view, method), want, rtol=1e-12)
    U, s, Vh = decompose.svd(view)
    np.testing.assert_allclose(U * s @ Vh, W, rtol=0, atol=50 * EPS * s[0])
    B, A = rng.standard_normal((14, 3)), rng.standard_normal((3, 9))
    factored = LowRankUpdate("q", B[::-1], A[::-1, ::-1])
    want = scipy.linalg.svdvals(factored.dense())[:3]
    np.testing.assert_allclose(decompose.decomposition(factored).s, want, rtol=1e-10)
