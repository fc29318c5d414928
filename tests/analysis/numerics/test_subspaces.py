"""Two subspaces against explicit projections, scipy's angles, chance by direct draws."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from analysis.numerics import decompose, subspaces
from analysis.numerics.decompose import Basis
from analysis.numerics.turning import Turning
from analysis.update import DenseUpdate, LowRankUpdate

EPS = np.finfo(float).eps


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def low_rank(rng, d_out, d_in, r, scale=1.0):
    B, A = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
    return LowRankUpdate("layers.0.q", B, A, scale)


def dense(W):
    return DenseUpdate("layers.0.q", W.shape, lambda: W)


def compared(a, b):
    return subspaces.pair_measures(decompose.decomposition(a), decompose.decomposition(b))


def phi_of_projections(U1, U2):
    """The definition, one explicit projection a pair of sizes."""
    grid = np.empty((U1.shape[1], U2.shape[1]))
    for i, j in np.ndindex(*grid.shape):
        P1, P2 = (U[:, :n] @ U[:, :n].T for U, n in ((U1, i + 1), (U2, j + 1)))
        grid[i, j] = np.trace(P1 @ P2) / (min(i, j) + 1)
    return grid


@pytest.mark.parametrize(("d", "k1", "k2"), [(9, 4, 3), (5, 5, 2), (6, 1, 6)])
def test_phi_is_the_trace_of_projections(rng, d, k1, k2):
    U1, U2 = orthonormal(rng, d, k1), orthonormal(rng, d, k2)
    np.testing.assert_allclose(
        subspaces.phi(U1, U2), phi_of_projections(U1, U2), rtol=0, atol=50 * EPS
    )


def test_phi_of_itself_of_its_complement_and_of_a_rotation(rng):
    U = orthonormal(rng, 12, 12)
    one, other = U[:, :5], U[:, 5:10]
    np.testing.assert_allclose(np.diagonal(subspaces.phi(one, one)), 1, atol=50 * EPS)
    np.testing.assert_allclose(subspaces.phi(one, other), 0, atol=50 * EPS)
    mixed = orthonormal(rng, 12, 5)
    grid = subspaces.phi(one, mixed)
    Q = orthonormal(rng, 12, 12)
    np.testing.assert_allclose(subspaces.phi(Q @ one, Q @ mixed), grid, atol=50 * EPS)
    np.testing.assert_allclose(subspaces.phi(mixed, one), grid.T, atol=50 * EPS)
    signs = np.array([1, -1, -1, 1, -1])
    np.testing.assert_allclose(subspaces.phi(one * signs, mixed), grid, atol=50 * EPS)
    assert np.all(grid >= 0)
    assert np.all(grid <= 1 + 50 * EPS)


def test_chance_is_the_mean_of_direct_draws(rng):
    draws = np.array(
        [subspaces.phi(orthonormal(rng, 11, 4), orthonormal(rng, 11, 6)) for _ in range(2000)]
    )
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - subspaces.chance(4, 6, 11)) <= 4 * error)
    # Negative control: half of it is told from the truth.
    assert np.all(np.abs(draws.mean(axis=0) - subspaces.chance(4, 6, 22)) > 4 * error)


def test_above_chance(rng):
    U = orthonormal(rng, 10, 4)
    of_itself = np.mean([1 - i / 10 for i in (1, 2, 3, 4)])
    assert subspaces.above_chance(subspaces.phi(U, U), 10) == pytest.approx(of_itself, abs=1e-14)
    draws = [
        subspaces.above_chance(subspaces.phi(U, orthonormal(rng, 10, 4)), 10) for _ in range(2000)
    ]
    assert abs(np.mean(draws)) <= 4 * np.std(draws) / 2000**0.5
    grid = subspaces.phi(U, U)
    grid[1] = np.nan
    without = np.mean([1 - i / 10 for i in (1, 3, 4)])
    assert subspaces.above_chance(grid, 10) == pytest.approx(without, abs=1e-14)
    assert np.isnan(subspaces.above_chance(np.full((3, 3), np.nan), 10))


@pytest.mark.parametrize("turn", [0.0, 1e-12, 1e-9, 1e-5, 1e-3, 0.1, 1.5, np.pi / 2])
def test_principal_angles_are_those_of_scipy(rng, turn):
    Q = orthonormal(rng, 20, 10)
    U1 = Q[:, :5]
    angles = turn * np.array([1, 0.8, 0.5, 0.1, 0])
    U2 = U1 * np.cos(angles) + Q[:, 5:] * np.sin(angles)
    U1, U2 = U1 @ orthonormal(rng, 5, 5), U2 @ orthonormal(rng, 5, 5)
    got = subspaces.principal_angles(U1.T @ U2, Basis(U1), Basis(U2))
    np.testing.assert_allclose(got, np.sort(angles), rtol=0, atol=1e-10)
    np.testing.assert_allclose(got, scipy.linalg.subspace_angles(U1, U2)[::-1], rtol=0, atol=1e-10)


def test_arc_cosines_alone_would_fail_that_tolerance(rng):
    """Negative control: why small angles are taken from sines."""
    Q = orthonormal(rng, 20, 10)
    U1, U2 = Q[:, :5], Q[:, :5] * np.cos(1e-9) + Q[:, 5:] * np.sin(1e-9)
    cosines = np.linalg.svd(U1.T @ U2, compute_uv=False)
    assert np.abs(np.arccos(np.clip(cosines, -1, 1)) - 1e-9).max() > 1e-10


def test_projection_distance(rng):
    U1, U2 = orthonormal(rng, 9, 3), orthonormal(rng, 9, 3)
    angles = scipy.linalg.subspace_angles(U1, U2)
    want = np.linalg.norm(U1 @ U1.T - U2 @ U2.T) / np.sqrt(2)
    assert subspaces.projection_distance(angles) == pytest.approx(want, abs=1e-14)
    assert subspaces.projection_distance(np.zeros(3)) == 0


@pytest.mark.parametrize(("d_out", "d_in"), [(14, 9), (9, 14), (12, 12), (200, 150)])
@pytest.mark.parametrize(("r_a", "r_b"), [(4, 4), (3, 6), (1, 5)])
def test_compare_is_the_dense_algebra(rng, d_out, d_in, r_a, r_b):
    a, b = low_rank(rng, d_out, d_in, r_a, -0.7), low_rank(rng, d_out, d_in, r_b, 2.0)
    numbers, arrays = compared(a, b)
    (U_a, s_a, Vh_a), (U_b, s_b, Vh_b) = (
        np.linalg.svd(update.dense(), full_matrices=False) for update in (a, b)
    )
    k = min(r_a, r_b)
    assert numbers["k"] == k
    for side, d, one, other in (("left", d_out, U_a, U_b), ("right", d_in, Vh_a.T, Vh_b.T)):
        want = phi_of_projections(one[:, :k], other[:, :k])
        np.testing.assert_allclose(arrays[side], want, rtol=0, atol=1e-11)
        assert numbers[f"{side}_phi_1"] == pytest.approx(want[0, 0], abs=1e-11)
        assert numbers[f"{side}_phi_k"] == pytest.approx(want[-1, -1], abs=1e-11)
        assert numbers[f"{side}_chance_k"] == k / d
        angles = scipy.linalg.subspace_angles(one[:, :k], other[:, :k])[::-1]
        np.testing.assert_allclose(arrays[f"{side}_angles"], angles, rtol=0, atol=1e-9)
        assert numbers[f"{side}_largest_angle"] == pytest.approx(angles[-1], abs=1e-9)
        assert np.isnan(numbers[f"{side}_phi_8"])
    cosine = np.sum(a.dense() * b.dense()) / np.linalg.norm(s_a) / np.linalg.norm(s_b)
    assert numbers["cosine"] == pytest.approx(cosine, abs=1e-12)
    ratio = np.linalg.norm(a.dense()) / np.linalg.norm(b.dense())
    assert numbers["norm_ratio"] == pytest.approx(ratio, rel=1e-12)
    assert numbers["undetermined"] is None


def test_compare_is_invariant(rng):
    """Rotating both, scaling one, and swapping the two change what they should."""
    a, b = low_rank(rng, 15, 11, 3), low_rank(rng, 15, 11, 5)
    numbers, arrays = compared(a, b)
    Q, R = orthonormal(rng, 15, 15), orthonormal(rng, 11, 11)
    turned, _ = compared(*(LowRankUpdate("q", Q @ u.B, u.A @ R) for u in (a, b)))
    scaled, _ = compared(LowRankUpdate("q", a.B, a.A, -3.0), b)
    swapped, backwards = compared(b, a)
    for name, value in numbers.items():
        if isinstance(value, float) and np.isfinite(value):
            assert turned[name] == pytest.approx(value, abs=1e-11)
            sign = {"cosine": -1, "norm_ratio": 3}.get(name, 1)
            assert scaled[name] == pytest.approx(sign * value, abs=1e-11)
            if name != "norm_ratio":
                assert swapped[name] == pytest.approx(value, abs=1e-11)
    assert swapped["norm_ratio"] == pytest.approx(1 / numbers["norm_ratio"], rel=1e-11)
    np.testing.assert_allclose(backwards["left"], arrays["left"].T, atol=1e-11)


def test_an_update_against_itself_its_complement_and_chance(rng):
    a = low_rank(rng, 40, 30, 4)
    same, _ = compared(a, LowRankUpdate("q", a.B, a.A, 0.1))
    assert same["left_phi_k"] == pytest.approx(1, abs=1e-12)
    assert same["cosine"] == pytest.approx(1, abs=1e-12)
    assert same["right_largest_angle"] < 1e-7
    assert same["right_projection_distance"] < 1e-7
    U, _, Vh = np.linalg.svd(a.dense())
    away = LowRankUpdate("q", U[:, 10:14] * [4, 3, 2, 1], Vh[20:24])
    apart, _ = compared(a, away)
    for name in ("left_phi_k", "right_phi_k", "cosine"):
        assert apart[name] == pytest.approx(0, abs=1e-12)
    assert apart["left_largest_angle"] == pytest.approx(np.pi / 2)
    draws = [compared(a, low_rank(rng, 40, 30, 4))[0] for _ in range(500)]
    for side in subspaces.SIDES:
        values = np.array([numbers[f"{side}_phi_k"] for numbers in draws])
        assert abs(values.mean() - draws[0][f"{side}_chance_k"]) <= 4 * values.std() / 500**0.5


def test_low_rank_against_dense_and_dense_against_dense(rng):
    a, b = low_rank(rng, 12, 8, 3), low_rank(rng, 12, 8, 5)
    want, of_factors = compared(a, b)
    for one, other in ((a, dense(b.dense())), (dense(a.dense()), dense(b.dense()))):
        numbers, arrays = compared(one, other)
        # A dense update of rank 5 is known to be one: its other values are rounding.
        assert numbers["k"] == 3
        np.testing.assert_allclose(arrays["left"], of_factors["left"], atol=1e-10)
        assert numbers["cosine"] == pytest.approx(want["cosine"], abs=1e-12)
        assert numbers["right_phi_k"] == pytest.approx(want["right_phi_k"], abs=1e-10)


def test_full_rank_on_the_short_side_is_the_whole_space(rng):
    numbers, _ = compared(*(dense(rng.standard_normal((6, 9))) for _ in range(2)))
    assert numbers["left_phi_k"] == pytest.approx(1, abs=1e-12)
    assert numbers["left_chance_k"] == 1
    assert numbers["right_phi_k"] < 1


def test_rank_deficient_updates_are_compared_up_to_their_rank(rng):
    a = low_rank(rng, 12, 9, 5)
    a.B[:, 2] = 0
    numbers, arrays = compared(a, low_rank(rng, 12, 9, 6))
    assert numbers["k"] == 4
    assert arrays["left"].shape == (4, 4)
    assert np.isfinite(arrays["left"]).all()
    want = phi_of_projections(
        np.linalg.svd(a.dense())[0][:, :4], np.linalg.svd(a.dense())[0][:, :4]
    )
    np.testing.assert_allclose(compared(a, a)[1]["left"], want, atol=1e-11)


def test_a_rank_beyond_the_sizes(rng):
    a, b = low_rank(rng, 6, 4, 20), low_rank(rng, 6, 4, 2)
    numbers, arrays = compared(a, b)
    U_a, U_b = (np.linalg.svd(u.dense(), full_matrices=False)[0] for u in (a, b))
    np.testing.assert_allclose(
        arrays["left"], phi_of_projections(U_a[:, :2], U_b[:, :2]), atol=1e-11
    )
    assert numbers["k"] == 2


def test_a_cut_between_equal_values_is_undetermined(rng):
    U, V = orthonormal(rng, 12, 6), orthonormal(rng, 10, 6)
    tied = LowRankUpdate("q", U * [5, 4, 4, 3, 2, 1], V.T)
    other = low_rank(rng, 12, 10, 4)
    np.testing.assert_array_equal(
        subspaces.undetermined(decompose.decomposition(tied)), [False, True, *[False] * 4]
    )
    numbers, arrays = compared(tied, other)
    assert np.isnan(arrays["left"][1]).all()
    assert np.isfinite(np.delete(arrays["left"], 1, axis=0)).all()
    assert numbers["undetermined"] is None  # 2 is no cut that a row reports
    four = LowRankUpdate("q", U * [5, 4, 3, 2, 2, 1], V.T)
    numbers, arrays = compared(four, other)
    assert numbers["undetermined"] == "4"
    assert np.isnan(numbers["left_phi_4"])
    assert np.isnan(numbers["right_phi_k"])
    assert np.isnan(numbers["right_projection_distance"])
    assert "left_angles" not in arrays
    # Turned within the tie it is the same update, and everything that is reported is the same.
    T = scipy.linalg.block_diag(np.eye(3), orthonormal(rng, 2, 2), 1)
    again, _ = compared(LowRankUpdate("q", (U @ T) * [5, 4, 3, 2, 2, 1], T.T @ V.T), other)
    for name, value in numbers.items():
        assert again[name] == pytest.approx(value, abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("tied_first", [True, False])
def test_undetermined_cuts_of_either_update_are_left_out(rng, tied_first):
    U, V = orthonormal(rng, 12, 6), orthonormal(rng, 10, 6)
    tied = LowRankUpdate("q", U * [5, 5, 4, 3, 3, 1], V.T)  # cuts 1 and 4 are undetermined
    other = low_rank(rng, 12, 10, 4)
    numbers, arrays = compared(tied, other) if tied_first else compared(other, tied)
    assert numbers["k"] == 4
    assert numbers["undetermined"] == "1 4"
    for side, d in (("left", 12), ("right", 10)):
        grid = arrays[side] if tied_first else arrays[side].T
        assert np.isnan(grid[[0, 3]]).all()
        assert np.isfinite(grid[[1, 2]]).all()
        for name in ("phi_1", "phi_4", "phi_k", "largest_angle", "projection_distance"):
            assert np.isnan(numbers[f"{side}_{name}"])
        want = np.mean([grid[1, 1] - 2 / d, grid[2, 2] - 3 / d])
        assert numbers[f"{side}_above_chance"] == pytest.approx(want, abs=1e-14)
        assert f"{side}_angles" not in arrays


def decomposed(s, rank, error_bound):
    """A decomposition with these values, and axes as vectors."""
    basis = Basis(np.eye(len(s)))
    return decompose.Decomposition(basis, np.array(s, float), basis, rank, error_bound)


@pytest.mark.parametrize(
    ("s", "rank", "want"),
    [
        # The cut at the rank is determined, although the values around it lie close together;
        ([3, 2, 1e-10, 9e-11], 3, [False, False, False, True]),
        ([3, 2, 1e-10], 3, [False, False, False]),
        ([1e-10, 0, 0], 1, [False, True, True]),
        # the cuts before it are not, if they are tied,
        ([3, 2, 2, 1e-10], 3, [False, True, False, True]),
        ([2, 2, 0], 2, [True, False, True]),
        # nor is any cut beyond it, however far apart the values lie.
        ([5, 4, 3, 2], 2, [False, False, True, True]),
        ([0, 0], 0, [True, True]),
    ],
)
def test_the_cut_at_the_rank_is_determined(s, rank, want):
    got = subspaces.undetermined(decomposed(s, rank, error_bound=1e-12))
    np.testing.assert_array_equal(got, want)


def test_numbers_at_the_rank_are_those_of_the_whole_span():
    """k is a reported cut, and the last one that the smaller rank has."""
    for k in (1, 4, 8):
        values = np.arange(k + 1.0, 1, -1)
        a, b = decomposed([*values, 0, 0], k, 1e-15), decomposed([*values, 0.5, 0.25], k + 2, 1e-15)
        for one, other in ((a, b), (b, a)):
            numbers, arrays = subspaces.pair_measures(one, other)
            assert numbers["k"] == k
            assert numbers[f"left_phi_{k}"] == numbers["left_phi_k"] == 1
            assert numbers["undetermined"] is None
            assert arrays["left"].shape == (k, k)
            assert arrays["right_angles"].shape == (k,)


@pytest.mark.parametrize(("times", "open_cut"), [(1e3, True), (9e3, True), (1.1e4, False)])
def test_values_are_told_apart_from_ten_thousand_times_their_error(times, open_cut):
    """At a gap of n errors the vectors are turned by about 1/n, which φ must not show."""
    got = subspaces.undetermined(decomposed([2.0, 1.0 + times * 1e-12, 1.0], 3, 1e-12))
    np.testing.assert_array_equal(got, [False, open_cut, False])


def test_grids_are_kept_up_to_a_size(rng):
    a, b = (dense(rng.standard_normal((140, 150))) for _ in range(2))
    numbers, arrays = compared(a, b)
    assert numbers["k"] == 140
    assert arrays["right"].shape == (subspaces.GRID, subspaces.GRID)
    assert arrays["right_angles"].shape == (140,)
    assert numbers["right_phi_k"] == pytest.approx(np.mean(np.cos(arrays["right_angles"]) ** 2))


@pytest.mark.parametrize("condition", [2.0, 30.0, 90.0, 110.0, 300.0, 900.0, 1e4, 1e6])
def test_vectors_through_the_factors_keep_their_digits(rng, condition):
    """Either side of the switch from Cholesky to QR, against QR alone."""
    factors = []
    for d in (60, 50):
        s = np.geomspace(1, 1 / condition, 8)
        factors.append((orthonormal(rng, d, 8) * s) @ orthonormal(rng, 8, 8))
    a, b = LowRankUpdate("q", factors[0], factors[1].T), low_rank(rng, 60, 50, 8)
    fast = decompose.decomposition(a)
    exact = decompose.decomposition(a, "svd")
    against = decompose.decomposition(b, "svd")
    for side in subspaces.SIDES:
        one, other = (
            getattr(found, side).against(getattr(against, side)) for found in (fast, exact)
        )
        np.testing.assert_allclose(
            subspaces.phi_of(one)[:2], subspaces.phi_of(other)[:2], rtol=0, atol=1e-10
        )
        vectors = getattr(fast, side).vectors()
        # Cholesky costs eps times the square of the condition, which is therefore at most 100.
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), rtol=0, atol=1e-12)
    by_cholesky = fast.left.M is a.B  # the fast way, through the factors themselves
    if condition < 100:
        assert by_cholesky
    if condition > 200:
        assert not by_cholesky


@pytest.mark.parametrize("largest", [0.099, 0.101, np.inf])
def test_a_span_that_storage_turned_is_undetermined(largest):
    """Also at the rank itself; beyond it every cut is."""
    turning = Turning(largest=np.array([0.0, largest, largest, 0.0]), lost=np.zeros(4))
    found = replace(decomposed([4.0, 3, 2, 1e-9], 3, 1e-15), turning=turning)
    open_cut = largest > subspaces.TURNED
    want = [False, open_cut, open_cut, True]
    np.testing.assert_array_equal(subspaces.undetermined(found), want)
