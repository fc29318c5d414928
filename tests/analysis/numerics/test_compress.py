"""The best factors of a rank, and the error of factors as they are stored."""

import numpy as np
import pytest

from analysis import CheckpointError
from analysis.numerics import compress
from analysis.update import LowRankUpdate


@pytest.fixture
def update(rng):
    return LowRankUpdate("q", rng.standard_normal((30, 6)), rng.standard_normal((6, 20)), scale=-2)


@pytest.mark.parametrize("r", [1, 3, 6, 99])
def test_no_matrix_of_the_rank_is_nearer(update, r):
    """Against the dense SVD of Eckart and Young."""
    dW = update.dense()
    U, s, Vh = np.linalg.svd(dW, full_matrices=False)
    kept = min(r, 6)
    best = compress.best(update, r)
    assert (best.r, best.scale) == (kept, 1.0)
    np.testing.assert_allclose(best.dense(), (U[:, :kept] * s[:kept]) @ Vh[:kept], atol=1e-12)


def test_both_factors_have_equal_length(update):
    best = compress.best(update, 4)
    np.testing.assert_allclose(np.linalg.norm(best.B, axis=0), np.linalg.norm(best.A, axis=1))


@pytest.mark.parametrize("size", [1e-1, 1e-5, 1e-9])
def test_small_errors_are_exact(update, rng, size):
    other = LowRankUpdate(
        "q", update.B * (1 + size * rng.standard_normal(update.B.shape)), update.A, scale=-2
    )
    dense = np.linalg.norm(update.dense() - other.dense()) / np.linalg.norm(update.dense())
    assert compress.error(update, other) == pytest.approx(dense, rel=1e-5)


def test_the_error_of_a_cut_is_what_it_leaves_out(update):
    s = np.linalg.svd(update.dense(), compute_uv=False)
    expected = np.linalg.norm(s[2:]) / np.linalg.norm(s)
    assert compress.error(update, compress.best(update, 2)) == pytest.approx(expected, rel=1e-9)


def test_zero_and_broken_updates():
    zero = LowRankUpdate("q", np.zeros((5, 2)), np.ones((2, 4)))
    one = LowRankUpdate("q", np.ones((5, 2)), np.ones((2, 4)))
    assert compress.error(zero, zero) == 0.0
    assert compress.error(zero, one) == np.inf
    assert compress.error(one, zero) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="r is 0"):
        compress.best(one, 0)
    with pytest.raises(CheckpointError, match="NaN"):
        compress.best(LowRankUpdate("q", np.full((5, 2), np.nan), np.ones((2, 4))), 1)
