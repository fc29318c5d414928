import math

import numpy as np
import pytest

from analysis.numerics import metrics, null
from analysis.numerics.statistics import comparable

DRAWS = 2000
STATISTICS = {
    "effective_rank": metrics.effective_rank,
    "s1_over_median": lambda s: s[0] / np.median(s),
    "spectral_norm": metrics.spectral_norm,
    "smallest": lambda s: s[-1],
}


def direct(rng, d_out, d_in, capacity, dense, draws=DRAWS):
    """The null as it is defined, matrix by matrix."""
    if dense:
        W = rng.standard_normal((draws, d_out, d_in))
    else:
        W = rng.standard_normal((draws, d_out, capacity)) @ rng.standard_normal(
            (draws, capacity, d_in)
        )
    return np.linalg.svd(W, compute_uv=False)[:, :capacity]


def assert_same_mean(a, b):
    error = math.hypot(a.std() / a.size**0.5, b.std() / b.size**0.5)
    assert abs(a.mean() - b.mean()) <= 4 * error


KINDS = [
    (12, 9, 3, False),
    (9, 12, 1, False),
    (20, 20, 8, False),
    (10, 7, 7, True),
    (16, 16, 16, True),
    # Factors whose r is not below the smaller side.
    (10, 7, 7, False),
    (7, 12, 10, False),
    (9, 6, 30, False),
]


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("d_out", "d_in", "capacity", "dense"), KINDS)
def test_small_equivalents_have_the_law_of_the_matrices(
    rng, d_out, d_in, capacity, dense, statistic
):
    drawn = null.null_spectra(d_out, d_in, capacity, DRAWS, rng, dense=dense)
    assert drawn.shape == (DRAWS, min(d_out, d_in, capacity))
    of = STATISTICS[statistic]
    want = np.array([of(s) for s in direct(rng, d_out, d_in, capacity, dense)])
    assert_same_mean(np.array([of(s) for s in drawn]), want)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_tridiagonal_path_has_the_same_law(rng, statistic, monkeypatch):
    monkeypatch.setattr(null, "SMALL", 4)
    drawn = null.null_spectra(14, 11, 11, DRAWS, rng, dense=True)
    of = STATISTICS[statistic]
    want = np.array([of(s) for s in direct(rng, 14, 11, 11, dense=True)])
    assert_same_mean(np.array([of(s) for s in drawn]), want)
    if statistic == "s1_over_median":
        three = np.array([null._top_over_median(14, 11, rng) for _ in range(DRAWS)])
        assert_same_mean(three, want)


def test_a_product_is_no_gaussian_matrix(rng):
    """Negative control: the comparison above can tell the two nulls apart."""
    product = direct(rng, 30, 30, 12, dense=False)
    one = null.null_spectra(30, 12, 12, DRAWS, rng, dense=True)
    ranks = [np.array([metrics.effective_rank(s) for s in spectra]) for spectra in (product, one)]
    with pytest.raises(AssertionError):
        assert_same_mean(*ranks)


@pytest.mark.parametrize(
    ("d_out", "d_in", "capacity", "dense"),
    [
        (24, 40, 4, False),
        (40, 24, 20, False),
        (30, 50, 30, True),
        (12, 20, 15, False),
        (8, 8, 40, False),
    ],
)
def test_chance_against_direct_draws(rng, d_out, d_in, capacity, dense):
    spectra = direct(rng, d_out, d_in, capacity, dense)
    own_draws = len(null._enough_spectra(*sorted((d_out, d_in)), capacity, dense))
    for k in (1, 3, spectra.shape[1]):
        by_chance = null.chance(d_out, d_in, capacity, k, dense=dense)
        measured = [comparable(s, k) for s in spectra]
        assert list(by_chance) == list(measured[0])
        for name, got in by_chance.items():
            values = np.array([measures[name] for measures in measured])
            if values.std() < 1e-12:  # a share of all values, or the rank of one
                assert (got.mean, got.spread) == pytest.approx((values[0], 0), abs=1e-12)
                continue
            error = values.std() * math.hypot(1 / DRAWS**0.5, 1 / own_draws**0.5)
            assert abs(got.mean - values.mean()) <= 4 * error, (name, k)
            assert got.spread == pytest.approx(values.std(), rel=0.15), (name, k)


@pytest.mark.parametrize(("d_out", "d_in", "capacity", "dense"), KINDS)
def test_measures_of_many_spectra_are_those_of_each(rng, d_out, d_in, capacity, dense):
    spectra = null.null_spectra(d_out, d_in, capacity, 3, rng, dense=dense)
    spectra[0, 1:] = 0
    for k in range(1, spectra.shape[1] + 1):
        many = null._measures(spectra, k)
        for i, s in enumerate(spectra):
            one = {name: values[i] for name, values in many.items()}
            assert one == pytest.approx(comparable(s, k), rel=1e-12, abs=1e-14)


