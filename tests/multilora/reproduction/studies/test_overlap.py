"""The overlap of a MultiLoRA's modules, against the cosines of their bases."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from finished import run_of

from analysis import checkpoint
from analysis.numerics import subspaces
from multilora.reproduction.studies import overlap

N, R, D_OUT, D_IN = 3, 2, 12, 10


@pytest.fixture
def write_multilora(write_adapter, rng):
    """Write a finished MultiLoRA run with n modules per layer and two layers."""

    def write(n=N, name="run", alike=False):
        tensors = {}
        for layer in ("q_proj", "up_proj"):
            A, B = rng.standard_normal((n, R, D_IN)), rng.standard_normal((D_OUT, n, R))
            if alike:
                A[:], B[:] = A[:1], B[:, :1]
            stem = f"base_model.model.m.0.{layer}.multilora_"
            s = 1 + rng.random((D_OUT, 1)) * np.ones((1, n))
            values = {"A": A.reshape(n * R, D_IN), "B": B.reshape(D_OUT, n * R), "s": s}
            tensors |= {stem + part: value.astype("f4") for part, value in values.items()}
        path = write_adapter(tensors, name=name, peft_type="MULTILORA", r=R, n=n)
        return run_of(path, "multilora", 3, n=n)

    return write


def test_it_is_the_mean_over_pairs_of_phi(write_multilora):
    run = write_multilora()
    rows = overlap.by_layer(overlap.module_pairs([run]))
    assert [(row["kind"], row["n"], row["r"], row["pairs"]) for row in rows] == [
        ("q_proj", N, R, 3),
        ("up_proj", N, R, 3),
    ]
    for row, update in zip(rows, checkpoint.read(run.path), strict=True):
        assert tuple(row) == overlap.BY_LAYER_COLUMNS
        for side in ("left", "right"):
            bases = []
            for part in update.unstacked():
                W = part.dense() if side == "left" else part.dense().T
                bases.append(scipy.linalg.orth(W))
            pairs = itertools.combinations(bases, 2)
            want = np.mean([np.linalg.norm(a.T @ b) ** 2 / R for a, b in pairs])
            assert row[f"{side}_phi"] == pytest.approx(want, rel=1e-6)
        assert row["left_chance"] == pytest.approx(R / D_OUT)
        assert row["right_chance"] == pytest.approx(R / D_IN)


def test_equal_modules_share_all(write_multilora):
    for row in overlap.by_layer(overlap.module_pairs([write_multilora(alike=True)])):
        assert (row["left_phi"], row["right_phi"]) == pytest.approx((1, 1))


def test_one_module_has_no_pair(write_multilora, write_adapter, lora_tensors):
    lora = run_of(write_adapter(lora_tensors("m.0.q_proj"), name="lora"), "lora", 0)
    assert overlap.module_pairs([write_multilora(n=1), lora]) == []
    assert overlap.by_layer([]) == overlap.by_run([]) == []


def test_both_tables_come_from_the_same_comparisons(write_multilora):
    """A run has the mean over its layers, which have equally many pairs."""
    pairs = overlap.module_pairs([write_multilora()])
    layers = overlap.by_layer(pairs)
    (run,) = overlap.by_run(pairs)
    assert run["pairs"] == sum(layer["pairs"] for layer in layers)
    assert run["right_phi_k"] == pytest.approx(np.mean([layer["right_phi"] for layer in layers]))
    assert run["left_chance_k"] == pytest.approx(
        np.mean([layer["left_chance"] for layer in layers])
    )


def write_modules(write_adapter, name, modules):
    """Write a MultiLoRA of one layer; modules: [(B, A), …]."""
    n, r = len(modules), modules[0][1].shape[0]
    prefix = "base_model.model.q.multilora_"
    tensors = {
        f"{prefix}A": np.concatenate([A for _, A in modules]).astype("f4"),
        f"{prefix}B": np.concatenate([B for B, _ in modules], axis=1).astype("f4"),
        f"{prefix}s": np.ones((D_OUT, n), dtype="f4"),
    }
    return write_adapter(tensors, name, peft_type="MULTILORA", n=n, r=r)


def test_overlap_is_the_mean_over_pairs_against_chance(write_adapter, rng):
    modules = [(rng.standard_normal((12, 2)), rng.standard_normal((2, 10))) for _ in range(3)]
    run = run_of(write_modules(write_adapter, "multilora-s0", modules), "multilora", 0)
    (row,) = overlap.by_run(overlap.module_pairs([run]))
    assert (row["n"], row["r"], row["pairs"]) == (3, 2, 3)
    for side, which, d in (("left", 0, 12), ("right", 1, 10)):
        bases = [np.linalg.qr(m[0] if which == 0 else m[1].T)[0] for m in modules]
        phis = [subspaces.phi(bases[i], bases[j])[-1, -1] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert row[f"{side}_phi_k"] == pytest.approx(np.mean(phis), abs=1e-6)
        assert row[f"{side}_chance_k"] == pytest.approx(2 / d)
        assert row[f"{side}_above_chance"] == pytest.approx(np.mean(phis) - 2 / d, abs=1e-6)
    sides = (row["left_above_chance"] + row["right_above_chance"]) / 2
    assert row["overlap_above_chance"] == pytest.approx(sides)


def test_modules_of_one_span_overlap_wholly(write_adapter, rng):
    B, A = rng.standard_normal((12, 2)), rng.standard_normal((2, 10))
    path = write_modules(write_adapter, "multilora-s0", [(B, A), (B @ [[1, 2], [0, 1]], 3 * A)])
    (row,) = overlap.by_run(overlap.module_pairs([run_of(path, "multilora", 0, n=2)]))
    assert row["overlap_above_chance"] == pytest.approx(1 - (2 / 12 + 2 / 10) / 2, abs=1e-6)


# The null: modules of different seeds.


def direct(modules_a, modules_b, which):
    """Mean φ(r, r) over all pairs of a module of one run and a module of another.

    modules: [(B, A), …]; which: 0 for output directions, 1 for input directions.
    """
    bases = [
        [np.linalg.qr(m[0] if which == 0 else m[1].T)[0] for m in modules]
        for modules in (modules_a, modules_b)
    ]
    return np.mean(
        [np.linalg.norm(a.T @ b) ** 2 / a.shape[1] for a, b in itertools.product(*bases)]
    )


def drawn(rng, n=3):
    return [(rng.standard_normal((D_OUT, 2)), rng.standard_normal((2, D_IN))) for _ in range(n)]


@pytest.fixture
def seeds_of(write_adapter):
    """Write the runs of one method, one per list of modules."""

    def write(*runs, method="multilora"):
        return [
            run_of(
                write_modules(write_adapter, f"{method}-s{seed}", modules),
                method,
                seed,
                n=len(modules),
            )
            for seed, modules in enumerate(runs)
        ]

    return write


def test_the_null_is_the_mean_over_modules_of_two_runs(seeds_of, rng):
    """Two of the nine pairs share a planted direction; modules of one run may share all."""
    a, b = drawn(rng), drawn(rng)
    a[2] = a[1]
    for B, A in (b[1], b[2]):
        B[:, 0], A[0] = a[0][0][:, 0], a[0][1][0]
    nulls = overlap.between_seeds(seeds_of(a, b))
    assert nulls.keys() == {("multilora", "q", "left"), ("multilora", "q", "right")}
    for which, side in enumerate(("left", "right")):
        want = direct(a, b, which)
        assert nulls["multilora", "q", side] == pytest.approx(want, abs=1e-6)
        assert want > 0.03 + direct(drawn(rng), drawn(rng), which)
        of_equal_places = np.mean([direct([x], [y], which) for x, y in zip(a, b, strict=True)])
        assert abs(want - of_equal_places) > 0.01


def test_the_null_of_three_runs_is_over_all_pairs_of_runs(seeds_of, rng):
    runs = [drawn(rng) for _ in range(3)]
    nulls = overlap.between_seeds(seeds_of(*runs))
    want = np.mean([direct(*pair, 0) for pair in itertools.combinations(runs, 2)])
    assert nulls["multilora", "q", "left"] == pytest.approx(want, abs=1e-6)


def test_methods_have_nulls_of_their_own(seeds_of, rng):
    one, zero = [drawn(rng), drawn(rng)], [drawn(rng), drawn(rng)]
    runs = [*seeds_of(*one), *seeds_of(*zero, method="multilora zero")]
    nulls = overlap.between_seeds(runs)
    for method, (a, b) in (("multilora", one), ("multilora zero", zero)):
        assert nulls[method, "q", "right"] == pytest.approx(direct(a, b, 1), abs=1e-6)


def test_runs_of_one_module_or_of_one_seed_have_no_null(seeds_of, write_adapter, lora_tensors, rng):
    several, single = (
        seeds_of(drawn(rng)),
        seeds_of(drawn(rng, 1), drawn(rng, 1), method="multilora n=1"),
    )
    lora = [run_of(write_adapter(lora_tensors("q"), f"l-s{s}"), "lora", s) for s in (0, 1)]
    assert overlap.between_seeds([*several, *single, *lora]) == {}
    assert overlap.between_seeds([]) == {}


def test_a_module_at_zero_has_no_directions(seeds_of, rng):
    a, b = drawn(rng), drawn(rng)
    a[2][0][:] = 0
    nulls = overlap.between_seeds(seeds_of(a, b))
    assert nulls["multilora", "q", "left"] == pytest.approx(direct(a[:2], b, 0), abs=1e-6)


def test_both_tables_hold_the_null_and_the_overlap_beyond_it(seeds_of, rng):
    runs = seeds_of(drawn(rng), drawn(rng))
    nulls = overlap.between_seeds(runs)
    pairs = overlap.module_pairs(runs, nulls)
    for layer, row in zip(overlap.by_layer(pairs), overlap.by_run(pairs), strict=True):
        for side in ("left", "right"):
            by_null = nulls["multilora", "q", side]
            assert layer[f"{side}_null"] == row[f"{side}_null_k"] == by_null
            assert row[f"{side}_above_null"] == pytest.approx(row[f"{side}_phi_k"] - by_null)


def test_without_a_second_seed_there_is_no_null(seeds_of, rng):
    pairs = overlap.module_pairs(seeds_of(drawn(rng)))
    (layer,), (row,) = overlap.by_layer(pairs), overlap.by_run(pairs)
    assert layer["left_null"] is row["right_null_k"] is row["left_above_null"] is None
    assert row["left_above_chance"] is not None
