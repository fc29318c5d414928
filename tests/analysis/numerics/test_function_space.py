"""The spectrum of ΔW C^½: against scipy's root of a dense C, under rotation, and at its ends."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from made_updates import dense, from_spectrum, low_rank, orthonormal

from analysis import results
from analysis.numerics import function_space, metrics
from analysis.numerics.decompose import decomposition, singular_values
from analysis.update import Factor, KroneckerUpdate

EPS = np.finfo(float).eps
SHAPES = [(9, 5, 2), (3, 8, 6), (7, 7, 1), (40, 30, 8)]


def moment(rng, d, tokens):
    """C of Gaussian inputs of very different lengths; of rank below d for few tokens."""
    X = rng.standard_normal((tokens, d)) * np.geomspace(1, 1e-3, d)
    return X.T @ X / tokens


def rooted(update, C):
    """The singular values of ΔW C^½ by scipy, all min(d_out, d_in)."""
    root = np.real(scipy.linalg.sqrtm(C))
    return scipy.linalg.svdvals(update.dense() @ root)


def measured(update, C):
    return function_space.function_space(decomposition(update), C)


def numbers(update, C):
    return function_space.columns(measured(update, C), C)


def gaussian(rng, d_out, d_in, r):
    return low_rank(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), 0.3)


@pytest.mark.parametrize(("d_out", "d_in", "r"), SHAPES)
@pytest.mark.parametrize("as_matrix", [False, True])
def test_the_values_are_those_of_a_dense_root(rng, d_out, d_in, r, as_matrix):
    update, C = gaussian(rng, d_out, d_in, r), moment(rng, d_in, 50)
    want = rooted(update, C)[: min(d_out, d_in, r)]
    found = measured(dense(update.dense()) if as_matrix else update, C)
    np.testing.assert_allclose(found.s, want, rtol=0, atol=1e-10 * want[0])
    # The rank of C^½ in float64 limits scipy's root, and not the energy.
    W = update.dense()
    assert found.energies.sum() == pytest.approx(np.trace(W @ C @ W.T), rel=1e-12)
    assert np.abs(found.s - want).max() <= found.error_bound


def test_a_singular_moment_and_dependent_factors_stay_within_the_bound(rng):
    A = rng.standard_normal((4, 30))
    A[3] = A[0] + 1e-9 * A[1]
    update = low_rank(rng.standard_normal((20, 4)), A)
    for tokens in (1, 2, 3):
        X = rng.standard_normal((tokens, 30))
        found = measured(update, X.T @ X / tokens)
        want = np.linalg.svd(update.dense() @ X.T / np.sqrt(tokens), compute_uv=False)
        want = np.pad(want, (0, 4))[: found.s.size]
        assert np.abs(found.s - want).max() <= found.error_bound < 1e-5 * want[0]


def test_a_kronecker_product_has_the_values_of_its_matrix(rng):
    single = np.dtype(np.float32)
    first, second = (Factor(rng.standard_normal((3, n)), None, single) for n in (2, 4))
    update, C = KroneckerUpdate("q", first, second, 2.0), moment(rng, 8, 30)
    want = rooted(update, C)[: update.capacity]
    np.testing.assert_allclose(measured(update, C).s, want, rtol=0, atol=1e-10 * want[0])


def test_inputs_without_a_preferred_direction_give_the_plain_spectrum(rng):
    update = gaussian(rng, 12, 10, 4)
    found, s = numbers(update, 2.5 * np.eye(10)), singular_values(update)
    np.testing.assert_allclose(
        measured(update, 2.5 * np.eye(10)).s, np.sqrt(2.5) * s, rtol=0, atol=50 * EPS * s[0]
    )
    assert found["function_alignment"] == pytest.approx(1)
    assert found["function_rank_correlation"] == 1
    for k in (1, 4, 16):
        assert found[f"function_top_share_{k}"] == pytest.approx(metrics.top_share(s, k))
        assert found[f"function_carried_{k}"] == pytest.approx(metrics.top_share(s, k))
    assert found["function_effective_rank"] == pytest.approx(metrics.effective_rank(s))


def test_a_rotation_of_the_inputs_changes_nothing(rng):
    update, C, Q = gaussian(rng, 12, 10, 4), moment(rng, 10, 40), orthonormal(rng, 10, 10)
    turned = low_rank(update.B, update.A @ Q.T, update.scale)
    here, there = numbers(update, C), numbers(turned, Q @ C @ Q.T)
    for name in here.keys() - {"function_error_bound"}:
        assert there[name] == pytest.approx(here[name], rel=1e-9)
    assert numbers(update, np.roll(C, 1, axis=(0, 1))) != here  # other inputs are others


def test_scales_act_as_they_should(rng):
    update, C = gaussian(rng, 12, 10, 4), moment(rng, 10, 40)
    more = low_rank(update.B, update.A, -3 * update.scale)
    np.testing.assert_allclose(measured(more, 4 * C).s, 6 * measured(update, C).s, rtol=1e-12)
    for name, value in numbers(more, 4 * C).items():
        factor = 6 if name in ("function_norm", "function_error_bound") else 1
        assert value == pytest.approx(factor * numbers(update, C)[name], rel=1e-9)


def test_inputs_may_turn_the_order_of_the_directions_around(rng):
    U, V = orthonormal(rng, 12, 3), orthonormal(rng, 10, 3)
    update = from_spectrum(U, np.array([3.0, 2.0, 1.0]), V)
    weights = np.array([0.01, 1.0, 100.0])  # E(vᵢᵀx)²
    found = numbers(update, V * weights @ V.T)
    energies = np.array([9, 4, 1]) * weights
    assert found["function_norm"] == pytest.approx(np.sqrt(energies.sum()))
    assert found["function_top_share_1"] == pytest.approx(100 / energies.sum())
    assert found["function_carried_1"] == pytest.approx(0.09 / energies.sum())
    assert found["function_carried_4"] == 1
    assert found["function_rank_correlation"] == -1
    assert found["function_alignment"] == pytest.approx(energies.sum() / (14 * 101.01 / 10))


def test_an_update_of_zero_and_inputs_that_it_does_not_read(rng):
    B, A = np.zeros((4, 1)), np.ones((1, 3))
    assert measured(low_rank(B, A), np.eye(3)) is None
    update = low_rank(np.ones((4, 1)), np.array([[1.0, 0.0, 0.0]]))
    found = numbers(update, np.diag([0.0, 1.0, 1.0]))
    assert found["function_norm"] == 0
    assert found.keys() == {"function_norm", "function_error_bound"}


def test_the_columns_are_those_of_the_table(rng):
    assert numbers(gaussian(rng, 9, 5, 2), np.eye(5)).keys() == set(results.FUNCTION)


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_scipys(rng, ties):
    a, b = rng.integers(0, 4, (2, 30)) if ties else rng.standard_normal((2, 30))
    want = scipy.stats.spearmanr(a, b).statistic
    assert function_space.rank_correlation(a, b) == pytest.approx(want, abs=1e-12)
    assert function_space.rank_correlation(a, np.ones(30)) is None
