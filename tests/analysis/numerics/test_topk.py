"""The largest singular values: exact where they can be, and bounds that hold everywhere."""

import known_spectra
import numpy as np
import pytest
from known_spectra import SPECTRA, D, N

from analysis.numerics import topk


@pytest.fixture(scope="module")
def bases():
    return known_spectra.bases()


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
    np.testing.assert_allclose(found.s[: exact.size], exact, rtol=1e-8)
    assert (found.upper[: exact.size] <= exact * (1 + 1e-6)).all()


def test_the_norm_is_that_of_the_whole_matrix(matrix):
    M, s = matrix
    assert topk.top(M, 2).norm == pytest.approx(np.linalg.norm(s), rel=1e-12)


def test_float32_loses_nothing_of_what_is_stored(rng):
    """The search is in float32, the values found there are those of float64."""
    M = rng.standard_normal((500, 300)) * np.arange(1, 301) ** -1.0
    M = M.astype(np.float32)
    exact = np.linalg.svd(M.astype(np.float64), compute_uv=False)[:3]
    np.testing.assert_allclose(topk.top(M, 3).s, exact, rtol=1e-8)


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
    """Negative control: what the subspace leaves out matters where the values are close."""
    rng = np.random.default_rng(0)
    M = rng.standard_normal((D, N))
    exact = np.linalg.svd(M, compute_uv=False)[:8]
    monkeypatch.setattr(topk, "LARGEST", 1)
    monkeypatch.setattr(topk, "DEEPEST", 1)
    assert (topk.top(M, 8).upper >= exact).all()
    monkeypatch.setattr(topk, "_beyond", lambda *_: 0.0)
    assert (topk.top(M, 8).upper < exact).any()


def test_more_equal_values_than_a_block_has_columns_are_found(bases):
    U, V = bases
    s = np.concatenate([np.ones(90), np.linspace(0.5, 0, N - 90)])
    found = topk.top((U * s) @ V.T, 80)
    np.testing.assert_allclose(found.s, 1, rtol=1e-5)
    assert found.rest >= 1


def test_residuals_are_the_distance_from_some_exact_value(matrix):
    M, s = matrix
    found = topk.top(M, 8)
    distance = np.abs(found.s[:, None] - s).min(axis=1)
    assert (distance <= found.residual + 1e-14 * s[0]).all()


def test_bounds_of_the_whole_spectrum_hold(matrix):
    M, s = matrix
    energy = np.sum(s**2)
    exact = {
        "s_3": s[2],
        "top_share_4": np.sum(s[:4] ** 2) / energy,
        "nuclear_norm": s.sum(),
        "stable_rank": energy / s[0] ** 2,
        "participation_ratio": energy**2 / np.sum(s**4),
    }
    bounds = topk.top(M, 20).bounds(N)
    for name, value in exact.items():
        low, high, _ = bounds[name]
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9), name
    assert bounds["top_share_16"][0] > 0
    assert "top_share_10pct" not in bounds


def test_the_same_seed_gives_the_same_bytes(matrix):
    M, _ = matrix
    a, b, c = topk.top(M, 5), topk.top(M, 5), topk.top(M, 5, seed=1)
    assert np.array_equal(a.U, b.U)
    assert np.array_equal(a.upper, b.upper)
    assert not np.array_equal(a.U, c.U)


@pytest.mark.parametrize("size", [1e-36, 1e36])
def test_squares_of_float32_neither_overflow_nor_vanish(rng, size):
    M = (rng.standard_normal((200, 150)) * size).astype(np.float32)
    exact = np.linalg.svd(M.astype(np.float64), compute_uv=False)[:4]
    found = topk.top(M, 4)
    assert (found.s <= exact * (1 + 1e-12)).all()
    assert (exact <= found.upper).all()
