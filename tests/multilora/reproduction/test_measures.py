"""Rows of runs, nearness and differences, against the slow way."""

import numpy as np
import pytest
import scipy.stats
from finished import run_of

from analysis import similarity, spectrum
from analysis.numerics import metrics, null
from analysis.pairs import dominance, repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Spectra
from analysis.tables import similarity as similarity_table
from analysis.tables.text import plain
from multilora.reproduction import measures
from multilora.reproduction.measures import COMPARED, differences
from multilora.reproduction.text import difference_table

D = (12, 10)


@pytest.fixture
def lora_runs(write_adapter, lora_tensors):
    """Two seeds each of updates of rank 4, 3 and 2, under the names of three methods."""
    runs = []
    for method, r in (("lora", 4), ("multilora", 3), ("expert", 2)):
        for seed in (0, 1):
            path = write_adapter(lora_tensors("q", "v", r=r), f"{method}-s{seed}", r=r)
            runs.append(run_of(path, method, seed, n=1))
    return runs


@pytest.fixture
def spectra(lora_runs):
    whole = Spectra()
    for run in lora_runs:
        found = spectrum.analyse(run.path)
        whole.rows.extend(found.rows)
        whole.s.update(found.s)
    return whole


def test_k_is_the_smallest_capacity_of_the_methods_that_are_claimed_of(lora_runs, spectra):
    assert measures.common_k(lora_runs, spectra) == 3
    experts = [run for run in lora_runs if run.method == "expert"]
    assert measures.common_k(experts, spectra) == 2


def test_a_row_a_run_against_the_slow_way(lora_runs, spectra):
    rows = measures.of_runs(lora_runs, spectra)
    assert [(row["method"], row["seed"]) for row in rows] == [
        (run.method, run.seed) for run in lora_runs
    ]
    for row, run in zip(rows, lora_runs, strict=True):
        of_run = [r for r in spectra.rows if r["run"] == run.name]
        s = [spectra.s[r["key"]] for r in of_run]
        assert row["top_share_1"] == pytest.approx(np.mean([x[0] ** 2 / np.sum(x**2) for x in s]))
        chance = null.chance(10, 12, s[0].size, 1, dense=run.method == "full")["top_share_1"].mean
        assert row["null_top_share_1"] == pytest.approx(chance)
        assert row["top_share_1_above_null"] == pytest.approx(row["top_share_1"] - chance)
        assert row["democracy"] == pytest.approx(np.mean([r["democracy"] for r in of_run]))
        # Of factored updates every value up to the rank is above the floor.
        assert row["above_floor_share"] == pytest.approx(min(s[0].size, 10) / 10)
        if run.method == "expert":
            assert {row[name] for name in measures.FIRST_K} == {None}
        else:
            ranks = [metrics.effective_rank(x[:3]) for x in s]
            assert row["effective_rank_k"] == pytest.approx(np.mean(ranks))
    assert rows[0]["learning_rate"] == 0.003
    assert (rows[0]["score"], rows[0]["score_validation"]) == (0.5, 0.75)
    assert rows[0]["task_sort"] == 0.25


def test_every_measure_is_compared_with_random_updates(lora_runs, spectra):
    """Of the rank of the factors, with the k that the update has."""
    for row, run in zip(measures.of_runs(lora_runs, spectra), lora_runs, strict=True):
        r = {"lora": 4, "multilora": 3, "expert": 2}[run.method]
        by_chance = null.chance(*D, r, min(3, r), dense=False)
        for name in measures.WITH_NULL:
            ratio = name == "effective_rank_k"
            relative = f"{name}_of_null" if ratio else f"{name}_above_null"
            if run.method == "expert" and name in measures.FIRST_K:
                assert row[f"null_{name}"] is row[relative] is None
                continue
            of_null = by_chance[name].mean
            assert row[f"null_{name}"] == pytest.approx(of_null)
            want = row[name] / of_null if ratio else row[name] - of_null
            assert row[relative] == pytest.approx(want)


def test_the_null_of_factors_has_their_r_and_that_of_a_dense_update_none(
    write_adapter, write_delta, lora_tensors, rng
):
    wide = run_of(write_adapter(lora_tensors("q", r=14), "lora-s0", r=14), "lora", 0)
    dense = run_of(write_delta({"q": rng.standard_normal(D)}, "full-s0"), "full", 0)
    for run, r, is_dense in ((wide, 14, False), (dense, 10, True)):
        (row,) = measures.of_runs([run], spectrum.analyse(run.path))
        by_chance = null.chance(*D, r, 10, dense=is_dense)
        for name in measures.WITH_NULL:
            assert row[f"null_{name}"] == pytest.approx(by_chance[name].mean)
    of_rank_10 = null.chance(*D, 10, 10, dense=False)["top_share_1"].mean
    assert null.chance(*D, 14, 10, dense=False)["top_share_1"].mean < of_rank_10 - 0.01


