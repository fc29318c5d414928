"""The grids φ(i, j) − chance between methods, against direct computations."""

import numpy as np
import pytest
from finished import run_of
from made_updates import orthonormal

from analysis import checkpoint, similarity
from analysis.pairs.repeatability import Label
from analysis.results import Similarity
from multilora.reproduction.studies import grids

D_OUT, D_IN, K = 12, 10, 3
LABELS = {
    f"{method}-s{seed}": Label(method, seed) for method in ("full", "lora") for seed in (0, 1)
}


def phi(U1, U2):
    """φ(i, j) by its definition, ‖U₁[:, :i]ᵀ U₂[:, :j]‖²_F / min(i, j)."""
    return np.array(
        [
            [
                np.linalg.norm(U1[:, :i].T @ U2[:, :j]) ** 2 / min(i, j)
                for j in range(1, U2.shape[1] + 1)
            ]
            for i in range(1, U1.shape[1] + 1)
        ]
    )


def chance(k, d):
    """Mean of φ(i, j) over random subspaces of R^d, (k, k)."""
    return np.array([[max(i, j) / d for j in range(1, k + 1)] for i in range(1, k + 1)])


def compared(pairs):
    """A comparison; pairs: (run a, run b, φ left, φ right) of one module each."""
    found = Similarity()
    for n, (a, b, left, right) in enumerate(pairs):
        row = {"key": str(n), "run_a": a, "run_b": b, "step_a": None, "step_b": None}
        found.rows.append(row | {"d_out": D_OUT, "d_in": D_IN})
        found.phi.update({f"{n}#left": left, f"{n}#right": right})
    return found


def values(rows, pair, side):
    """The grid of a pair of methods on a side, (k, k)."""
    of_pair = [r for r in rows if (r["method_a"], r["method_b"], r["side"]) == (*pair, side)]
    assert [row["i"] for row in of_pair] == list(range(1, len(of_pair) + 1))
    columns = [f"j{j}" for j in range(1, len(of_pair) + 1)]
    return np.array([[row[column] for column in columns] for row in of_pair], float)


@pytest.fixture
def bases(rng):
    """(run, side) -> orthonormal columns, more of them than are compared."""
    return {
        (run, side): orthonormal(rng, d, 5)
        for run in LABELS
        for side, d in (("left", D_OUT), ("right", D_IN))
    }


def between(bases, a, b):
    return (a, b, *(phi(bases[a, side], bases[b, side]) for side in ("left", "right")))


def test_it_is_the_mean_over_pairs_of_other_seeds_above_chance(bases):
    pairs = [("full-s0", "lora-s1"), ("full-s1", "lora-s0"), ("full-s0", "lora-s0")]
    rows = grids.table(compared([between(bases, *pair) for pair in pairs]), LABELS, K)
    for side, d in (("left", D_OUT), ("right", D_IN)):
        means = np.mean([phi(bases[b, side], bases[a, side])[:K, :K] for a, b in pairs[:2]], axis=0)
        got = values(rows, ("lora", "full"), side)
        assert got.shape == (K, K)
        np.testing.assert_allclose(got, means - chance(K, d), rtol=0, atol=0.51e-5)


def test_i_counts_the_directions_of_the_first_method(bases):
    """φ(1, 3) is not φ(3, 1), and the pair may have been compared either way round."""
    a, b = "full-s0", "lora-s1"
    one, other = (
        grids.table(compared([between(bases, *pair)]), LABELS, K) for pair in ((a, b), (b, a))
    )
    assert one == other
    assert {(row["method_a"], row["method_b"]) for row in one} == {("lora", "full")}
    got = values(one, ("lora", "full"), "left")
    in_lora = np.linalg.norm(bases[b, "left"][:, :1].T @ bases[a, "left"][:, :3]) ** 2
    in_full = np.linalg.norm(bases[b, "left"][:, :3].T @ bases[a, "left"][:, :1]) ** 2
    assert abs(in_lora - in_full) > 0.01
    assert got[0, 2] == pytest.approx(in_lora - 3 / D_OUT, abs=1e-5)
    assert got[2, 0] == pytest.approx(in_full - 3 / D_OUT, abs=1e-5)


def test_a_method_is_compared_with_its_own_other_seeds(bases):
    rows = grids.table(compared([between(bases, "full-s0", "full-s1")]), LABELS, K)
    want = phi(bases["full-s0", "right"], bases["full-s1", "right"])[:K, :K] - chance(K, D_IN)
    np.testing.assert_allclose(values(rows, ("full", "full"), "right"), want, rtol=0, atol=1e-5)


def test_equal_and_orthogonal_bases_have_known_values():
    axes = np.eye(D_OUT)
    for U2, want in ((axes[:, :K], 1 - chance(K, D_OUT)), (axes[:, K : 2 * K], -chance(K, D_OUT))):
        of_pair = [("full-s0", "full-s1", *[phi(axes[:, :K], U2)] * 2)]
        got = values(grids.table(compared(of_pair), LABELS, K), ("full", "full"), "left")
        diagonal = np.diagonal(want)
        np.testing.assert_allclose(np.diagonal(got), diagonal, rtol=0, atol=1e-5)


def test_undetermined_cuts_are_left_out_of_the_mean(bases):
    known, open_at_2 = (between(bases, "full-s0", "lora-s1") for _ in range(2))
    for grid in open_at_2[2:]:
        grid[1] = np.nan
    rows = grids.table(compared([known, open_at_2]), LABELS, K)
    assert rows == grids.table(compared([known]), LABELS, K)
    (row,) = (
        row
        for row in grids.table(compared([open_at_2]), LABELS, K)
        if (row["side"], row["i"]) == ("left", 1)
    )
    # Open are the cuts of full fine-tuning, the second method.
    assert [row[f"j{j}"] is None for j in (1, 2, 3)] == [False, True, False]


def test_other_methods_and_runs_of_one_seed_have_no_grid(bases):
    labels = LABELS | {"rlora-s1": Label("rlora", 1)}
    of_pairs = [
        ("full-s0", "rlora-s1", *between(bases, "full-s0", "lora-s1")[2:]),
        between(bases, "full-s0", "lora-s0"),
    ]
    assert grids.table(compared(of_pairs), labels, K) == []
    assert grids.table(Similarity(), {}, K) == []


def test_an_update_with_fewer_directions_has_no_grid(bases):
    assert grids.table(compared([between(bases, "full-s0", "lora-s1")]), LABELS, 6) == []


def test_the_grids_of_checkpoints_are_those_of_their_singular_vectors(write_delta, rng):
    """Read from files: two runs of full fine-tuning, one module each."""
    runs = [
        run_of(write_delta({"q": rng.standard_normal((D_OUT, D_IN))}, name), "full", seed)
        for seed, name in enumerate(("full-s0", "full-s1"))
    ]
    found = similarity.analyse([run.path for run in runs], parts=False)
    rows = grids.table(found, {run.name: Label("full", run.seed) for run in runs}, K)
    U1, U2 = (np.linalg.svd(next(iter(checkpoint.read(r.path))).dense())[0] for r in runs)
    want = phi(U1[:, :K], U2[:, :K]) - chance(K, D_OUT)
    np.testing.assert_allclose(values(rows, ("full", "full"), "left"), want, rtol=0, atol=1e-5)
