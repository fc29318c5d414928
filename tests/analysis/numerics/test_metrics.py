import math

import numpy as np
import pytest
import scipy.stats

from analysis.numerics import metrics

EPS = np.finfo(float).eps
RATIOS = {
    "top_share": lambda s: metrics.top_share(s, 2),
    "effective_rank": metrics.effective_rank,
    "energy_entropy_rank": metrics.energy_entropy_rank,
    "stable_rank": metrics.stable_rank,
    "participation_ratio": metrics.participation_ratio,
    "gini": metrics.gini,
    "energy_rank": lambda s: metrics.energy_rank(s, 0.9),
    "utilisation": lambda s: metrics.utilisation(s, 9),
}
RANKS = ("effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio")


def descending(rng, k):
    return np.sort(rng.lognormal(sigma=2, size=k))[::-1]


@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_norms_are_those_of_the_matrix(rng, k):
    W = rng.standard_normal((k, k + 3))
    s = np.linalg.svd(W, compute_uv=False)
    assert metrics.spectral_norm(s) == pytest.approx(np.linalg.norm(W, 2), rel=10 * k * EPS)
    assert metrics.frobenius_norm(s) == pytest.approx(np.linalg.norm(W, "fro"), rel=10 * k * EPS)
    assert metrics.nuclear_norm(s) == pytest.approx(np.linalg.norm(W, "nuc"), rel=10 * k * EPS)


@pytest.mark.parametrize("k", [1, 2, 9, 300])
def test_ratios_equal_their_formulas(rng, k):
    s = descending(rng, k)
    p, e = s / s.sum(), s**2 / np.sum(s**2)
    near = {"rel": 20 * k * EPS, "abs": 20 * k * EPS}
    assert metrics.effective_rank(s) == pytest.approx(math.exp(scipy.stats.entropy(p)), **near)
    assert metrics.energy_entropy_rank(s) == pytest.approx(math.exp(scipy.stats.entropy(e)), **near)
    assert metrics.stable_rank(s) == pytest.approx(np.sum(s**2) / s[0] ** 2, **near)
    assert metrics.participation_ratio(s) == pytest.approx(1 / np.sum(e**2), **near)
    differences = np.abs(s[:, None] - s[None, :]).sum() / (2 * k**2 * s.mean())
    assert metrics.gini(s) == pytest.approx(differences, **near)
    assert metrics.utilisation(s, 2 * k) == pytest.approx(
        metrics.effective_rank(s) / (2 * k), **near
    )
    for top in (1, 4, 16, k):
        assert metrics.top_share(s, top) == pytest.approx(e[:top].sum(), **near)


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_do_not_depend_on_size(rng, name):
    s = descending(rng, 9)
    # Powers of two, so that the ratios are equal to the bit; s² alone would overflow, or vanish.
    for scale in (2.0**-800, 2.0**600):
        assert RATIOS[name](scale * s) == RATIOS[name](s)


def test_norms_scale_and_do_not_overflow(rng):
    s = descending(rng, 9)
    for norm in (metrics.spectral_norm, metrics.frobenius_norm, metrics.nuclear_norm):
        assert norm(2.0**600 * s) == 2.0**600 * norm(s)


@pytest.mark.parametrize("name", RANKS)
def test_ranks_lie_between_one_and_k(rng, name):
    rank = RATIOS[name]
    assert rank(np.array([3.0, 0.0, 0.0, 0.0])) == 1
    assert rank(np.full(7, 0.3)) == pytest.approx(7, rel=50 * EPS)
    for _ in range(200):
        k = int(rng.integers(1, 30))
        assert 1 - 50 * EPS <= rank(descending(rng, k)) <= k * (1 + 50 * EPS)


@pytest.mark.parametrize("name", RANKS)
def test_ranks_fall_as_energy_gathers(name):
    """Negative control: the measure must tell a steep spectrum from a flat one."""
    even, steep = np.arange(8, 0, -1.0), np.arange(8, 0, -1.0) ** 3
    assert RATIOS[name](steep) < RATIOS[name](even)
    assert metrics.gini(steep) > metrics.gini(even)


def test_gini_at_its_ends():
    assert metrics.gini(np.full(5, 2.0)) == pytest.approx(0, abs=10 * EPS)
    assert metrics.gini(np.array([1.0, 0, 0, 0])) == pytest.approx(3 / 4, abs=10 * EPS)


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_of_zero_are_undefined(name):
    assert math.isnan(RATIOS[name](np.zeros(4)))


def test_norms_and_rank_of_zero_are_zero():
    zero = np.zeros(4)
    assert metrics.spectral_norm(zero) == metrics.frobenius_norm(zero) == 0
    assert metrics.nuclear_norm(zero) == metrics.rank(zero, 0.0) == 0


def test_rank_counts_what_is_strictly_above():
    assert metrics.rank(np.array([3.0, 2.0, 1.0, 0.0]), 1.0) == 2


@pytest.mark.parametrize(("q", "want"), [(0.5, 1), (0.9, 2), (0.99, 3), (1.0, 4)])
def test_energy_rank_by_hand(q, want):
    # Energies 0.6, 0.3, 0.09, 0.01 of 1.
    assert metrics.energy_rank(np.sqrt([0.61, 0.30, 0.085, 0.005]), q) == want


def test_energy_rank_never_exceeds_k(rng):
    """A sum in another order than the cumulative one returned k + 1 in a third of the cases."""
    for _ in range(2000):
        k = int(rng.integers(1, 60))
        assert metrics.energy_rank(descending(rng, k), 1.0) <= k


def test_no_direction_holds_no_energy():
    assert metrics.top_share(np.array([4.0, 3.0]), 0) == 0
    assert math.isnan(metrics.top_share(np.zeros(3), 0))
    with pytest.raises(ValueError, match="k is -1; expected at least 0"):
        metrics.top_share(np.array([4.0, 3.0]), -1)