def test_a_random_update_is_at_its_null(rng, tmp_path):
    draws, r = 400, 4
    random = null.null_spectra(*D, r, draws, rng, dense=False)
    facts_of = {"run": "lora-s0", "spectral_norm": 1.0, "r": r, "d_out": D[0], "d_in": D[1]}
    facts_of |= {"capacity": r, "democracy": 1.0, "energy_rank_90": 2, "above_floor": r}
    rows = [facts_of | {"key": str(i)} for i in range(draws)]
    run = run_of(tmp_path / "lora-s0", "lora", 0)
    (row,) = measures.of_runs([run], Spectra(rows, {str(i): s for i, s in enumerate(random)}))
    by_chance = null.chance(*D, r, r, dense=False)
    for name in ("top_share_1", "gini_k"):
        assert abs(row[f"{name}_above_null"]) < 4 * by_chance[name].spread / np.sqrt(draws)
    error = by_chance["effective_rank_k"].spread / by_chance["effective_rank_k"].mean
    assert abs(row["effective_rank_k_of_null"] - 1) < 4 * error / np.sqrt(draws)
    assert row["top_share_4_above_null"] == 0  # of rank 4, all of the energy


def test_values_below_the_floor_do_not_count(write_delta, rng):
    U, _, Vh = np.linalg.svd(rng.standard_normal(D), full_matrices=False)
    s = np.r_[1.0, 0.5, np.full(8, 1e-4)]
    facts_of = {"q": {"floor": 1e-2, "W0_frobenius": 1.0, "W0_rms": 0.1}}
    path = write_delta({"q": ((U * s) @ Vh).astype("f4")}, "full-s0", modules=facts_of)
    run = run_of(path, "full", 0)
    (row,) = measures.of_runs([run], spectrum.analyse(path))
    assert row["above_floor_share"] == pytest.approx(0.2)


def test_no_runs_have_no_rows():
    assert measures.of_runs([], Spectra()) == []


def test_a_run_that_moved_nothing_is_an_error(write_adapter, lora_tensors):
    tensors = {name: value * ("lora_A" in name) for name, value in lora_tensors("q").items()}
    run = run_of(write_adapter(tensors, "lora-s0"), "lora", 0)
    with pytest.raises(ValueError, match="every ΔW is zero"):
        measures.of_runs([run], spectrum.analyse(run.path))


def test_random_updates_have_the_top_share_of_the_null(rng):
    shares = [
        metrics.top_share(
            np.linalg.svd(
                rng.standard_normal((20, 4)) @ rng.standard_normal((4, 16)), compute_uv=False
            )[:4],
            1,
        )
        for _ in range(2000)
    ]
    of_4, of_16 = (null.chance(16, 20, r, 1, dense=False) for r in (4, 16))
    assert of_4["top_share_1"].mean == pytest.approx(np.mean(shares), abs=0.01)
    assert of_4["top_share_4"].mean == 1
    assert of_16["top_share_1"].mean < of_4["top_share_1"].mean


@pytest.fixture
def alike(lora_runs):
    found = similarity.analyse([run.path for run in lora_runs], parts=False)
    return found, {run.name: Label(run.method, run.seed) for run in lora_runs}