def test_the_null_of_factors_has_no_jump_where_r_reaches_the_smaller_side(rng):
    """64×512: one dense null from r = 64 would give 0.80 there and 0.92 at r = 128."""
    for r in (63, 64, 65, 128, 256):
        s = null.null_spectra(64, 512, r, 1, rng, dense=False)[0]
        assert null.democracy(s, 64, 512, r, dense=False) == pytest.approx(1, abs=0.03), r
        as_if_dense = null.democracy(s, 64, 512, 64, dense=True)
        assert r == 256 or as_if_dense < 0.95, r
    # Many more columns than rows make the product one Gaussian matrix.
    wide = null.chance(16, 40, 10**9, 16, dense=False)["effective_rank_k"].mean
    one = null.chance(16, 40, 16, 16, dense=True)["effective_rank_k"].mean
    assert wide == pytest.approx(one, rel=2e-3)


@pytest.mark.parametrize(("d", "r"), [(768, 4), (768, 16), (4096, 16), (64, 4)])
def test_means_have_an_error_of_a_thousandth(d, r):
    spectra = null._enough_spectra(d, d, r, False)
    for name, got in null.chance(d, d, r, r, dense=False).items():
        size = 1 if name == "gini_k" else got.mean
        assert got.spread / len(spectra) ** 0.5 <= 1.25e-3 * size, name


def test_few_draws_where_one_is_expensive_or_says_all():
    assert len(null._enough_spectra(30, 300, 1, False)) == null.PILOT
    assert len(null._enough_spectra(600, 900, 600, True)) == null.FEWEST
    assert len(null._enough_spectra(64, 64, 64, False)) == null.WORK // 64**2


@pytest.mark.parametrize("k", [0, 9])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 8"):
        null.chance(12, 20, 8, k, dense=False)


@pytest.mark.parametrize(("r", "capacity"), [(4, 4), (12, 12), (40, 12), (None, 12)])
def test_a_row_has_the_null_of_its_r(r, capacity):
    row = {"d_out": 20, "d_in": 12, "r": r, "capacity": capacity}
    want = null.chance(20, 12, r or 12, 3, dense=r is None)
    assert null.of_row(row, 3) == want
    # Negative control: every other kind of update has another null.
    others = {(4, False), (12, False), (40, False), (12, True)} - {(r or 12, r is None)}
    for other, dense in others:
        assert null.chance(20, 12, other, 3, dense=dense) != want


def test_an_impossible_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity is 8; expected 12 for a dense update"):
        null.chance(12, 20, 8, 1, dense=True)
    with pytest.raises(ValueError, match="capacity is 0; expected at least 1"):
        null.chance(12, 20, 0, 1, dense=False)


def test_dense_effective_rank_of_large_matrices_is_known():
    # The quarter circle: 0.80·d for a square Gaussian matrix, 0.67·d for a product of two.
    for dense, want in ((True, 0.80), (False, 0.67)):
        by_chance = null.chance(400, 400, 400, 400, dense=dense)
        assert by_chance["effective_rank_k"].mean / 400 == pytest.approx(want, abs=0.01)


def test_democracy_is_one_by_chance_and_falls_with_dominance(rng):
    s = np.linalg.svd(
        rng.standard_normal((300, 16)) @ rng.standard_normal((16, 200)), compute_uv=False
    )[:16]
    assert null.democracy(s, 300, 200, 16, dense=False) == pytest.approx(1, abs=0.03)
    assert null.democracy(7 * s, 200, 300, 16, dense=False) == pytest.approx(
        null.democracy(s, 300, 200, 16, dense=False), rel=1e-14
    )
    dominated = s * np.geomspace(1, 1e-3, 16)
    assert null.democracy(dominated, 300, 200, 16, dense=False) < 0.5
    assert null.democracy(s[:1], 300, 200, 1, dense=False) == 1
    assert math.isnan(null.democracy(np.zeros(16), 300, 200, 16, dense=False))


def test_draws_are_the_same_every_time():
    first = null.chance(60, 90, 5, 3, dense=False), null.null_edge(20, 30)
    null._chance.cache_clear()
    null._enough_spectra.cache_clear()
    null.null_edge.cache_clear()
    assert (null.chance(90, 60, 5, 3, dense=False), null.null_edge(20, 30)) == first


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


def test_a_small_checkpoint_of_many_shapes_gets_the_null_of_the_frequent_ones():
    def row(d_in, r=8, norm=1.0):
        return {"d_out": 20, "d_in": d_in, "r": r, "spectral_norm": norm}

    many = [row(20 + i) for i in range(100)]
    drawn = null.drawn([*many, *3 * [row(500)], row(700, norm=0.0)])
    assert (20, 500, 8) in drawn
    assert (20, 700, 8) not in drawn
    assert 5 < len(drawn) < 30
    ordinary = [row(4096, r=16) for _ in range(200)] + [row(11008, r=None)]
    assert null.drawn(ordinary) == {(20, 4096, 16), (20, 11008, None)}
    # Rank 1 costs nothing: its values are known without a draw.
    assert len(null.drawn([row(20 + i, r=1) for i in range(500)])) == 500
