"""Directions of updates as they are stored, against those of the update before it was rounded."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from made_updates import from_spectrum, low_rank, orthonormal

from analysis import checkpoint, similarity
from analysis.numerics import decompose, subspaces, turning
from analysis.numerics.decompose import Basis
from analysis.numerics.floor import noise_floor, spacing
from analysis.numerics.turning import TURNED
from analysis.update import LowRankUpdate

BF16, F16, F32 = (np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32))
NEARLY = np.array([1 + 1e-4, 1.0, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1])  # s₁/s₂ − 1 = 1e-4


def factors(rng, s, d_out=300, d_in=200):
    """B and A in float64 of an update with these values, shared evenly between the two."""
    U, V = orthonormal(rng, d_out, s.size), orthonormal(rng, d_in, s.size)
    return U * np.sqrt(s), (V * np.sqrt(s)).T


def stored(B, A, dtype):
    return LowRankUpdate("q", B.astype(dtype), A.astype(dtype))


def sines(exact, other):
    """For each cut, the sine of the largest angle between the spans before it; both sides."""
    of_sides = []
    for side in subspaces.SIDES:
        C = getattr(exact, side).against(getattr(other, side))
        cosines = [np.linalg.svd(C[:i, :i], compute_uv=False)[-1] for i in range(1, len(C) + 1)]
        of_sides.append(np.sqrt(np.maximum(0, 1 - np.square(cosines))))
    return np.maximum(*of_sides)


def old_rule(decomposition):
    """The cuts that are undetermined by the rounding of float64 alone."""
    return subspaces.undetermined(replace(decomposition, turning=None))


# The variance of rounding


@pytest.mark.parametrize("dtype", [F32, F16, BF16, np.dtype(ml_dtypes.float8_e4m3fn)])
def test_the_variance_is_that_of_the_spacing(rng, dtype):
    x = np.concatenate(
        [rng.standard_normal(200) * 10.0 ** rng.integers(-9, 2, 200), [0.0, 1.0, -2.0, 1.5]]
    ).astype(dtype)
    got = turning.variance(x, dtype)
    normal = spacing(x) > 1e-19  # the square of a smaller one is below float32
    np.testing.assert_allclose(np.sqrt(12.0 * got)[normal], spacing(x)[normal], rtol=1e-6)
    if dtype not in (F32, BF16):
        return
    in_units = turning.variance(x, dtype, 1e-20)
    np.testing.assert_allclose(1e-20 * np.sqrt(12.0 * in_units), spacing(x), rtol=1e-6, atol=1e-40)


def test_numbers_computed_from_stored_ones_have_the_spacing_of_these():
    x = np.array([1.0, 3.0])  # float64
    np.testing.assert_allclose(12 * turning.variance(x, BF16), [2.0**-14, 2.0**-12], rtol=1e-6)


# The bound of factors


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_no_span_is_turned_by_more_than_the_bound(dtype):
    """75 adapters: even and uneven factors, short and long ranges, rows of unequal size."""
    checked, tight = 0, []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        d_out, d_in = (int(d) for d in rng.choice([40, 120, 400], 2))
        r = int(rng.choice([2, 4, 8, 16]))
        s = np.sort(np.exp(rng.uniform(-rng.choice([1, 3, 6]), 0, r)))[::-1]
        rows = np.exp(rng.standard_normal((d_out, 1)) * rng.integers(2))
        U, V = np.linalg.qr(rows * orthonormal(rng, d_out, r))[0], orthonormal(rng, d_in, r)
        mix = (np.eye(r), orthonormal(rng, r, r), rng.standard_normal((r, r)) + 3 * np.eye(r))
        Q = mix[seed % 3]
        B, A = U * s @ Q, np.linalg.solve(Q, V.T)
        exact = decompose.decomposition(LowRankUpdate("q", B, A), "svd")
        found = decompose.decomposition(stored(B, A, dtype), "svd")
        determined = ~subspaces.undetermined(found)
        turned, bound = sines(exact, found), found.turning.largest
        assert np.all(turned[determined] <= bound[determined] + 1e-7)
        # So φ of an update with its own copy stays near 1,
        grid = subspaces.phi_of(exact.left.against(found.left))
        assert np.all(np.diagonal(grid)[determined] >= 1 - TURNED**2)
        checked += determined.sum()
        tight += [*(turned / bound)[determined & (turned > 1e-6)]]
    assert checked > 120
    if dtype != F32:  # whose bound comes from the norms alone
        assert np.median(tight) > 0.1  # and the bound is no idle one.


def test_the_cheap_bound_is_never_below_the_exact_one(rng, monkeypatch):
    B, A = factors(rng, np.geomspace(1, 0.01, 12))
    cheap = decompose.decomposition(stored(B, A, F32)).turning
    monkeypatch.setattr(turning, "TURNED", 0.0)  # so that the cheap one never suffices
    exact = decompose.decomposition(stored(B, A, F32)).turning
    assert np.all(exact.largest <= cheap.largest)
    assert np.all(exact.lost <= cheap.lost)
    assert exact.largest[3] < 0.1 * cheap.largest[3]


def test_it_does_not_depend_on_scale_nor_on_which_factor_is_larger(rng):
    B, A = factors(rng, np.geomspace(1, 0.05, 6))
    want = decompose.decomposition(stored(B, A, BF16)).turning
    tiny = 2.0**-80
    for of_B, of_A, scale in ((4.0, 1, 1), (1, 0.25, 1), (8, 0.125, -3.0), (tiny, tiny, 1e-3)):
        update = replace(stored(of_B * B, of_A * A, BF16), scale=scale)
        got = decompose.decomposition(update).turning
        np.testing.assert_allclose(got.largest, want.largest, rtol=1e-4)
        np.testing.assert_allclose(got.lost, want.lost, rtol=1e-4)


def test_one_factor_in_float64_has_the_noise_of_the_other_alone(rng):
    B, A = factors(rng, np.geomspace(1, 0.05, 6))
    B16, A16 = B.astype(BF16), A.astype(BF16)
    both, of_B, of_A = (
        decompose.decomposition(LowRankUpdate("q", *pair)).turning.largest
        for pair in ((B16, A16), (B16, A), (B, A16))
    )
    assert np.all(of_B[:-1] < both[:-1])
    assert np.all(of_A[:-1] < both[:-1])
    assert decompose.decomposition(LowRankUpdate("q", B, A)).turning is None


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_degenerate_updates(rng, dtype):
    zero = decompose.decomposition(stored(np.zeros((6, 3)), rng.standard_normal((3, 5)), dtype))
    assert subspaces.undetermined(zero).all()
    one = decompose.decomposition(stored(rng.standard_normal((60, 1)), np.ones((1, 50)), dtype))
    assert not subspaces.undetermined(one).any()
    wide = decompose.decomposition(stored(rng.standard_normal((6, 9)), np.eye(9, 4), dtype))
    assert wide.turning.largest.shape == (4,)
    dead = rng.standard_normal((60, 4)) * [1, 2, 0, 4]
    found = decompose.decomposition(stored(dead, rng.standard_normal((4, 50)), dtype))
    assert found.rank == 3
    np.testing.assert_array_equal(subspaces.undetermined(found), [False, False, False, True])


def test_a_last_direction_of_the_size_of_the_rounding_is_not_known(rng):
    B, A = factors(rng, np.array([1.0, 0.5, 1e-5]))
    Q = orthonormal(rng, 3, 3)
    B, A = B @ Q, Q.T @ A  # every column has a part of the large ones, and their rounding
    found = [decompose.decomposition(stored(B, A, dtype)) for dtype in (BF16, F32)]
    for decomposition, open_cuts in zip(found, ([0, 0, 1], [0, 0, 0]), strict=True):
        assert decomposition.rank == 3
        np.testing.assert_array_equal(subspaces.undetermined(decomposition), open_cuts)
        assert not old_rule(decomposition).any()


# Two cases that were reported as facts


def saved(write_adapter, name, B, A, dtype):
    tensors = {
        f"base_model.model.layers.0.q.lora_{factor}.weight": np.ascontiguousarray(W.astype(dtype))
        for factor, W in (("A", A), ("B", B))
    }
    return write_adapter(tensors, name=name, r=len(A), lora_alpha=len(A))


def first_of_both(write_adapter, rng, s):
    """φ(1, 1) of one adapter saved in float32 and in bfloat16, what is undetermined, cosine."""
    B, A = factors(rng, s)
    paths = [saved(write_adapter, d.name, B, A, d) for d in (F32, BF16)]
    (row,) = similarity.analyse(paths).rows
    updates = [next(iter(checkpoint.read(path))) for path in paths]
    assert [update.stored for update in updates] == [(F32, F32), (BF16, BF16)]
    a, b = (decompose.decomposition(update) for update in updates)
    return subspaces.phi_of(a.left.against(b.left))[0, 0], row, (a, b)


def test_nearly_equal_values_saved_in_two_dtypes_are_undetermined(write_adapter):
    by_chance, old = [], []
    for seed in range(16):
        phi, row, pair = first_of_both(write_adapter, np.random.default_rng(seed), NEARLY)
        assert row["cosine"] > 0.99999
        assert row["left_phi_1"] is row["right_phi_1"] is None
        assert row["undetermined"] == "1"
        assert row["left_phi_4"] > 0.9999
        assert row["left_phi_k"] > 0.9999
        by_chance.append(phi)
        old += [old_rule(decomposition).any() for decomposition in pair]
    # Negative control: the rule that knew float64 only flags none, and φ is anything.
    assert not any(old)
    assert min(by_chance) < 0.1
    assert max(by_chance) > 0.9


def test_equal_values_saved_in_float32_are_undetermined(write_adapter):
    old = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        B, A = factors(rng, np.array([2.0, 1, 1, 1, 0.5, 0.25]))
        T = np.eye(6)
        T[1:4, 1:4] = orthonormal(rng, 3, 3)  # the same ΔW, of other factors
        turned = B / np.sqrt([2.0, 1, 1, 1, 0.5, 0.25]) @ T * np.sqrt([2.0, 1, 1, 1, 0.5, 0.25])
        one = saved(write_adapter, "one", B, A, F32)
        other = saved(write_adapter, "other", turned, T.T @ A, F32)
        result = similarity.analyse([one, other])
        (row,) = result.rows
        grid = result.phi[f"{row['key']}#left"]
        np.testing.assert_array_equal(np.isnan(np.diagonal(grid)), [0, 1, 1, 0, 0, 0])
        assert row["left_phi_1"] == pytest.approx(1)
        assert row["left_phi_4"] == pytest.approx(1)
        update = next(iter(checkpoint.read(one)))
        old.append(old_rule(decompose.decomposition(update))[1:3].all())
    assert not all(old)  # negative control


@pytest.mark.parametrize("ratio", [1.03, 1.3, 2.0])
def test_values_apart_are_determined_in_both_dtypes(write_adapter, ratio):
    s = ratio ** -np.arange(8.0)
    for seed in range(4):
        _, row, _ = first_of_both(write_adapter, np.random.default_rng(seed), s)
        assert row["undetermined"] is None
        for side in subspaces.SIDES:
            assert row[f"{side}_phi_1"] > 0.999
            assert row[f"{side}_phi_4"] > 0.999


def test_each_side_of_a_pair_has_its_own_dtype(rng):
    """float32 separates what bfloat16 does not; the pair has the cuts that both separate."""
    B, A = factors(rng, NEARLY)
    exact, rough = (decompose.decomposition(stored(B, A, dtype)) for dtype in (F32, BF16))
    assert subspaces.pair_measures(exact, exact)[0]["undetermined"] is None
    assert subspaces.pair_measures(exact, rough)[0]["undetermined"] == "1"
    assert subspaces.pair_measures(rough, exact)[0]["undetermined"] == "1"


def test_factors_in_float64_are_as_before(rng):
    a = from_spectrum(orthonormal(rng, 30, 8), NEARLY, orthonormal(rng, 20, 8))
    found = decompose.decomposition(a)
    assert found.turning is None
    assert not subspaces.undetermined(found).any()


# Dense updates


def test_no_span_of_a_rounded_difference_is_turned_by_more_than_the_bound():
    checked = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = tuple(int(d) for d in rng.choice([20, 40, 60], 2))
        m = min(shape)
        s = np.sort(np.exp(rng.uniform(-rng.choice([3, 6, 10]), 0, m)))[::-1]
        U, V = orthonormal(rng, shape[0], m), orthonormal(rng, shape[1], m)
        W0 = rng.standard_normal(shape).astype(BF16).astype(float)
        size = float(rng.choice([0.1, 1, 10])) * np.linalg.norm(W0) / np.linalg.norm(s)
        W = (W0 + size * (U * s) @ V.T).astype(BF16)
        P, y, Qh = np.linalg.svd(W.astype(float) - W0, full_matrices=False)
        bound = turning.of_floor(y, *shape, noise_floor(W)).largest
        exact, found = (
            decompose.Decomposition(Basis(X), y, Basis(Y), m, 0.0) for X, Y in ((U, V), (P, Qh.T))
        )
        determined = bound <= TURNED
        assert np.all(sines(exact, found)[determined] <= bound[determined] + 1e-7)
        checked += determined.sum()
    assert checked > 100


def test_a_floor_leaves_cuts_of_dense_updates_open(rng):
    s = np.array([3.0, 2.0, 1.99, 1.0, 0.0, 0.0])
    with_floor = turning.of_floor(s, 6, 8, 0.05)
    assert list(with_floor.largest[:4] > TURNED) == [False, True, False, False]
    assert turning.of_floor(s, 6, 8, None) is None
    assert turning.of_floor(s, 6, 8, 0.0) is None
    np.testing.assert_allclose(turning.of_floor(9 * s, 8, 6, 0.45).largest, with_floor.largest)


def test_replaced_dimensions_are_counted(rng):
    """Of ten equal values one can take the place of any; of values apart none does."""
    B, A = factors(rng, np.append(np.ones(10), 0.2))
    tied = decompose.decomposition(stored(B, A, BF16)).turning.lost
    assert np.all(tied[:9] > 0.5)
    assert np.all(tied[:9] < [1.1, 2.1, 3.1, 4.1, 5.1, 4.1, 3.1, 2.1, 1.1])
    assert tied[9] < 0.01
    apart = decompose.decomposition(stored(*factors(rng, 0.5 ** np.arange(8)), BF16))
    assert apart.turning.lost.max() < 0.001


def test_a_sum_of_both_dtypes_has_the_coarser_one(rng):
    from analysis.pairs import combine

    B, A = factors(rng, NEARLY)
    total = combine.weighted_sum([(1.0, stored(B, A, F32)), (1.0, stored(B, A, BF16))])
    assert total.stored == (BF16, BF16)
    assert low_rank(B, A).stored == (np.float64, np.float64)
