import math

import numpy as np
import pytest

from analysis.numerics import metrics, null

DRAWS = 2000
STATISTICS = {
    "effective_rank": metrics.effective_rank,
    "s1_over_median": lambda s: s[0] / np.median(s),
    "spectral_norm": metrics.spectral_norm,
    "smallest": lambda s: s[-1],
}


def direct(rng, d_out, d_in, capacity):
    """The null as it is defined, matrix by matrix."""
    if capacity == min(d_out, d_in):
        W = rng.standard_normal((DRAWS, d_out, d_in))
    else:
        W = rng.standard_normal((DRAWS, d_out, capacity)) @ rng.standard_normal(
            (DRAWS, capacity, d_in)
        )
    return np.linalg.svd(W, compute_uv=False)[:, :capacity]


def assert_same_mean(a, b):
    error = math.hypot(a.std() / a.size**0.5, b.std() / b.size**0.5)
    assert abs(a.mean() - b.mean()) <= 4 * error


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(
    ("d_out", "d_in", "capacity"), [(12, 9, 3), (9, 12, 1), (20, 20, 8), (10, 7, 7), (16, 16, 16)]
)
def test_small_equivalents_have_the_law_of_the_matrices(rng, d_out, d_in, capacity, statistic):
    drawn = null.null_spectra(d_out, d_in, capacity, DRAWS, rng)
    assert drawn.shape == (DRAWS, capacity)
    of = STATISTICS[statistic]
    want = np.array([of(s) for s in direct(rng, d_out, d_in, capacity)])
    assert_same_mean(np.array([of(s) for s in drawn]), want)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_tridiagonal_path_has_the_same_law(rng, statistic, monkeypatch):
    monkeypatch.setattr(null, "SMALL", 4)
    drawn = null.null_spectra(14, 11, 11, DRAWS, rng)
    of = STATISTICS[statistic]
    want = np.array([of(s) for s in direct(rng, 14, 11, 11)])
    assert_same_mean(np.array([of(s) for s in drawn]), want)
    if statistic == "s1_over_median":
        three = np.array([null._top_over_median(14, 11, rng) for _ in range(DRAWS)])
        assert_same_mean(three, want)


def test_a_product_is_no_gaussian_matrix(rng):
    """Negative control: the comparison above can tell the two nulls apart."""
    product = direct(rng, 30, 30, 12)
    one = null.null_spectra(30, 12, 12, DRAWS, rng)
    ranks = [np.array([metrics.effective_rank(s) for s in spectra]) for spectra in (product, one)]
    with pytest.raises(AssertionError):
        assert_same_mean(*ranks)


@pytest.mark.parametrize(("d_out", "d_in", "capacity"), [(24, 40, 4), (40, 24, 4), (30, 50, 30)])
def test_mean_effective_rank_against_direct_draws(rng, d_out, d_in, capacity):
    ranks = np.array([metrics.effective_rank(s) for s in direct(rng, d_out, d_in, capacity)])
    got = null.null_effective_rank(*sorted((d_out, d_in)), capacity)
    own_draws = max(4, min(4096, 2**16 // capacity**2))
    error = ranks.std() * math.hypot(1 / DRAWS**0.5, 1 / own_draws**0.5)
    assert abs(got - ranks.mean()) <= 4 * error


def test_dense_effective_rank_of_large_matrices_is_known():
    # The quarter circle: 0.80·d for a square Gaussian matrix, 0.67·d for a product of two.
    assert null.null_effective_rank(400, 400, 400) / 400 == pytest.approx(0.80, abs=0.01)


def test_democracy_is_one_by_chance_and_falls_with_dominance(rng):
    s = np.linalg.svd(
        rng.standard_normal((300, 16)) @ rng.standard_normal((16, 200)), compute_uv=False
    )[:16]
    assert null.democracy(s, 300, 200) == pytest.approx(1, abs=0.03)
    assert null.democracy(7 * s, 200, 300) == pytest.approx(null.democracy(s, 300, 200), rel=1e-14)
    dominated = s * np.geomspace(1, 1e-3, 16)
    assert null.democracy(dominated, 300, 200) < 0.5
    assert null.democracy(s[:1], 300, 200) == 1
    assert math.isnan(null.democracy(np.zeros(16), 300, 200))


def test_draws_are_the_same_every_time():
    first = null.null_effective_rank(60, 90, 5), null.null_edge(20, 30)
    null.null_effective_rank.cache_clear()
    null.null_edge.cache_clear()
    assert (null.null_effective_rank(60, 90, 5), null.null_edge(20, 30)) == first


@pytest.mark.parametrize(("d_out", "d_in"), [(60, 40), (90, 80)])
def test_outliers_find_planted_spikes_and_little_else(rng, d_out, d_in):
    noise = rng.standard_normal((1000, d_out, d_in))
    spectra = np.linalg.svd(noise, compute_uv=False)
    alarms = sum(null.outliers(s, d_out, d_in) > 0 for s in spectra)
    # 1 %, within four standard errors of these 1000 matrices and of the quantile's 1000 draws.
    assert abs(alarms / 1000 - 0.01) <= 4 * math.sqrt(2 * 0.01 * 0.99 / 1000)

    edge = null.null_edge(*sorted((d_out, d_in))) * np.median(spectra[0])
    U, V = (np.linalg.qr(rng.standard_normal((d, 10)))[0] for d in (d_out, d_in))
    sizes = np.append(np.linspace(2.0, 4.0, 9), 1e4) * edge
    found = [
        null.outliers(np.linalg.svd(W + (U * sizes) @ V.T, compute_uv=False), d_out, d_in)
        for W in noise[:20]
    ]
    assert found == [10] * 20


def test_outliers_of_zero_and_of_one_column():
    assert null.outliers(np.zeros(5), 5, 9) == 0
    assert null.outliers(np.array([3.0]), 1, 9) == 0


def test_angles_of_random_subspaces(rng):
    import scipy.linalg

    d, k = 12, 4
    draws = np.array(
        [scipy.linalg.subspace_angles(*rng.standard_normal((2, d, k)))[::-1] for _ in range(DRAWS)]
    )
    error = draws.std(axis=0) * math.hypot(1 / DRAWS**0.5, 1 / null.ANGLE_DRAWS**0.5)
    assert np.all(np.abs(null.null_angles(d, k) - draws.mean(axis=0)) <= 4 * error)
    # Negative control: another dimension is told from it.
    assert np.all((np.abs(null.null_angles(4 * d, k) - draws.mean(axis=0)) > 4 * error)[:2])
    np.testing.assert_allclose(null.null_angles(5, 5), 0, atol=1e-6)
