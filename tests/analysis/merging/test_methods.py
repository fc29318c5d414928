"""Each method of merging against a dense float64 implementation of its paper's formula."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from made_updates import from_spectrum, low_rank, orthonormal

from analysis import CheckpointError, UserError
from analysis.merging import core, methods
from analysis.merging.methods import METHODS, merge
from analysis.merging.settings import Settings

EPS = np.finfo(float).eps
# d_out, d_in and the ranks: few and many directions; more than the layer has; three adapters.
SHAPES = [
    (30, 20, (3, 4)),
    (12, 25, (5, 2)),
    (16, 14, (6, 5)),
    (6, 9, (5, 4)),
    (20, 24, (2, 3, 4)),
    (5, 5, (5, 5, 5)),
]
FACTORED = ("sum", "knots", "tsv", "iso", "core")


def adapters(rng, d_out, d_in, ranks):
    return [
        low_rank(
            rng.standard_normal((d_out, r)),
            rng.standard_normal((r, d_in)),
            scale,
            source=f"{i}.safetensors",
        )
        for i, (r, scale) in enumerate(zip(ranks, (0.5, -0.7, 1.3), strict=False))
    ]


# The papers' formulas, on matrices.


def dense_ties(stack, density):
    """Trim, elect, disjoint mean (Yadav et al., 2023, algorithm 1), entry by entry."""
    kept = []
    for x in stack:
        order = np.argsort(-np.abs(x), axis=None)
        mask = np.zeros(x.size, bool)
        mask[order[: max(int(density * x.size), 1)]] = True
        kept.append(np.where(mask.reshape(x.shape), x, 0))
    out = np.zeros(stack[0].shape)
    for index in np.ndindex(out.shape):
        values = [x[index] for x in kept]
        sign = np.sign(sum(values))
        agreeing = [v for v in values if v * sign > 0]
        out[index] = np.mean(agreeing) if agreeing else 0
    return out


def dense_knots(Ws, density):
    U, s, Vh = scipy.linalg.svd(np.hstack(Ws), full_matrices=False)
    k = int(np.sum(s > 1e-10 * s[0]))
    of_tasks = np.split(np.diag(s[:k]) @ Vh[:k], len(Ws), axis=1)
    return U[:, :k] @ dense_ties(of_tasks, density)


def dense_tsv(Ws, keep=None):
    most = keep or max(min(Ws[0].shape) // len(Ws), 1)
    U, S, V = [], [], []
    for W in Ws:
        u, s, vh = scipy.linalg.svd(W, full_matrices=False)
        k = min(most, int(np.sum(s > 1e-10 * s[0])))
        U.append(u[:, :k])
        S.append(s[:k])
        V.append(vh[:k].T)
    # The polar factor is the matrix times the inverse root of its Gram matrix.
    U, V = (
        M @ np.real(scipy.linalg.inv(scipy.linalg.sqrtm(M.T @ M)))
        for M in (np.hstack(U), np.hstack(V))
    )
    return U @ np.diag(np.concatenate(S)) @ V.T


def dense_iso(Ws):
    U, s, Vh = scipy.linalg.svd(np.sum(Ws, axis=0), full_matrices=False)
    k = int(np.sum(s > 1e-10 * s[0]))
    return np.mean(s[:k]) * U[:, :k] @ Vh[:k]


def dense_core(updates, density):
    U = scipy.linalg.svd(np.hstack([u.B for u in updates]), full_matrices=False)[0]
    Vh = scipy.linalg.svd(np.vstack([u.A for u in updates]), full_matrices=False)[2]
    cores = [U.T @ u.dense() @ Vh.T for u in updates]
    return U @ dense_ties(cores, density) @ Vh


def dense_dare(updates, density, seed):
    rng = np.random.default_rng([seed, zlib.crc32(b"layers.0.q")])
    return sum(np.where(rng.random(u.shape) < density, u.dense() / density, 0.0) for u in updates)


def expected(method, updates, density):
    Ws = [u.dense() for u in updates]
    return {
        "sum": lambda: np.sum(Ws, axis=0),
        "ties": lambda: dense_ties(Ws, density),
        "dare": lambda: dense_dare(updates, density, 0),
        "knots": lambda: dense_knots(Ws, density),
        "tsv": lambda: dense_tsv(Ws),
        "iso": lambda: dense_iso(Ws),
        "core": lambda: dense_core(updates, density),
    }[method]()


def close(got, want, tolerance=1e-8):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1))


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_papers_formula(rng, method, d_out, d_in, ranks, density):
    updates = adapters(rng, d_out, d_in, ranks)
    exact = METHODS[method](updates, Settings(density))
    want = expected(method, updates, density)
    close(exact.dense(), want)
    assert exact.shape == (d_out, d_in)
    assert np.abs(want).max() > 0.01  # there is something to compare


@pytest.mark.parametrize("keep", [1, 2])
def test_tsv_keeps_so_many_directions_of_each(rng, keep):
    updates = adapters(rng, 30, 20, (3, 4))
    merged = merge("tsv", updates, Settings(keep=keep)).update
    close(merged.dense(), dense_tsv([u.dense() for u in updates], keep))
    assert merged.r == 2 * keep


@pytest.mark.parametrize("r", [1, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_a_cut_is_the_best_of_its_rank(rng, method, r):
    updates = adapters(rng, 30, 20, (3, 4))
    exact = METHODS[method](updates, Settings()).dense()
    merged = merge(method, updates, Settings(rank=r))
    s = scipy.linalg.svdvals(exact)
    optimum = np.linalg.norm(s[r:]) / np.linalg.norm(s)
    measured = np.linalg.norm(merged.update.dense() - exact) / np.linalg.norm(exact)
    if method == "iso":  # its directions below the cut are chosen, not measured
        assert merged.update.r == r
    else:
        assert measured == pytest.approx(optimum, abs=1e-6)
        assert merged.error == pytest.approx(optimum, abs=1e-6)


def test_iso_of_a_lower_rank_keeps_the_directions_of_the_largest_values(rng):
    updates = adapters(rng, 30, 20, (3, 4))
    U, s, Vh = scipy.linalg.svd(np.sum([u.dense() for u in updates], axis=0))
    merged = merge("iso", updates, Settings(rank=2)).update
    close(merged.dense(), np.mean(s[:7]) * U[:, :2] @ Vh[:2])


# Properties.


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dare"])
def test_the_order_of_adapters_does_not_matter(rng, method):
    updates = adapters(rng, 20, 24, (2, 3, 4))
    one, other = (METHODS[method](u, Settings()).dense() for u in (updates, updates[::-1]))
    close(one, other, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_alone_comes_back(rng, method):
    (update,) = adapters(rng, 30, 20, (4,))
    merged = METHODS[method]([update], Settings(density=1.0)).dense()
    if method == "iso":  # with equal singular values, which one alone does not have
        s = scipy.linalg.svdvals(merged)
        close(s[:4], np.full(4, np.mean(scipy.linalg.svdvals(update.dense())[:4])))
    else:
        close(merged, update.dense(), 1e-10)


def test_a_flat_adapter_comes_back_from_iso(rng):
    update = from_spectrum(orthonormal(rng, 30, 4), np.full(4, 2.0), orthonormal(rng, 20, 4))
    close(METHODS["iso"]([update], Settings()).dense(), update.dense(), 1e-12)


@pytest.mark.parametrize("method", ["sum", "tsv", "knots", "core"])
def test_adapters_without_common_directions_do_not_interfere(rng, method):
    U, V = orthonormal(rng, 30, 6), orthonormal(rng, 20, 6)
    a = from_spectrum(U[:, :3], np.array([5.0, 3.0, 1.5]), V[:, :3])
    b = from_spectrum(U[:, 3:], np.array([4.0, 2.0, 1.0]), V[:, 3:])
    merged = METHODS[method]([a, b], Settings(density=1.0)).dense()
    close(merged, a.dense() + b.dense(), 1e-10)


def test_tsv_removes_the_interference_of_overlapping_adapters(rng):
    """Negative control of the orthogonal case: where they overlap, the sum is another matrix."""
    U, V = orthonormal(rng, 30, 6), orthonormal(rng, 20, 6)
    a = from_spectrum(U[:, :3], np.array([5.0, 3.0, 1.5]), V[:, :3])
    b = from_spectrum(U[:, 2:5], np.array([4.0, 2.0, 1.0]), V[:, 2:5])
    merged = METHODS["tsv"]([a, b], Settings()).dense()
    assert np.linalg.norm(merged - a.dense() - b.dense()) > 0.1


def test_the_same_adapter_twice_is_itself_by_tsv_and_ties(rng):
    (update,) = adapters(rng, 30, 20, (4,))
    for method in ("tsv", "ties", "core", "knots"):
        merged = METHODS[method]([update, update], Settings(density=1.0)).dense()
        close(merged, update.dense(), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_opposite_adapters_leave_nothing(rng, method):
    (a,) = adapters(rng, 30, 20, (4,))
    b = replace(a, scale=-a.scale)
    merged = merge(method, [a, b], Settings(density=1.0)).update
    close(merged.dense(), np.zeros((30, 20)), 1e-12)
    assert merged.r >= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_all_scales_the_result(rng, method):
    updates = adapters(rng, 30, 20, (3, 4))
    scaled = [replace(u, scale=1e-3 * u.scale) for u in updates]
    one, other = (METHODS[method](u, Settings()).dense() for u in (updates, scaled))
    close(1e3 * other, one, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_an_update_of_zero_is_no_obstacle(rng, method):
    a, b = adapters(rng, 30, 20, (3, 4))
    zero = replace(b, B=0 * b.B)
    merged = merge(method, [a, zero], Settings(density=1.0)).update
    if method not in ("iso",):
        close(merged.dense(), a.dense(), 1e-10)
    nothing = merge(method, [replace(a, B=0 * a.B), zero], Settings(density=1.0))
    close(nothing.update.dense(), np.zeros((30, 20)))
    assert nothing.error == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_with_file_and_module(rng, method, bad):
    a, b = adapters(rng, 30, 20, (3, 4))
    b.A[1, 2] = bad
    with pytest.raises(CheckpointError, match=r"^1\.safetensors: layers\.0\.q: A holds NaN or Inf"):
        merge(method, [a, b], Settings())


@pytest.mark.parametrize("method", FACTORED)
def test_the_rank_of_the_factors_is_at_most_the_sum_of_ranks(rng, method):
    updates = adapters(rng, 30, 20, (3, 4))
    merged = merge(method, updates, Settings()).update
    assert merged.r == 7
    assert methods.capacity(updates) == 7
    assert np.linalg.matrix_rank(merged.dense()) <= 7


def test_the_entries_of_ties_are_cut_to_the_rank_of_the_sum(rng):
    updates = adapters(rng, 30, 20, (3, 4))
    merged = merge("ties", updates, Settings())
    assert merged.update.r == 7
    assert 0 < merged.error < 1


def test_dare_is_repeatable_and_keeps_the_expected_value(rng):
    updates = adapters(rng, 12, 10, (2, 3))

    def of(seed):
        return METHODS["dare"](updates, Settings(0.5, seed)).dense()

    np.testing.assert_array_equal(of(3), of(3))
    assert np.abs(of(3) - of(4)).max() > 0.1
    mean = np.mean([of(seed) for seed in range(2000)], axis=0)
    # An entry of one draw has the variance ΔW_a² + ΔW_b² at density 1/2.
    sigma = np.sqrt(sum(u.dense() ** 2 for u in updates) / 2000)
    assert np.all(np.abs(mean - sum(u.dense() for u in updates)) < 5 * sigma)


def test_core_space_depends_on_the_factors_and_the_others_on_the_update(rng):
    """What its bases are made of: (B, A) and (B G, G⁻¹ A) are the same update."""
    a, b = adapters(rng, 30, 20, (3, 4))
    G = np.diag([1.0, 10.0, 100.0])
    other = replace(a, B=a.B @ G, A=np.linalg.inv(G) @ a.A)
    for method in ("sum", "ties", "knots", "tsv", "iso"):
        one, two = (METHODS[method](pair, Settings()).dense() for pair in ([a, b], [other, b]))
        close(one, two, 1e-9)
    one, two = (core.merge(pair, Settings()).dense() for pair in ([a, b], [other, b]))
    assert np.abs(one - two).max() > 0.01


def test_a_method_that_is_none_and_settings_out_of_range():
    with pytest.raises(UserError, match="--method 'average'; expected one of sum, ties"):
        merge("average", [], Settings())
    for bad, words in (
        ({"density": 0.0}, "--density 0"),
        ({"density": 1.1}, "--density 1.1"),
        ({"density": float("nan")}, "--density nan"),
        ({"seed": -1}, "--seed -1"),
        ({"keep": 0}, "--keep 0"),
        ({"rank": 0}, "--rank 0"),
    ):
        with pytest.raises(UserError, match=words):
            Settings(**bad)
