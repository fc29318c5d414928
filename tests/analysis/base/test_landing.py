"""ΔW beside W0: against dense algebra, planted directions, real models."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.base import landing
from analysis.base import vectors as base_vectors
from analysis.base import weights as base_weights
from analysis.formats import Options
from analysis.numerics.decompose import decomposition
from analysis.update import DenseUpdate, LowRankUpdate

EPS = np.finfo(float).eps
SHAPES = [(9, 5), (5, 9), (30, 30), (1, 7), (7, 1), (1, 1), (300, 40), (40, 300)]


def low_rank(B, A, scale=1.0, **facts):
    return LowRankUpdate("h.0.q", B, A, scale, **facts)


def dense(W, **facts):
    return DenseUpdate("h.0.q", W.shape, lambda: W, **facts)


def gaussian_update(rng, d_out, d_in, r):
    return low_rank(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), 0.3)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def known(rng, s, d_out, d_in):
    """W0 = U diag(s) Vᵀ with its vectors."""
    U, V = orthonormal(rng, d_out, len(s)), orthonormal(rng, d_in, len(s))
    return U * s @ V.T, U, V


def compare(update, W0):
    return landing.against(update, decomposition(update), W0)


def landed(update, W0):
    return landing.landing(decomposition(update), base_vectors.decompose_base(W0))


def count(update, W0, top=landing.TOP, epsilon=landing.EPSILON):
    found, base = decomposition(update), base_vectors.decompose_base(W0)
    greatest = landing.resemblance(found, W0, base, top)
    return None if greatest is None else landing.intruders(greatest, epsilon)


# Sizes and amplification


def by_hand(delta, W0, rank):
    """The columns from dense SVDs."""
    U, s, Vh = np.linalg.svd(delta)
    size, size0 = np.linalg.norm(delta), np.linalg.norm(W0)
    there = [np.linalg.norm(U[:, :k].T @ W0 @ Vh[:k].T) for k in range(min(delta.shape) + 1)]
    return {
        "relative_spectral": s[0] / np.linalg.norm(W0, 2),
        "relative_frobenius": size / size0,
        "amplification_4": size / there[4] if rank >= 4 else None,
        "amplification_16": size / there[16] if rank >= 16 else None,
        "amplification_k": size / there[rank],
        "base_share_k": (there[rank] / size0) ** 2,
        "base_share_chance": rank**2 / W0.size,
    }


def agree(got, want, tolerance):
    """Undefined in both, or equal to a relative tolerance."""
    assert got.keys() == want.keys()
    for column, value in want.items():
        expected = None if value is None else pytest.approx(value, rel=tolerance)
        assert got[column] == expected, column


@pytest.mark.parametrize("r", [1, 3, 4, 16, 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_those_of_dense_algebra(rng, shape, r, dtype):
    update, W0 = gaussian_update(rng, *shape, r), rng.standard_normal(shape).astype(dtype)
    rank = min(*shape, r)
    want = by_hand(update.dense(), W0.astype(float), rank)
    for form in (update, dense(update.dense())):
        got = compare(form, W0)
        assert tuple(got) == landing.COLUMNS
        agree(got, want, 1e-10)


def test_scaling_the_update_scales_sizes_and_amplification(rng):
    update, W0 = gaussian_update(rng, 40, 30, 16), rng.standard_normal((40, 30))
    one, c = compare(update, W0), -2.5
    scaled = compare(low_rank(update.B, update.A, c * update.scale), W0)
    for column in landing.COLUMNS:
        factor = 1.0 if column.startswith("base_share") else abs(c)
        assert scaled[column] == pytest.approx(factor * one[column], rel=1e-12)


def test_rotating_update_and_base_together_changes_nothing(rng):
    update, W0 = gaussian_update(rng, 40, 30, 16), rng.standard_normal((40, 30))
    Q, R = orthonormal(rng, 40, 40), orthonormal(rng, 30, 30)
    turned = low_rank(Q @ update.B, update.A @ R.T, update.scale)
    assert compare(turned, Q @ W0 @ R.T) == pytest.approx(compare(update, W0), rel=1e-11)
    # Negative control: rotating one of them does.
    one_only = compare(turned, W0)["amplification_k"]
    assert one_only != pytest.approx(compare(update, W0)["amplification_k"], rel=1e-3)


def test_amplification_of_planted_directions_is_known(rng):
    s = np.arange(20.0, 0, -1)
    W0, U, V = known(rng, s, 30, 25)
    along = compare(low_rank(U[:, :4] * 7.0, V[:, :4].T), W0)
    assert along["amplification_4"] == pytest.approx(14 / np.linalg.norm(s[:4]), rel=1e-12)
    assert along["amplification_4"] == along["amplification_k"]
    assert along["base_share_k"] == pytest.approx(np.sum(s[:4] ** 2) / np.sum(s**2), rel=1e-12)
    # The last directions of W0, which it hardly has: amplified more.
    last = compare(low_rank(U[:, -4:] * 7.0, V[:, -4:].T), W0)
    assert last["amplification_4"] == pytest.approx(14 / np.linalg.norm(s[-4:]), rel=1e-12)
    # Left directions of W0 with the right ones of others: W0 does nothing there.
    crossed = compare(low_rank(U[:, :4], V[:, 4:8].T), W0)
    assert crossed["amplification_4"] is None
    assert crossed["base_share_k"] == pytest.approx(0, abs=1e-28)


def test_share_of_the_base_is_at_chance_for_a_random_update(rng):
    W0, shares = rng.standard_normal((20, 15)) * np.arange(1, 16), []
    for _ in range(2000):
        got = compare(gaussian_update(rng, 20, 15, 3), W0)
        shares.append(got["base_share_k"])
    error = np.std(shares) / len(shares) ** 0.5
    assert abs(np.mean(shares) - got["base_share_chance"]) < 4 * error


@pytest.mark.parametrize("form", ["factors", "matrix"])
def test_zero_update_has_size_zero_and_no_ratio(rng, form):
    W0 = rng.standard_normal((9, 7))
    zero = low_rank(np.zeros((9, 4)), rng.standard_normal((4, 7)))
    zero = zero if form == "factors" else dense(np.zeros((9, 7)))
    got = compare(zero, W0)
    assert (got.pop("relative_spectral"), got.pop("relative_frobenius")) == (0.0, 0.0)
    assert set(got.values()) == {None}
    assert set(landed(zero, W0).columns().values()) == {None}
    assert count(zero, W0) == 0


def test_zero_base_has_no_ratio(rng):
    update, W0 = gaussian_update(rng, 9, 7, 4), np.zeros((9, 7))
    got = compare(update, W0)
    assert got.pop("base_share_chance") == 16 / 63
    assert set(got.values()) == {None}
    assert set(landed(update, W0).columns().values()) == {None}
    assert count(update, W0) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-150, 1e200])
def test_ratio_beyond_float64_is_undefined(size):
    got = compare(dense(np.full((3, 4), 1e200)), np.full((3, 4), size))
    assert got["relative_frobenius"] is None
    assert got["amplification_k"] is None


def test_rank_deficient_update_counts_its_rank_only(rng):
    B, A = rng.standard_normal((20, 6)), rng.standard_normal((6, 18))
    B[:, 3:] = B[:, :3]
    update, W0 = low_rank(B, A), rng.standard_normal((20, 18))
    got = compare(update, W0)
    agree(got, by_hand(update.dense(), W0, 3), 1e-10)
    assert got["amplification_4"] is None


def test_base_of_another_shape_is_refused(rng):
    with pytest.raises(CheckpointError, match=r"h.0.q: is \(7, 9\) in the base; expected \(9, 7\)"):
        compare(gaussian_update(rng, 9, 7, 2), rng.standard_normal((7, 9)))


# ‖W0‖₂


@pytest.mark.parametrize("shape", [*SHAPES, (257, 257), (400, 300), (300, 700)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_spectral_norm_is_numpys(rng, shape, scale):
    W = scale * rng.standard_normal(shape)
    want = np.linalg.norm(W, 2)
    assert landing.spectral_norm(W) == pytest.approx(want, rel=1e-13)
    assert landing.spectral_norm(W) == landing.spectral_norm(W)


@pytest.mark.parametrize("kind", ["zero", "identity", "rank 1", "two tied", "nearly tied", "one"])
def test_spectral_norm_of_difficult_matrices(rng, kind):
    d = 300
    s = np.linspace(1, 0.5, d)
    W = {
        "zero": lambda: np.zeros((d, d)),
        "identity": lambda: np.eye(d),
        "rank 1": lambda: np.outer(rng.standard_normal(d), rng.standard_normal(d)),
        "two tied": lambda: known(rng, np.append([1.0], s[:-1]), d, d)[0],
        "nearly tied": lambda: known(rng, np.append([1 + 1e-9], s[:-1]), d, d)[0],
        "one": lambda: np.eye(d)[:, ::-1] * (np.arange(d) == 7),
    }[kind]()
    want = np.linalg.norm(W, 2)
    assert landing.spectral_norm(W) == pytest.approx(want, rel=1e-12, abs=0)


def test_a_few_steps_of_power_iteration_would_fail_this_tolerance(rng):
    """Negative control: the estimate that ARPACK is there to avoid."""
    W = rng.standard_normal((400, 300))
    v = rng.standard_normal(300)
    for _ in range(20):
        v = W.T @ (W @ v)
        v /= np.linalg.norm(v)
    assert np.linalg.norm(W @ v) < (1 - 1e-4) * landing.spectral_norm(W)


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (300, 300)])
def test_top_vectors_are_lapacks(rng, shape):
    W = rng.standard_normal(shape)
    U, s = landing._top(W, 10)
    want_U, want_s, _ = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose(s, want_s[:10], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(U * want_U[:, :10], axis=0)), 1, atol=1e-10)


def test_top_falls_back_where_iteration_gives_up(rng, monkeypatch):
    import scipy.sparse.linalg

    def never(*_, **__):
        raise scipy.sparse.linalg.ArpackNoConvergence("no", np.empty(0), np.empty((300, 0)))

    W = rng.standard_normal((300, 300))
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", never)
    assert landing.spectral_norm(W) == pytest.approx(np.linalg.norm(W, 2), rel=1e-13)


def test_top_vectors_that_a_gram_matrix_loses(rng):
    s = np.append(np.logspace(0, -12, 10), np.full(290, 9e-13))
    W, U, _ = known(rng, s, 300, 300)
    got, values = landing._top(W, 10)
    np.testing.assert_allclose(values, s[:10], rtol=0, atol=300 * EPS)
    np.testing.assert_allclose(np.abs(np.sum(got * U[:, :10], axis=0)), 1, atol=1e-5)


# Where it lands


def landing_by_hand(delta, W0):
    U0, _, V0h = np.linalg.svd(W0)  # full: what is outside has vectors of its own
    m = min(W0.shape)
    shares = []
    for energy in (np.sum((U0.T @ delta) ** 2, axis=1), np.sum((V0h @ delta.T) ** 2, axis=1)):
        deciles = [int(np.floor(10 * i / m)) for i in range(m)] + [10] * (energy.size - m)
        sums = np.zeros(11)
        np.add.at(sums, deciles, energy)
        shares += [*sums / sums.sum()]
    return shares


@pytest.mark.parametrize("shape", SHAPES)
def test_landing_is_that_of_dense_algebra(rng, shape):
    update, W0 = gaussian_update(rng, *shape, 3), rng.standard_normal(shape)
    want = landing_by_hand(update.dense(), W0)
    for form in (update, dense(update.dense())):
        got = landed(form, W0).columns()
        assert tuple(got) == landing.LANDING_COLUMNS
        np.testing.assert_allclose([*got.values()], want, rtol=0, atol=3e-6)
    whole = landed(update, W0)
    for shares, outside in [
        (whole.left, whole.left_outside),
        (whole.right, whole.right_outside),
    ]:
        assert shares.shape == (10,)
        assert shares.sum() + outside == pytest.approx(1, abs=1e-14)
        assert min(*shares, outside) >= 0


@pytest.mark.parametrize("decile", range(10))
def test_a_planted_direction_lands_in_its_decile(rng, decile):
    W0, U, V = known(rng, np.arange(40.0, 0, -1), 60, 40)
    i, j = 4 * decile, 4 * decile + 3
    got = landed(low_rank(U[:, [i]], V[:, [j]].T), W0)
    for shares in (got.left, got.right):
        np.testing.assert_allclose(shares, np.arange(10) == decile, atol=1e-6)
    one = landed(low_rank(U[:, [0]], V[:, [39]].T), W0)
    assert (one.left.argmax(), one.right.argmax()) == (0, 9)


def test_what_the_base_cannot_reach_lands_outside(rng):
    W0, U, V = known(rng, np.arange(40.0, 0, -1), 60, 40)
    other = rng.standard_normal((60, 2))
    other -= U @ (U.T @ other)
    got = landed(low_rank(other, V[:, :2].T), W0)
    assert got.left_outside == pytest.approx(1, abs=1e-6)
    assert (got.right_outside, got.right[0]) == (0.0, pytest.approx(1, abs=1e-6))


def test_landing_is_weighted_by_energy(rng):
    W0, U, V = known(rng, np.arange(20.0, 0, -1), 20, 20)
    got = landed(low_rank(U[:, [0, 19]] * [3.0, 1.0], V[:, [0, 19]].T), W0)
    assert (got.left[0], got.left[9]) == pytest.approx((0.9, 0.1), abs=1e-6)


def test_landing_does_not_change_with_scale_or_a_common_rotation(rng):
    update, W0 = gaussian_update(rng, 40, 30, 5), rng.standard_normal((40, 30))
    Q, R = orthonormal(rng, 40, 40), orthonormal(rng, 30, 30)
    turned = low_rank(Q @ update.B, update.A @ R.T, -1e-170)  # whose square vanishes
    want = landed(update, W0).columns()
    assert landed(turned, Q @ W0 @ R.T).columns() == pytest.approx(want, abs=1e-6)
    control = low_rank(Q @ update.B, update.A)
    assert landed(control, W0).columns() != pytest.approx(want, abs=1e-2)


@pytest.mark.parametrize("shape", [(30, 25), (6, 15), (20, 20)])
def test_chance_of_landing_is_the_mean_of_random_updates(rng, shape):
    W0 = rng.standard_normal(shape)
    base = base_vectors.decompose_base(W0)
    draws = [
        [*landing.landing(decomposition(gaussian_update(rng, *shape, 2)), base).columns().values()]
        for _ in range(2000)
    ]
    chance = [*landing.landing_chance(*shape).columns().values()]
    error = np.std(draws, axis=0) / len(draws) ** 0.5
    assert np.all(np.abs(np.mean(draws, axis=0) - chance) <= 4 * error + 1e-12)
    assert (sum(chance[:11]), sum(chance[11:])) == pytest.approx((1, 1), abs=1e-14)


# Intruders


@pytest.fixture
def weight(rng):
    """W0 with a spectrum as trained weights have, and no gap."""
    return known(rng, 1 / np.arange(1.0, 301) ** 0.5, 320, 300)[0]


def spikes(rng, n, size, W0):
    return low_rank(orthonormal(rng, len(W0), n) * size, orthonormal(rng, W0.shape[1], n).T)


def test_planted_spikes_are_intruders(rng, weight):
    for n in (1, 4, 10):
        assert count(spikes(rng, n, 20.0, weight), weight) == n
    assert count(spikes(rng, 12, 20.0, weight), weight) == 10
    assert count(spikes(rng, 12, 20.0, weight), weight, top=15) == 12
    # One of them giant, and one too small to be among the top.
    sizes = np.append(1e6, np.full(7, 20.0))
    assert count(spikes(rng, 8, sizes, weight), weight) == 8
    assert count(spikes(rng, 1, 1e-3, weight), weight) == 0


def test_intruders_are_those_of_dense_svds(rng):
    W0 = rng.standard_normal((280, 270)) / 270**0.5
    update, counts = spikes(rng, 6, np.arange(1.0, 7), W0), []
    U0 = np.linalg.svd(W0)[0][:, :270]
    for scale in (0.0, 0.2, 0.4, 0.6, 1.0, 3.0):
        scaled = low_rank(update.B, update.A, scale)
        U = np.linalg.svd(W0 + scaled.dense())[0][:, :10]
        counts.append(int(np.sum(np.abs(U0.T @ U).max(axis=0) < 0.5)))
        assert count(scaled, W0) == counts[-1]
        assert count(dense(scaled.dense()), W0) == counts[-1]
    assert len(set(counts)) > 2


def test_what_only_rescales_the_base_intrudes_nowhere(rng, weight):
    assert count(dense(0.7 * weight), weight) == 0
    U, _, Vh = np.linalg.svd(weight, full_matrices=False)
    assert count(low_rank(U[:, 200:204] * 50.0, Vh[200:204]), weight) == 0


@pytest.mark.parametrize("d", [20, 300])
def test_any_vector_of_a_tied_span_belongs_to_the_base(rng, d):
    """All values of an orthogonal W0 are equal: its singular vectors may be any."""
    W0 = orthonormal(rng, d, d)
    assert count(dense(0.5 * W0), W0) == 0
    assert count(spikes(rng, 3, 20.0, W0), W0) == 0


def test_directions_that_the_base_has_at_zero_are_new(rng):
    W0, U, _ = known(rng, np.arange(6.0, 0, -1), 40, 30)
    other = rng.standard_normal((40, 3))
    other = np.linalg.qr(other - U @ (U.T @ other))[0]
    new = low_rank(other * 9.0, orthonormal(rng, 30, 3).T)
    assert count(new, W0) == 3


def test_epsilon_is_the_cosine(rng):
    W0, U, V = known(rng, np.array([2.0, 1.0]), 20, 10)
    x = orthonormal(rng, 20, 1)
    x -= U @ (U.T @ x)
    u = 0.6 * U[:, :1] + 0.8 * x / np.linalg.norm(x)  # cosine 0.6 with the first, 0 with the other
    update = low_rank(1e9 * u, V[:, 2:3].T if V.shape[1] > 2 else orthonormal(rng, 10, 1).T)
    assert count(update, W0, top=1, epsilon=0.59) == 0
    assert count(update, W0, top=1, epsilon=0.61) == 1


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (2, 300)])
def test_intruders_of_small_matrices(rng, shape):
    update, W0 = gaussian_update(rng, *shape, 3), rng.standard_normal(shape)
    U0, U = (np.linalg.svd(W, full_matrices=False)[0] for W in (W0, W0 + update.dense()))
    assert count(update, W0) == np.sum(np.abs(U0.T @ U).max(axis=0) < 0.5)


def test_float32_vectors_are_enough(rng, weight):
    update = gaussian_update(rng, *weight.shape, 8)
    exact = decomposition(dense(weight))
    stored = base_vectors.decompose_base(weight)
    want, got = (landing.landing(decomposition(update), base).columns() for base in (exact, stored))
    assert got == pytest.approx(want, abs=1e-7)
    for size in (0.5, 2.0, 20.0):
        found = decomposition(spikes(rng, 5, size, weight))
        counts = [
            landing.intruders(landing.resemblance(found, weight, base)) for base in (exact, stored)
        ]
        assert counts[0] == counts[1]


def test_the_curve_counts_each_epsilon_and_has_the_fixed_one(rng, weight):
    update = low_rank(orthonormal(rng, 320, 8) * np.geomspace(0.5, 20, 8), np.eye(8, 300))
    found, base = decomposition(update), base_vectors.decompose_base(weight)
    greatest = landing.resemblance(found, weight, base)
    columns = landing.intruder_columns(greatest, [greatest, np.ones(10)])
    assert tuple(columns) == landing.INTRUDER_COLUMNS
    for epsilon in landing.EPSILONS:
        number = count(update, weight, epsilon=epsilon)
        assert columns[f"intruders_{epsilon}"] == number
        assert columns[f"null_intruders_{epsilon}"] == number / 2
    numbers = list(columns.values())[:9]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]


def dense_null(shape, norm, r, W0, seeds):
    """Mean numbers of intruders of random updates, from dense SVDs in the given basis."""
    U0 = np.linalg.svd(W0, full_matrices=False)[0]
    counts = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        R = rng.standard_normal(shape)
        if r is not None:
            R = rng.standard_normal((shape[0], r)) @ rng.standard_normal((r, shape[1]))
        U = np.linalg.svd(W0 + R * norm / np.linalg.norm(R))[0][:, :10]
        greatest = np.abs(U0.T @ U).max(axis=0)
        counts.append([np.sum(greatest < epsilon) for epsilon in landing.EPSILONS])
    return np.array(counts)


@pytest.mark.parametrize("r", [4, 40, None])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_null_has_the_mean_of_direct_draws(rng, monkeypatch, shape, r):
    """W0 made diagonal, against random updates of W0 itself."""
    W0 = known(rng, 1 / np.arange(1.0, 41) ** 0.5, *shape)[0]
    norm = 6.0 if r is None else 3.0
    direct = dense_null(shape, norm, r, W0, range(100, 160))
    monkeypatch.setattr(landing, "DRAWS", 60)
    drawn = landing.null_resemblance(shape, norm, r, base_vectors.decompose_base(W0))
    got = np.array([[np.sum(x < epsilon) for epsilon in landing.EPSILONS] for x in drawn])
    error = np.sqrt((direct.var(axis=0) + got.var(axis=0)) / 60)
    assert np.all(np.abs(got.mean(axis=0) - direct.mean(axis=0)) <= 4 * error + 1e-9)
    assert direct.mean(axis=0)[-1] > 0.5  # there is something to compare
    # Negative control: half the norm is told apart.
    half = dense_null(shape, norm / 2, r, W0, range(60)).mean(axis=0)
    assert np.any(np.abs(got.mean(axis=0) - half) > 4 * error)


@pytest.mark.parametrize("shape", [(320, 300), (300, 320)])
def test_the_krylov_method_of_the_null_agrees_with_a_dense_svd(rng, monkeypatch, shape):
    base = base_vectors.decompose_base(known(rng, np.linspace(2, 1, 300), *shape)[0])
    for r in (3, None):
        fast = landing.null_resemblance(shape, 9.0, r, base)
        monkeypatch.setattr(landing, "SMALL", 1000)
        np.testing.assert_allclose(fast, landing.null_resemblance(shape, 9.0, r, base), atol=1e-6)
        monkeypatch.undo()


def test_the_null_of_nothing_and_of_small_matrices(rng, weight):
    base = base_vectors.decompose_base(weight)
    tiny = landing.null_resemblance(weight.shape, 1e-12, 4, base)
    np.testing.assert_allclose(tiny, 1.0, atol=1e-6)
    again = landing.null_resemblance(weight.shape, 1e-12, 4, base)
    np.testing.assert_array_equal(tiny, again)
    for shape in ((1, 7), (7, 1), (1, 1), (2, 300)):
        of_small = base_vectors.decompose_base(rng.standard_normal(shape))
        for r in (1, 3, None):
            drawn = landing.null_resemblance(shape, 1.0, r, of_small)
            assert all(1 <= len(x) <= min(shape) for x in drawn)


def test_an_update_of_zero_has_no_intruders_and_nor_has_its_null(rng, weight):
    zero = low_rank(np.zeros((320, 2)), np.ones((2, 300)))
    base = base_vectors.decompose_base(weight)
    row = landing._intruder_row(zero, decomposition(zero), weight, base)
    assert row.pop("intruders") == 0
    assert set(row.values()) == {0.0}
    nothing = base_vectors.decompose_base(np.zeros((320, 300)))
    assert landing._intruder_row(zero, decomposition(zero), np.zeros((320, 300)), nothing) == {}


# Real models, adapted by PEFT


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, **sizes))


MODELS = {
    "llama": (llama, ["q_proj", "down_proj", "embed_tokens"]),
    "gpt2": (gpt2, ["c_attn", "c_proj", "c_fc", "wte", "wpe"]),
}


def weights_of(model):
    """Module → W0 (d_out, d_in), as y = W0 x."""
    kinds = {"Linear": False, "Conv1D": True, "Embedding": True}
    return {
        name: layer.weight.detach().numpy().T if kinds[kind] else layer.weight.detach().numpy()
        for name, layer in model.named_modules()
        if (kind := type(layer).__name__) in kinds
    }


@pytest.mark.parametrize("name", MODELS)
def test_real_model_and_adapter_from_end_to_end(tmp_path, name):
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model

    make, targets = MODELS[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    W0 = {module: W.copy() for module, W in weights_of(model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=7, target_modules=targets))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / "adapter")
        merged = weights_of(adapted.merge_and_unload())
    updates = list(checkpoint.read(tmp_path / "adapter"))
    base = base_weights.open_base(tmp_path / "base", (u.name for u in updates))
    assert {u.name.rpartition(".")[2] for u in updates} == set(targets)
    for update in updates:
        got = base.weight(update)
        np.testing.assert_array_equal(got, W0[update.name])
        # PEFT's own merge says that ΔW and W0 lie the same way.
        W = merged[update.name]
        np.testing.assert_allclose(got + update.dense(), W, atol=1e-6 * np.abs(W).max())
        want = by_hand(update.dense(), got.astype(float), 4)
        agree(compare(update, got), want, 1e-9)
        shares = [*landed(update, got).columns().values()]
        np.testing.assert_allclose(shares, landing_by_hand(update.dense(), got), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_stands_beside_its_base_as_it_is_stored(tmp_path, name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = MODELS[name][0]()
    model.save_pretrained(tmp_path / "base")
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    options = Options(base=tmp_path / "base")
    updates = list(checkpoint.read(tmp_path / "tuned", options=options))
    base = base_weights.open_base(tmp_path / "base", (u.name for u in updates))
    assert len(updates) > 8
    for update in updates:
        np.testing.assert_array_equal(base.weight(update), before[f"{update.name}.weight"])


COMMAND = """
import sys
from analysis.base import landing
from analysis.formats import Options
found = landing.analyse([sys.argv[1]], sys.argv[2], options=Options())
print([[row[column] for column in landing.LANDING_COLUMNS] for row in found.rows])
"""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_deciles_do_not_depend_on_the_number_of_threads(rng, tmp_path, method):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    base.mkdir()
    tuned.mkdir()
    W = rng.standard_normal((500, 320)).astype("f4")
    save_file({"h.0.q.weight": W}, base / "model.safetensors")
    factors = {
        f"base_model.model.h.0.q.lora_{factor}.weight": rng.standard_normal(shape).astype("f4")
        for factor, shape in (("A", (4, 320)), ("B", (500, 4)))
    }
    if method == "lora":
        save_file(factors, tuned / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
        (tuned / "adapter_config.json").write_text(json.dumps(config))
    else:
        noise = 0.1 * rng.standard_normal(W.shape).astype("f4")
        save_file({"h.0.q.weight": W + noise}, tuned / "model.safetensors")
    printed = set()
    for threads in ("1", "2", "4"):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        run = subprocess.run(
            [sys.executable, "-c", COMMAND, tuned, base],
            env=os.environ | dict.fromkeys(names, threads),
            capture_output=True,
            text=True,
            check=True,
        )
        printed.add(run.stdout)
    assert len(printed) == 1
    assert "None" not in printed.pop()
