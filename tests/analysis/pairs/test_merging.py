"""What merging two updates keeps and cancels, against dense algebra."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
from made_updates import dense, from_spectrum, low_rank, merged, orthonormal

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import Basis, Decomposition
from analysis.pairs import merging
from analysis.pairs.merging import COLUMNS, opposite_sign
from analysis.results import Merging
from analysis.tables import merging as merging_table
from analysis.tables.merging import lines, relation, sentence

EPS = np.finfo(float).eps
CLOSE = {"rtol": 0, "atol": 1e-11}  # shares and cosines, which lie in [−1, 1]
SHAPES = [(9, 5, 2, 3), (3, 8, 6, 2), (7, 7, 1, 1), (1, 5, 4, 2), (64, 48, 16, 4), (20, 20, 40, 3)]
SIGNED = ("cosine", "opposite_sign", "sampled", "sample_seed", "sum_energy", "sum_spectral_norm")


def random_update(rng, d_out, d_in, r, scale=-0.7):
    # Of falling size, so that the directions that hold 90 % are not nearly tied with the next.
    sizes = 0.6 ** np.arange(r)
    return low_rank(rng.standard_normal((d_out, r)) * sizes, rng.standard_normal((r, d_in)), scale)


def expected(W_a, W_b):
    """The numbers of a row the slow way: projections on the vectors of dense SVDs."""

    def spans(W):
        U, s, Vh = scipy.linalg.svd(W, full_matrices=False)
        k = int(np.sum(np.cumsum(s**2) < 0.9 * np.sum(s**2))) + 1
        k += int(np.sum(s[k:] > (1 - 1e-8) * s[k - 1]))
        return k, U[:, :k] @ U[:, :k].T, Vh[:k].T @ Vh[:k]

    def energy(W):
        return np.linalg.norm(W) ** 2

    want = {}
    for one, W, other in (("a", W_a, W_b), ("b", W_b, W_a)):
        k, P, Q = spans(other)
        R, T = np.eye(len(P)) - P, np.eye(len(Q)) - Q
        want |= {
            f"rank_90_{'b' if one == 'a' else 'a'}": k,
            f"shared_left_{one}": energy(P @ W) / energy(W),
            f"shared_right_{one}": energy(W @ Q) / energy(W),
            f"shared_both_{one}": energy(P @ W @ Q) / energy(W),
            f"private_{one}": energy(R @ W @ T) / energy(W),
            f"chance_left_{one}": k / len(P),
            f"chance_right_{one}": k / len(Q),
        }
    norms = np.linalg.norm(W_a), np.linalg.norm(W_b)
    s = scipy.linalg.svdvals(W_a + W_b)
    cumulative = np.cumsum(s**2) / np.sum(s**2)
    return want | {
        "cosine": np.sum(W_a * W_b) / np.prod(norms),
        "norm_ratio": norms[0] / norms[1],
        "opposite_sign": np.mean(W_a * W_b < 0),
        "sum_energy": energy(W_a + W_b) / (norms[0] ** 2 + norms[1] ** 2),
        "sum_spectral_norm": s[0],
        "sum_rank_90": int(np.sum(cumulative < 0.9)) + 1,
        "sum_rank_99": int(np.sum(cumulative < 0.99)) + 1,
        "sum_effective_rank": scipy_effective_rank(s),
    }


def scipy_effective_rank(s):
    return np.exp(scipy.stats.entropy(s))


def check(row, want, tolerance=1e-10):
    for column, value in want.items():
        np.testing.assert_allclose(
            row[column], value, rtol=tolerance, atol=tolerance, err_msg=column
        )


@pytest.mark.parametrize(("d_out", "d_in", "r_a", "r_b"), SHAPES)
def test_low_rank_updates_match_dense_algebra(rng, d_out, d_in, r_a, r_b):
    a, b = (random_update(rng, d_out, d_in, r) for r in (r_a, r_b))
    row, s = merged(a, b)
    assert tuple(row) == COLUMNS
    check(row, expected(a.dense(), b.dense()))
    assert row["sum_capacity"] == min(r_a + r_b, d_out, d_in) == s.size
    want = scipy.linalg.svdvals(a.dense() + b.dense())[: s.size]
    np.testing.assert_allclose(s, want, rtol=0, atol=1e-12 * want[0])
    assert (row["sampled"], row["sample_seed"]) == (d_out * d_in, None)


@pytest.mark.parametrize("kinds", [("dense", "low"), ("low", "dense"), ("dense", "dense")])
def test_matrices_and_factors_give_the_same_row(rng, kinds):
    low = [random_update(rng, 30, 20, r) for r in (4, 3)]
    given = [dense(u.dense()) if kind == "dense" else u for kind, u in zip(kinds, low, strict=True)]
    row, s = merged(*given)
    check(row, expected(low[0].dense(), low[1].dense()), 1e-6)  # the Gram matrix of a dense sum
    assert row["sum_capacity"] == s.size == 20


def test_full_rank_matrices_match_dense_algebra(rng):
    W_a, W_b = rng.standard_normal((2, 40, 30))
    row, _ = merged(dense(W_a), dense(W_b))
    check(row, expected(W_a, W_b), 1e-9)


def test_bfloat16_factors_are_read_exactly(rng):
    stored = [
        [rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((60, r), (r, 50))]
        for r in (8, 3)
    ]
    rows = [
        merged(*(low_rank(*(M.astype(kind) for M in factors), 0.3) for factors in stored))[0]
        for kind in (ml_dtypes.bfloat16, np.float64)
    ]
    assert rows[0] == rows[1]


def exchanged(row):
    """The row with a and b exchanged."""
    other = {"a": "b", "b": "a"}
    swapped = {c[:-1] + other[c[-1]] if c[-2:] in ("_a", "_b") else c: x for c, x in row.items()}
    return swapped | {"norm_ratio": 1 / row["norm_ratio"]}


def test_exchanging_a_and_b_exchanges_their_columns(rng):
    a, b = random_update(rng, 40, 30, 5), random_update(rng, 40, 30, 2)
    check(merged(b, a)[0], {k: v for k, v in exchanged(merged(a, b)[0]).items() if v is not None})


def test_scaling_one_changes_only_what_adds_up(rng):
    a, b = random_update(rng, 40, 30, 5), random_update(rng, 40, 30, 2)
    row, _ = merged(a, b)
    scaled, _ = merged(low_rank(a.B, a.A, 1e3 * a.scale), b)
    of_sum = {c for c in COLUMNS if c.startswith("sum_")} | {"norm_ratio", "sample_seed"}
    check(scaled, {c: x for c, x in row.items() if c not in of_sum})
    assert scaled["norm_ratio"] == pytest.approx(1e3 * row["norm_ratio"])
    both, s = merged(low_rank(a.B, a.A, 1e3 * a.scale), low_rank(b.B, b.A, 1e3 * b.scale))
    check(both, {c: row[c] for c in of_sum - {"norm_ratio", "sample_seed", "sum_spectral_norm"}})
    assert s[0] == pytest.approx(1e3 * row["sum_spectral_norm"])


def test_a_change_of_sign_changes_only_the_cosine_and_the_sum(rng):
    a, b = random_update(rng, 40, 30, 5), random_update(rng, 40, 30, 2)
    row, flipped = merged(a, b)[0], merged(low_rank(a.B, a.A, -a.scale), b)[0]
    assert flipped["cosine"] == pytest.approx(-row["cosine"])
    assert flipped["opposite_sign"] == pytest.approx(1 - row["opposite_sign"])
    assert flipped["sum_energy"] == pytest.approx(2 - row["sum_energy"])
    check(flipped, {c: row[c] for c in COLUMNS if c[-2:] in ("_a", "_b")})


def test_a_rotation_of_both_changes_only_the_signs_of_entries(rng):
    a, b = random_update(rng, 40, 30, 5), random_update(rng, 40, 30, 2)
    Q, R = orthonormal(rng, 40, 40), orthonormal(rng, 30, 30)
    rotated, _ = merged(*(low_rank(Q @ u.B, u.A @ R, u.scale) for u in (a, b)))
    of_entries = ("opposite_sign", "sample_seed")
    check(rotated, {c: x for c, x in merged(a, b)[0].items() if c not in of_entries})
    one, _ = merged(low_rank(Q @ a.B, a.A, a.scale), b)  # of one alone changes the rest, too
    assert abs(one["cosine"] - rotated["cosine"]) > 1e-3


def test_an_update_shares_all_of_its_top_directions_with_itself(rng):
    a = random_update(rng, 40, 30, 5)
    row, s = merged(a, a)
    of_a = decompose.singular_values(a)
    held = metrics.top_share(of_a, row["rank_90_a"])
    check(row, {f"shared_{side}_{x}": held for side in ("left", "right", "both") for x in "ab"})
    check(row, {"cosine": 1, "norm_ratio": 1, "opposite_sign": 0, "sum_energy": 2})
    assert (row["sum_rank_90"], row["sum_rank_99"]) == (row["rank_90_a"], row["rank_99_a"])
    assert row["sum_capacity"] == 10
    np.testing.assert_allclose(s, np.append(2 * of_a, np.zeros(5)), rtol=0, atol=1e-13 * s[0])


@pytest.mark.parametrize("kinds", [("low", "low"), ("dense", "low"), ("dense", "dense")])
def test_opposite_updates_leave_nothing(rng, kinds):
    B, A = rng.standard_normal((40, 5)), rng.standard_normal((5, 30))
    updates = [low_rank(B, A, 0.3), low_rank(B, A, -0.3)]
    # Rounded otherwise than the sum rounds the product of the factors.
    products = [(0.3 * B) @ A, -((0.3 * B) @ A)]
    a, b = (
        dense(W) if kind == "dense" else u
        for kind, u, W in zip(kinds, updates, products, strict=True)
    )
    row, s = merged(a, b)
    check(row, {"cosine": -1, "norm_ratio": 1, "opposite_sign": 1})
    assert (row["sum_energy"], row["sum_spectral_norm"]) == (0, 0)
    assert [row[c] for c in ("sum_effective_rank", "sum_rank_90", "sum_rank_99")] == [None] * 3
    assert not s.any()


def test_what_is_left_of_nearly_opposite_updates_is_not_taken_for_rounding(rng):
    B, A = rng.standard_normal((40, 5)), rng.standard_normal((5, 30))
    u, v = rng.standard_normal((40, 1)), rng.standard_normal((1, 30))
    b = low_rank(np.hstack([-B, 1e-9 * u]), np.vstack([A, v]))
    row, s = merged(low_rank(B, A), b)
    assert s[0] == pytest.approx(1e-9 * np.linalg.norm(u) * np.linalg.norm(v), rel=1e-4)
    assert row["sum_rank_99"] == 1


@pytest.mark.parametrize("dense_first", [True, False])
def test_a_sum_below_the_error_of_its_terms_is_rounding(rng, dense_first):
    """The products of a term cancel, so that its error is far above the rounding of its size."""
    B, A = np.ones((40, 1)), rng.standard_normal((1, 30))
    u, v = rng.standard_normal((40, 1)), rng.standard_normal((1, 30))
    a = low_rank(np.hstack([B, -B, 1e-9 * u]), np.vstack([A, A, v]))
    decomposition = decompose.decomposition(a)
    assert decomposition.rank == 1  # the negative control: the term itself is not rounding

    def sum_with(size):
        """The spectrum of ΔW_a + ΔW_b with b = −ΔW_a up to an error of this size."""
        error = np.outer(orthonormal(rng, 40, 1), orthonormal(rng, 30, 1))
        b = dense(-1e-9 * (u @ v) + size * error)
        row, s = merged(b, a) if dense_first else merged(a, b)
        assert (s[0] == 0) == (row["sum_spectral_norm"] == 0) == (row["sum_rank_90"] is None)
        return s

    bound = decomposition.error_bound
    assert bound > 1e6 * 40 * EPS * decomposition.s[0]
    assert sum_with(0.5 * bound)[0] == 0
    assert sum_with(20 * bound)[0] == pytest.approx(20 * bound, rel=0.1)


@pytest.mark.parametrize(("times", "top"), [(1e3, 3), (9e3, 3), (1.1e4, 2)])
def test_the_next_direction_is_tied_up_to_ten_thousand_errors(times, top):
    basis = Basis(np.eye(3))
    s = np.array([3.0, 1.0, 1.0 - times * 1e-12])  # the first two hold 10/11 of the energy
    assert merging.top(Decomposition(basis, s, basis, rank=3, error_bound=1e-12)) == top


def test_orthogonal_updates_share_nothing_and_their_ranks_add(rng):
    U, V = orthonormal(rng, 40, 9), orthonormal(rng, 30, 9)
    s_a, s_b = np.array([5.0, 4, 3, 2, 1]), np.array([6.0, 5, 4, 3])
    a, b = from_spectrum(U[:, :5], s_a, V[:, :5]), from_spectrum(U[:, 5:], s_b, V[:, 5:])
    row, s = merged(a, b)
    shared = {f"shared_{side}_{x}": 0 for side in ("left", "right", "both") for x in "ab"}
    check(row, shared | {"private_a": 1, "private_b": 1, "cosine": 0, "sum_energy": 1})
    np.testing.assert_allclose(s, np.sort(np.append(s_a, s_b))[::-1], rtol=1e-13)
    assert metrics.rank(s, 1e-12 * s[0]) == 9
    assert row["sum_rank_99"] == metrics.energy_rank(s, 0.99)


def test_the_two_sides_are_told_apart(rng):
    U, V = orthonormal(rng, 40, 4), orthonormal(rng, 30, 8)
    s = np.array([4.0, 3, 2, 1])
    row, _ = merged(from_spectrum(U, s, V[:, :4]), from_spectrum(U, s, V[:, 4:]))
    held = metrics.top_share(s, row["rank_90_a"])
    check(row, {"shared_left_a": held, "shared_right_a": 0, "shared_both_a": 0, "cosine": 0})
    assert relation(row) == "writing the same directions, reading others"


def test_random_updates_share_what_chance_gives(rng):
    """Over many draws; and a check that would see the wrong one of d_out and d_in."""
    rows = [merged(*(random_update(rng, 24, 60, 6) for _ in "ab"))[0] for _ in range(400)]
    for side in ("left", "right"):
        for one in "ab":
            above = [row[f"shared_{side}_{one}"] - row[f"chance_{side}_{one}"] for row in rows]
            assert abs(np.mean(above)) < 4 * np.std(above) / np.sqrt(len(above))
    wrong = [row["shared_left_a"] - row["chance_right_a"] for row in rows]
    assert abs(np.mean(wrong)) > 10 * np.std(wrong) / np.sqrt(len(wrong))


def test_directions_tied_with_the_last_belong_to_the_top(rng):
    """Of ten equal values nine hold 90 %, but which nine is arbitrary."""
    U, V = orthonormal(rng, 40, 10), orthonormal(rng, 30, 10)
    a = from_spectrum(U, np.ones(10), V)
    Q = orthonormal(rng, 10, 10)
    row, _ = merged(a, low_rank(U @ Q, (V @ Q).T))
    assert row["rank_90_a"] == row["rank_90_b"] == 10
    check(row, {"shared_both_a": 1, "shared_both_b": 1, "private_a": 0, "cosine": 1})


def test_directions_that_are_rounding_are_not_tied_with_the_last():
    def found(s, rank, error_bound):
        basis = Basis(np.eye(5)[:, : len(s)])
        return Decomposition(basis, np.array(s), basis, rank, error_bound)

    assert merging.top(found([3.0, 1e-3, 0.0], 2, 1e-12)) == 1
    assert merging.top(found([1.0, 1.0 - 1e-10, 1.0 - 2e-10, 0.5], 4, 1e-13)) == 3
    assert merging.top(found([1.0, 0.9, 1e-6, 1e-7], 2, 1e-4)) == 2


def test_directions_of_a_deficient_update_are_those_of_its_rank(rng):
    B, A = rng.standard_normal((40, 2)), rng.standard_normal((2, 30))
    full = low_rank(B, A)
    deficient = low_rank(np.hstack([B, B, np.zeros((40, 2))]), np.vstack([A / 2, A / 2, A]))
    other = random_update(rng, 40, 30, 3)
    want, _ = merged(full, other)
    row, _ = merged(deficient, other)
    check(row, {c: x for c, x in want.items() if c not in ("sum_capacity", "sample_seed")})
    assert row["sum_capacity"] == 9


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("zero", ["B", "cancelled", "dense"])
def test_an_update_that_is_zero_is_refused_with_its_file(rng, which, zero):
    B, A = rng.standard_normal((12, 2)), rng.standard_normal((2, 10))
    none = {
        "B": low_rank(0 * B, A, source="zero.safetensors"),
        # Up to rounding: what an adapter's own start leaves when it is subtracted.
        "cancelled": low_rank(
            np.hstack([B, -B / 3]), np.vstack([A, 3 * A]), source="zero.safetensors"
        ),
        "dense": dense(np.zeros((12, 10)), source="zero.safetensors"),
    }[zero]
    pair = [random_update(rng, 12, 10, 3), none]
    with pytest.raises(CheckpointError, match=r"^zero.safetensors: layers.0.q: ΔW is zero"):
        merged(*(pair if which else pair[::-1]))


def test_other_shapes_are_refused_with_both_files_and_shapes(rng):
    a = random_update(rng, 12, 10, 3)
    b = low_rank(np.ones((12, 2)), np.ones((2, 11)), source="b.safetensors")
    with pytest.raises(CheckpointError) as caught:
        merged(a, b)
    for words in ("layers.0.q: shapes differ", "a.safetensors has (12, 10)", "(12, 11)", "b.safe"):
        assert words in str(caught.value)


@pytest.mark.parametrize("scales", [(1e150, 1e150), (1e-160, 1e-160), (1e120, 1e-120)])
def test_sizes_that_overflow_when_squared(rng, scales):
    a, b = random_update(rng, 12, 10, 3, 1.0), random_update(rng, 12, 10, 2, 1.0)
    row, _ = merged(*(low_rank(u.B, u.A, s) for u, s in zip((a, b), scales, strict=True)))
    plain, _ = merged(a, b)
    check(row, {c: x for c, x in plain.items() if c[-2:] in ("_a", "_b")})
    check(row, {"sum_energy": plain["sum_energy"] if scales[0] == scales[1] else 1})
    assert all(value is None or np.isfinite(value) for value in row.values())


# The sample of signs.


@pytest.mark.parametrize(
    ("d_out", "d_in"), [(1500, 1300), (4000, 300), (200, 9000), (1, 2_000_000), (1001, 1001)]
)
def test_a_sample_of_signs_is_repeatable_and_close_to_all_of_them(rng, d_out, d_in):
    updates = [random_update(rng, d_out, d_in, 4) for _ in "ab"]
    share, sampled, seed = opposite_sign(*updates)
    assert opposite_sign(*updates) == (share, sampled, seed) == opposite_sign(*updates[::-1])
    renamed = replace(updates[0], name="renamed")
    assert opposite_sign(renamed, updates[1]) == (share, sampled, seed)
    assert opposite_sign(updates[1], renamed) == (share, sampled, seed)
    assert isinstance(seed, int)
    assert 0.9e6 < sampled <= 1e6
    W_a, W_b = (u.dense() for u in updates)
    assert opposite_sign(dense(W_a), dense(W_b)) == (share, sampled, seed)
    # Rows and columns are drawn, not entries: 4 standard errors of the worst case.
    assert abs(share - np.mean(W_a * W_b < 0)) < 4 * 0.5 / np.sqrt(min(1000, max(d_out, d_in)))


def test_the_error_of_the_sample_is_as_large_as_is_said(rng):
    """The worst case: signs that depend on the row alone, over many names and so many seeds."""
    signs = rng.choice([-1.0, 1.0], (3000, 1))
    ones = np.ones((1, 3000))
    shares = [
        opposite_sign(low_rank(signs, ones, name=f"{i}"), low_rank(0 * signs + 1, ones))[0]
        for i in range(200)
    ]
    # layers.0.q is greater than every number: the name that counts is the other one's.
    assert len(set(shares)) > 20
    truth = np.mean(signs < 0)
    assert abs(np.mean(shares) - truth) < 4 * 0.016 / np.sqrt(200)
    assert 0.010 < np.std(shares) < 0.016  # of 3,000 rows without replacement: 0.0129
    assert "up to 0.016" in " ".join(merging_table.EXPLANATION.split())


def test_other_names_and_shapes_draw_other_samples():
    drawn = [
        merging._sample(*of) for of in (("q", 2000, 2000), ("v", 2000, 2000), ("q", 2000, 2001))
    ]
    assert len({seed for seed, _, _ in drawn}) == 3
    assert not np.array_equal(drawn[0][1], drawn[1][1])
    assert merging._sample("q", 2000, 2000)[0] == drawn[0][0] == 1953684024
    for _, rows, cols in drawn:
        assert rows.size == cols.size == 1000
        assert np.all(np.diff(rows) > 0)
        assert np.all(np.diff(cols) > 0)


def test_gaussian_entries_are_opposite_as_their_cosine_says(rng):
    X, Y = rng.standard_normal((2, 1000, 1000))
    for cosine in (-0.6, 0.0, 0.3):
        share, _, _ = opposite_sign(dense(X), dense(cosine * X + np.sqrt(1 - cosine**2) * Y))
        assert abs(share - np.arccos(cosine) / np.pi) < 4 * 0.0005


def test_an_entry_that_is_zero_opposes_nothing():
    a = dense(np.array([[1.0, -1.0, 0.0, -0.0], [0.0, 2.0, -3.0, 1.0]]))
    b = dense(np.array([[-1.0, 1.0, -5.0, 5.0], [0.0, 2.0, 3.0, -0.0]]))
    assert opposite_sign(a, b) == (3 / 8, 8, None)


def test_signs_need_float64(rng):
    """Negative control: where products cancel, as in a difference of factors, float32 is noise."""
    x, y = (rng.integers(-1000, 1000, (200, 1)) / 1024 for _ in "xy")
    A = rng.standard_normal((1, 150))
    tiny, row = 1e-9 * rng.standard_normal((200, 1)), rng.standard_normal((1, 150))
    left = np.hstack([x, y, -x - y, tiny]).astype("f4")
    right = np.vstack([A, A, A, row]).astype("f4")
    b = low_rank(left[:, 3:], right[3:])
    assert opposite_sign(low_rank(left, right), b)[0] == 0
    assert opposite_sign(dense(left @ right), b)[0] > 0.1


# Adapters that others trained.


def front(row, kind="q", module="layers.0.q", step_a=None, run_b="B"):
    return {
        "run_a": "A",
        "step_a": step_a,
        "method_a": "lora",
        "run_b": run_b,
        "step_b": 7,
        "method_b": "full",
        "module": module,
        "kind": kind,
        **row,
    }


def real_rows(paths, options=None):
    a, b = (
        {u.name: u for u in checkpoint.scan(path, options or Options()) if hasattr(u, "shape")}
        for path in paths
    )
    assert a.keys() == b.keys()
    return [front(merged(a[n], b[n])[0], n.split(".")[-1], n) for n in a], a, b


def test_one_task_at_two_ranks_writes_alike_and_reads_otherwise(real_adapter):
    root = real_adapter("sam-lora-ranks")
    options = Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)"))
    rows, a, b = real_rows([root / "rank4", root / "rank8"], options)
    assert len(rows) == 24
    for row in rows[::8]:
        want = expected(a[row["module"]].dense(), b[row["module"]].dense())
        check(row, want, 1e-8)
    words = sentence(rows)
    assert words.startswith("partly aligned (cosine 0.32; 73 % of a's energy written to b's")
    assert "needs 8 of 12 directions for 99 % of its energy" in words


def test_two_tasks_hardly_meet(real_adapter):
    paths = [
        real_adapter("roberta-portuguese-run/checkpoint-8610"),
        real_adapter("roberta-mrpc-monteclora"),
    ]
    rows, _, _ = real_rows(paths)
    assert len(rows) == 24
    query, value = list(lines(Merging(rows)))[-3:-1]
    assert query.startswith("query: in 11 of 12 modules almost independent (cosine 0.00;")
    assert value.startswith("value: almost independent (cosine 0.00;")
    assert all(row["sum_capacity"] == 16 for row in rows)
    assert all(abs(row["opposite_sign"] - 0.5) < 0.02 for row in rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_cut_between_values_that_storage_cannot_separate_is_moved_behind_them(rng, dtype):
    """18 of 19 equal values hold 90 %, and so they do if they are stored nearly equal."""
    U, V = orthonormal(rng, 200, 21), orthonormal(rng, 150, 21)
    s = np.append(np.ones(19), [0.05, 0.04])
    exact = low_rank(U * np.sqrt(s), (V * np.sqrt(s)).T)
    a = low_rank(exact.B.astype(dtype), exact.A.astype(dtype))
    found = decompose.decomposition(a)
    assert int(metrics.energy_rank(found.s, 0.9)) == 18
    assert merging.top(found) == 19
    T = scipy.linalg.block_diag(orthonormal(rng, 19, 19), np.eye(2))
    row, _ = merged(a, low_rank((U * np.sqrt(s)) @ T, (T.T @ (V * np.sqrt(s)).T)))
    assert row["rank_90_a"] == row["rank_90_b"] == 19
    assert row["shared_both_a"] > 0.99
    # Negative control: float64's error alone would leave 18, others than those of b.
    assert merging.top(replace(found, turning=None)) == 18


def test_values_apart_keep_their_cut_in_bfloat16(rng):
    s = 0.7 ** np.arange(10)
    U, V = orthonormal(rng, 200, 10), orthonormal(rng, 150, 10)
    a = low_rank((U * s).astype(ml_dtypes.bfloat16), V.T.astype(ml_dtypes.bfloat16))
    assert merging.top(decompose.decomposition(a)) == int(metrics.energy_rank(s, 0.9)) == 4


def test_a_dense_update_with_noise_is_not_cut_at_its_end(rng):
    """Neighbouring values mix, but few of the span are lost: the cut is moved by little at most."""
    s = 0.99 ** np.arange(150.0)
    W = (orthonormal(rng, 200, 150) * s) @ orthonormal(rng, 150, 150).T
    a = replace(dense(W + 1e-3 * rng.standard_normal(W.shape)), floor=1e-3 * (200**0.5 + 150**0.5))
    found = decompose.decomposition(a)
    wanted = int(metrics.energy_rank(found.s, 0.9))
    assert found.rank > 1.2 * wanted
    assert wanted <= merging.top(found) <= wanted + 5
