"""The largest singular values: exact where they can be, and bounds that hold everywhere."""

import numpy as np
import pytest

from analysis.numerics import topk

N, D = 400, 520
SPECTRA = {
    "graded over 12 decades": np.logspace(0, -12, N),
    "clustered": np.repeat([4.0, 2.0, 1.0, 0.5], N // 4),
    "flat": np.ones(N),
    "one spike": np.concatenate([[10.0], np.ones(N - 1)]),
    "rank-deficient": np.concatenate([np.linspace(3, 1, 12), np.zeros(N - 12)]),
    "falling": 1 / np.arange(1, N + 1),
}


@pytest.fixture(scope="module")
def bases():
    rng = np.random.default_rng(1)
    return tuple(np.linalg.qr(rng.standard_normal((d, N)))[0] for d in (D, N))


@pytest.fixture(params=SPECTRA)
def matrix(request, bases):
    """A matrix of a known spectrum, and that spectrum."""
    U, V = bases
    s = SPECTRA[request.param]
    return (U * s) @ V.T, s


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-160, 1e160])
def test_every_bound_holds(matrix, turned, size):
    M, s = matrix
    M, s = (M.T if turned else M) * size, s * size
    found = topk.top(M, 8)
    slack = 1e-14 * s[0]  # of the known spectrum itself, after its two products
    assert (found.s - found.rounding <= s[:8] + slack).all()
    assert (found.upper + slack >= s[:8]).all()
    assert found.rest + slack >= s[8]
    low, high = found.share(3)
    share = np.sum((s[:3] / s[0]) ** 2) / np.sum((s / s[0]) ** 2)
    assert low <= share * (1 + 1e-12)
    assert share <= high * (1 + 1e-12)


def test_vectors_are_orthonormal_and_belong_to_the_values(matrix):
    M, _ = matrix
    found = topk.top(M, 8)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(found.Vh @ found.Vh.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(
        np.einsum("ij,jk,ik->i", found.U.T, M, found.Vh), found.s, atol=1e-12 * found.s[0]
    )


@pytest.mark.parametrize("name", ["falling", "one spike", "rank-deficient"])
def test_values_that_stand_out_are_exact(bases, name):
    U, V = bases
    s = SPECTRA[name]
    found = topk.top((U * s) @ V.T, 4)
    exact = s[: 1 if name == "one spike" else 4]
    np.testing.assert_allclose(found.s[: exact.size], exact, rtol=1e-9)
    assert (found.upper[: exact.size] <= exact * (1 + 1e-6)).all()


def test_the_norm_is_that_of_the_whole_matrix(matrix):
    M, s = matrix
    assert topk.top(M, 2).norm == pytest.approx(np.linalg.norm(s), rel=1e-12)


def test_float32_loses_nothing_of_what_is_stored(rng):
    M = rng.standard_normal((500, 300)).astype(np.float32)
    single, double = topk.top(M, 3), topk.top(M.astype(np.float64), 3)
    np.testing.assert_array_equal(single.s, double.s)


def test_small_matrices_are_decomposed_whole(rng):
    M = rng.standard_normal((30, 20))
    found = topk.top(M, 99)
    np.testing.assert_allclose(found.s, np.linalg.svd(M, compute_uv=False), rtol=1e-12)
    assert found.rest == 0.0


def test_zero_and_impossible_k():
    found = topk.top(np.zeros((40, 30)), 3)
    assert (found.s == 0).all()
    assert np.isnan(found.share(1)).all()
    with pytest.raises(ValueError, match="k is 0"):
        topk.top(np.eye(3), 0)


def test_a_bound_without_the_rest_would_fail(bases, monkeypatch):
    """Negative control: what Q leaves out matters for a flat spectrum after two steps."""
    rng = np.random.default_rng(0)
    M = rng.standard_normal((D, N))
    exact = np.linalg.svd(M, compute_uv=False)[:8]
    assert (topk.top(M, 8).upper >= exact).all()
    monkeypatch.setattr(topk, "_outside", lambda *_: 0.0)
    monkeypatch.setattr(topk, "DEPTH", 1)
    assert (topk.top(M, 8).upper < exact).any()