def test_nearness_is_the_mean_over_runs_of_other_seeds(alike, lora_runs, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    by_key = {(row["method"], row["seed"], row["reference"]): row for row in rows}
    assert len(by_key) == len(rows) == 6 * 3
    row = by_key["multilora", 0, "lora"]
    phis, distances = [], []
    for pair in found.rows:
        if {pair["run_a"], pair["run_b"]} == {"multilora-s0", "lora-s1"}:
            phis.append(found.phi[f"{pair['key']}#left"][2, 2])
            s = [spectra.s[f"{name}/{pair['module']}"] for name in ("multilora-s0", "lora-s1")]
            distances.append(dominance.log_distance(*s, 3))
    assert len(phis) == 2
    assert row["left_phi_k"] == pytest.approx(np.mean(phis))
    assert row["log_distance"] == pytest.approx(np.mean(distances))
    assert (row["k"], row["left_chance_k"]) == (3, pytest.approx(3 / 12))
    # Of one pair of seeds, a method's nearness to itself is the same from both ends.
    assert by_key["lora", 0, "lora"]["left_phi_k"] == by_key["lora", 1, "lora"]["left_phi_k"]


def test_a_relative_of_lower_rank_does_not_lower_the_others_k(alike, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    assert {row["k"] for row in rows if "expert" in (row["method"], row["reference"])} == {2}
    assert {row["k"] for row in rows if "expert" not in (row["method"], row["reference"])} == {3}
    between = repeatability.between(found.rows, found.phi, labels, 3)
    assert {row["k"] for row in between if "expert" in (row["method_a"], row["method_b"])} == {2}
    assert {row["k"] for row in between if row["method_b"] == "multilora"} == {3}
    # Without a k, one for all.
    assert {row["k"] for row in repeatability.between(found.rows, found.phi, labels)} == {2}


def test_the_printed_table_says_where_k_is_smaller(alike):
    found, labels = alike
    of = repeatability.between(found.rows, found.phi, labels, 3)
    lines = list(plain(similarity_table.method_lines(of)))
    assert lines[0].startswith("φ(3)")
    assert f"left (chance {3 / 12:.3f})" in lines[2]
    by_name = {line.split()[0]: line for line in lines[3:6]}
    assert [line.count(" at 2") for line in by_name.values()] == [1, 1, 3]
    one_k = similarity_table.method_lines(repeatability.between(found.rows, found.phi, labels))
    assert " at " not in "".join(plain(one_k))


def test_nearness_agrees_with_the_means_between_methods(alike, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    between = repeatability.between(found.rows, found.phi, labels, 3)
    for pair in between:
        phis = [
            row["right_phi_k"]
            for row in rows
            if (row["method"], row["reference"]) == (pair["method_a"], pair["method_b"])
        ]
        assert pair["right_phi_k"] == pytest.approx(np.mean(phis))


@pytest.fixture
def rows(rng):
    """Three seeds each of two methods, the second in another order."""
    return [
        {"method": method, "seed": seed, **{m: float(rng.standard_normal()) for m in COMPARED}}
        for method, seeds in (("full", (0, 1, 2)), ("lora", (2, 0, 1)))
        for seed in seeds
    ]


def test_differences_are_paired_by_seed(rows):
    compared = differences(rows)
    assert [row["measure"] for row in compared] == list(COMPARED)
    value = {(row["method"], row["seed"]): row["gini_k"] for row in rows}
    d = [value["full", seed] - value["lora", seed] for seed in (0, 1, 2)]
    row = compared[COMPARED.index("gini_k")]
    want = scipy.stats.t.interval(0.95, 2, np.mean(d), scipy.stats.sem(d))
    assert (row["low"], row["high"]) == pytest.approx(want)
    assert row["mean"] == pytest.approx(np.mean(d))
    assert (row["above"], row["below"]) == (sum(x > 0 for x in d), sum(x < 0 for x in d))


def test_one_seed_has_no_interval(rows):
    compared = differences([row for row in rows if row["seed"] == 1])
    assert {row["low"] for row in compared} == {None}
    assert "[–, –]" in difference_table(compared)


def test_one_method_has_no_difference(rows):
    assert differences([row for row in rows if row["method"] == "full"]) == []


def test_methods_of_other_seeds_are_paired_on_those_in_common(rows):
    """The last row is LoRA's of seed 1."""
    compared = differences(rows[:-1])
    assert {row["seeds"] for row in compared} == {2}
    want = differences([row for row in rows if row["seed"] != 1])
    assert compared == want
    assert "n = 2" in difference_table(compared)


def test_methods_without_a_common_seed_have_no_difference(rows):
    apart = [row for row in rows if (row["method"] == "full") == (row["seed"] == 0)]
    compared = differences(apart)
    assert {(row["seeds"], row["mean"], row["low"]) for row in compared} == {(0, None, None)}
    assert "– [–, –] 0/0" in difference_table(compared)


def test_what_a_method_has_too_few_values_for_is_left_out(rows):
    for row in rows[:3]:
        row["gini_k"] = None
    compared = {row["measure"]: row for row in differences(rows)}
    assert (compared["gini_k"]["seeds"], compared["gini_k"]["mean"]) == (0, None)
    assert compared["top_share_1"]["seeds"] == 3


# The base as the unit.


def test_of_one_base_each_method_has_one_row_per_reference():
    rows = [
        {"method": method, "seed": seed, "reference": reference, "k": k, "run_pairs": 1}
        | {"modules": 14, "left_phi_k": value, "log_distance": far}
        for method, seed, reference, k, value, far in (
            ("lora", 5, "full", 24, 0.2, 1.0),
            ("lora", 15, "full", 24, 0.4, None),
            ("lora", 5, "lora", 24, 0.9, 0.1),
            ("expert", 5, "full", 8, 0.1, 2.0),
        )
    ]
    got = measures.of_unit(rows, 5)
    assert [(row["method"], row["seed"], row["reference"]) for row in got] == [
        ("lora", 5, "full"),
        ("lora", 5, "lora"),
        ("expert", 5, "full"),
    ]
    assert got[0].keys() == rows[0].keys()
    assert got[0]["left_phi_k"] == pytest.approx(0.3)
    assert (got[0]["log_distance"], got[0]["run_pairs"]) == (1.0, 2)
    assert (got[0]["k"], got[2]["k"], got[0]["modules"]) == (24, 8, 14)
    assert measures.of_unit([], 5) == []


REPEAT = 10


def of_bases(rng, bases, between, within, method="lora"):
    """(rows, repeats): all measures with these standard deviations, two seeds per base."""
    both = ([], [])
    for seed in range(bases):
        own = {name: between * rng.standard_normal() for name in measures.VARYING}
        for rows, more in zip(both, (0, REPEAT), strict=True):
            values = {name: at + within * rng.standard_normal() for name, at in own.items()}
            rows.append({"method": method, "seed": seed + more} | values)
    return both


def test_the_variation_is_told_apart_in_a_large_sample(rng):
    for row in measures.spread(*of_bases(rng, 4000, between=0.3, within=0.1), REPEAT):
        assert row["bases"] == 4000
        assert row["between_bases"] == pytest.approx(0.3, rel=0.05)
        assert row["between_seeds"] == pytest.approx(0.1, rel=0.05)
    for row in measures.spread(*of_bases(rng, 4000, between=0.0, within=0.1), REPEAT):
        assert row["between_bases"] < 0.03  # of runs alone it would be 0.1
        assert row["between_seeds"] == pytest.approx(0.1, rel=0.05)


def test_the_variation_is_that_of_the_analysis_of_variance(rng):
    rows, repeats = of_bases(rng, 5, between=1.0, within=0.1)
    found = {row["measure"]: row for row in measures.spread(rows, repeats[::-1], REPEAT)}
    assert found.keys() == set(measures.VARYING)
    for name, row in found.items():
        groups = [(a[name], b[name]) for a, b in zip(rows, repeats, strict=True)]
        F = scipy.stats.f_oneway(*groups).statistic
        within = np.mean([np.var(group, ddof=1) for group in groups])
        assert row["between_seeds"] == pytest.approx(np.sqrt(within))
        assert row["between_bases"] == pytest.approx(np.sqrt((F - 1) * within / 2))


def test_a_negative_variance_between_bases_is_zero():
    rows = [{"method": "lora", "seed": s} | dict.fromkeys(measures.VARYING, 1.0) for s in (0, 1)]
    repeats = [row | {"seed": row["seed"] + REPEAT} for row in rows]
    repeats = [row | dict.fromkeys(measures.VARYING, 2.0) for row in repeats]
    for row in measures.spread(rows, repeats, REPEAT):
        assert row["between_bases"] == 0
        assert row["between_seeds"] == pytest.approx(np.sqrt(0.5))


def test_only_bases_with_both_seeds_count(rng):
    rows, repeats = of_bases(rng, 5, between=1.0, within=0.1)
    whole = measures.spread(rows[:3], repeats[:3], REPEAT)
    assert measures.spread(rows, repeats[:3], REPEAT) == whole
    assert {row["bases"] for row in whole} == {3}
    assert measures.spread(rows, repeats[:1], REPEAT) == []
    assert measures.spread(rows, [], REPEAT) == measures.spread([], repeats, REPEAT) == []
    others = [row | {"method": "full"} for row in repeats]
    assert measures.spread(rows, others, REPEAT) == []


def test_a_measure_that_a_run_lacks_has_no_spread(rng):
    rows, repeats = of_bases(rng, 3, between=1.0, within=0.1)
    repeats[1]["gini_k"] = None
    found = {row["measure"] for row in measures.spread(rows, repeats, REPEAT)}
    assert found == set(measures.VARYING) - {"gini_k"}
