"""The comparison of spectra: distances against scipy, verdicts on spectra built to have them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_spectra import power, spectra

from analysis import store
from analysis.numerics import null
from analysis.numerics.statistics import comparable
from analysis.pairs import dominance
from analysis.pairs.dominance import COLUMNS, Comparison, judge, log_distance, wasserstein
from analysis.spectrum import analyse

EPS = np.finfo(float).eps
A, B = ("a", None), ("b", None)
# Rows of updates of one capacity, and of two.
ALIKE = {"r_a": 8, "r_b": 8, "capacity_a": 8, "capacity_b": 8}
UNLIKE = ALIKE | {"r_b": 16, "capacity_b": 16}


def finding(a, b):
    return judge(dominance.pair_spectra(spectra(a=a, b=b), A, B))


# Distances


def padded(s, d):
    return np.r_[s / np.linalg.norm(s), np.zeros(d - s.size)]


@pytest.mark.parametrize(("k_a", "k_b", "d"), [(8, 8, 8), (8, 8, 40), (2, 16, 40), (5, 40, 40)])
def test_wasserstein_is_scipys_of_all_values(rng, k_a, k_b, d):
    a, b = (np.sort(rng.exponential(size=k))[::-1] for k in (k_a, k_b))
    want = scipy.stats.wasserstein_distance(padded(a, d), padded(b, d))
    assert wasserstein(a, b, d) == pytest.approx(want, rel=1e-12)
    assert wasserstein(b, a, d) == wasserstein(a, b, d)
    assert wasserstein(3 * a, b / 7, d) == pytest.approx(want, rel=1e-12)
    assert 0 < wasserstein(a, b, d) <= 1 / np.sqrt(d)


def test_wasserstein_does_not_see_unused_capacity(rng):
    a, b = (np.sort(rng.exponential(size=k))[::-1] for k in (3, 6))
    assert wasserstein(np.r_[a, 0, 0], b, 40) == wasserstein(a, b, 40)
    # Over the first k values only it would change.
    firsts = [scipy.stats.wasserstein_distance(padded(a, k), padded(b, 6)[:k]) for k in (3, 5)]
    assert firsts[0] != pytest.approx(firsts[1], rel=0.1)


def test_log_distance_is_the_rms_of_logs_of_normalised_values(rng):
    a, b = (np.sort(rng.exponential(size=k))[::-1] for k in (9, 6))
    logs = [np.log(s / np.sqrt(np.sum(s**2)))[:5] for s in (a, b)]
    want = np.sqrt(np.mean((logs[0] - logs[1]) ** 2))
    assert log_distance(a, b, 5) == pytest.approx(want, rel=1e-12)
    assert log_distance(b, a, 5) == pytest.approx(want, rel=1e-12)
    assert log_distance(1e-200 * a, 1e200 * b, 5) == pytest.approx(want, rel=1e-12)
    assert log_distance(a, a, 5) == 0
    assert np.isnan(log_distance(a, b, 0))


def test_log_distance_is_finite_past_the_rank():
    a, b = np.array([4.0, 2, 1, 0, 0]), np.array([4.0, 2, 1, 1, 0])
    normalised = np.log(np.sqrt(21 / 22))
    for common in (3, 4, 5, 9):
        assert log_distance(a, b, common) == pytest.approx(abs(normalised))
        assert log_distance(b, a, common) == pytest.approx(abs(normalised))
    assert np.isnan(log_distance(np.zeros(3), b, 3))


def test_what_lies_below_the_cutoff_does_not_count_as_a_distance():
    a = {"q": [4, 2, 1, 1e-16]}
    b = {"q": [4, 2, 1, 1e-3]}
    (row,) = dominance.pair_spectra(spectra(a=a, b=b), A, B).rows
    assert row["log_distance"] < 1e-6
    assert log_distance(*(np.array(s["q"]) for s in (a, b)), 4) > 10


# Rows


def test_a_row_holds_the_measures_of_both(rng):
    a, b = (np.sort(rng.exponential(size=k))[::-1] for k in (20, 6))
    found = dominance.pair_spectra(spectra(a={"q": a}, b={"q": b}), A, B)
    (row,) = found.rows
    assert tuple(row) == COLUMNS
    assert (row["capacity_a"], row["capacity_b"], row["k"]) == (20, 6, 6)
    for side, s in (("a", a), ("b", b)):
        assert {m: row[f"{m}_{side}"] for m in comparable(s, 6)} == comparable(s, 6)
    assert row["wasserstein"] == wasserstein(a, b, 48)
    assert row["log_distance"] == log_distance(a, b, 6)
    assert (row["r_a"], row["r_b"]) == (20, 6)
    for side, s in (("a", a), ("b", b)):
        chance = null.chance(64, 48, s.size, 6, dense=False)
        for measure in dominance.MEASURES:
            of, got = comparable(s, 6)[measure], row[f"{measure}_beyond_{side}"]
            mean = chance[measure].mean
            want = of / mean if measure == "effective_rank_k" else of - mean
            assert got == pytest.approx(want, rel=1e-12, abs=1e-15)
    spreads = [null.chance(64, 48, r, 6, dense=False)["gini_k"].spread for r in (20, 6)]
    assert row["gini_k_spread"] == pytest.approx(np.hypot(*spreads), rel=1e-12)
    assert (found.only_a, found.only_b, found.zero, found.shapes) == ([], [], [], [])


def test_modules_meet_by_name_and_the_others_are_named():
    found = spectra(
        a={"q": [2, 1], "v": [2, 1], "z": [0, 0], "y": [1, 1], "lonely": [1, 1]},
        b={"v": [1, 1], "q": [3, 1], "z": [1, 1], "y": [0, 0], "alone": [1], "other": [1]},
    )
    compared = dominance.pair_spectra(found, A, B)
    assert [row["module"] for row in compared.rows] == ["q", "v"]
    assert compared.rows[0]["top_share_1_b"] == pytest.approx(0.9)
    assert (compared.only_a, compared.only_b) == (["lonely"], ["alone", "other"])
    assert (compared.zero, compared.shapes) == (["z", "y"], [])


def test_modules_of_different_shapes_are_left_out():
    found = spectra(a={"q": [2, 1], "v": [2, 1]}, b={"q": [2, 1], "v": [2, 1]})
    found.rows[-1]["d_out"] = 7
    compared = dominance.pair_spectra(found, A, B)
    assert ([row["module"] for row in compared.rows], compared.shapes) == (["q"], ["v"])


def test_parts_meet_their_like_or_what_has_none():
    heads = {"q#head1": [2, 1], "q#head2": [3, 1]}
    both = dominance.pair_spectra(spectra(a=heads, b={"q#head2": [3, 1], "q#mean": [1, 1]}), A, B)
    assert [(row["part"], row["log_distance"]) for row in both.rows] == [("head2", 0)]
    assert (both.only_a, both.only_b) == (["q#head1"], ["q#mean"])
    plain = dominance.pair_spectra(spectra(a={"q": [3, 1]}, b=heads), A, B)
    assert [row["part"] for row in plain.rows] == ["head1", "head2"]
    assert plain.rows[1]["log_distance"] == 0
    neither = dominance.pair_spectra(spectra(a={"q#x": [3, 1]}, b=heads), A, B)
    assert (neither.rows, len(neither.only_b)) == ([], 2)


def test_chance_cancels_between_updates_of_one_kind(rng):
    s = [np.sort(rng.exponential(size=6))[::-1] for _ in "ab"]
    (row,) = dominance.pair_spectra(spectra(a={"q": s[0]}, b={"q": s[1]}), A, B).rows
    assert not dominance.unlike(row)
    assert row["top_share_1_spread"] > 0  # but two random ones differ
    for measure in set(dominance.MEASURES) - {"effective_rank_k"}:
        beyond = row[f"{measure}_beyond_a"] - row[f"{measure}_beyond_b"]
        assert beyond == pytest.approx(row[f"{measure}_a"] - row[f"{measure}_b"], abs=1e-15)


def test_factors_and_a_matrix_of_one_capacity_are_unlike(rng):
    s = np.sort(rng.exponential(size=48))[::-1]
    found = spectra(a={"q": s}, b={"q": s}, c={"q": s})
    found.rows[1]["r"] = None
    found.rows[2]["r"] = 200
    for run in ("b", "c"):
        (row,) = dominance.pair_spectra(found, A, (run, None)).rows
        assert dominance.unlike(row)
        assert row["gini_k_spread"] > 0
        assert row["gini_k_a"] == row["gini_k_b"]
        assert row["gini_k_beyond_a"] < row["gini_k_beyond_b"]


# Which pairs


def pairs(*names):
    one = {"q": [2, 1]}
    chosen = dominance.pairs(spectra(**dict.fromkeys(names, one)).rows)
    return [f"{dominance.name(a)} {dominance.name(b)}" for a, b in chosen]


def test_every_two_runs_are_compared():
    assert pairs("a") == []
    assert pairs("a", "b", "c") == ["a b", "a c", "b c"]


def test_steps_meet_the_next_and_the_first_the_last():
    assert pairs("a_at_1", "a_at_2") == ["a@1 a@2"]
    assert pairs("a_at_10", "a_at_2", "a") == ["a@2 a@10", "a@10 a", "a@2 a"]


def test_the_last_step_of_a_run_meets_other_runs():
    names = ("a_at_1", "a_at_2", "b", "c_at_5", "c_at_7")
    assert pairs(*names) == ["a@2 b", "a@2 c@7", "b c@7", "a@1 a@2", "c@5 c@7"]


# Verdicts


def test_the_steeper_spectrum_is_more_dominated_by_all_measures():
    got = finding(power(8, 2), power(8, 0.5))
    assert (got.agreement, got.more) == ("all measures", "a")
    assert got.sentence == "a is more dominated than b, by all measures."
    # top-16 is 1 by construction at capacity 8.
    assert [r.modules for r in got.readings.values()] == [4, 4, 0, 4, 4]
    assert all(r.more_a == r.modules for r in got.readings.values())
    back = finding(power(8, 0.5), power(8, 2))
    assert (back.agreement, back.more) == ("all measures", "b")
    for measure, reading in got.readings.items():
        mirrored = back.readings[measure]
        assert (mirrored.more_a, mirrored.more_b) == (reading.more_b, reading.more_a)
        assert mirrored.difference == -reading.difference


def test_one_power_law_at_two_capacities_is_explained_by_them():
    """The share of one value is larger where there are fewer; by chance it is larger still."""
    got = finding(power(4, 0.6), power(48, 0.6))
    assert (got.agreement, got.more) == ("the capacities explain the difference", None)
    assert got.sentence == "a and b differ by top-1: the capacities explain the difference."
    top = got.readings["top_share_1"]
    assert (top.more, top.by_capacity, top.more_a) == (None, "a", 4)
    assert top.difference > 0.1
    assert top.beyond < 0
    assert got.readings["effective_rank_k"].difference == pytest.approx(0, abs=1e-12)
    assert got.held[0] == 1 > got.held[1]


def test_energy_shares_only():
    # One large value over rests of different length, of which s[:k] sees the same.
    got = finding({"q": [3, *[1] * 3]}, {"q": [3, *[1] * 3, *[0.999] * 40]})
    assert (got.agreement, got.more) == ("energy shares only", "a")
    assert got.sentence == (
        "a is more dominated than b by energy shares only (top-1); by how uneven the top 4 values"
        " are it is not clear."
    )


def test_within_k_only_says_what_is_held():
    a, b = [10, 1, 1, 1e-9], [10, np.sqrt(2), 1e-3, 1e-9]
    got = finding({"q": b}, {"q": a})
    assert (got.agreement, got.more) == ("within s[:k] only", "a")
    assert got.sentence == (
        "a is more dominated than b by how uneven its top 4 values are, which hold 1.000 and 1.000"
        " of the energy; by energy shares it is not clear."
    )


def test_measures_that_disagree_are_named():
    # a: a larger first value over an even rest; b: two that hold all.
    a, b = [9, 2, 2, 2, 2, 2, 2, 2], [5, 5, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
    got = finding({"q": a}, {"q": b})
    assert (got.agreement, got.more) == ("measures disagree", None)
    assert got.sentence == (
        "The measures disagree: a is more dominated by top-1, b by top-4, eff. rank of s[:8],"
        " Gini of s[:8]."
    )


def test_some_of_both_families_name_their_measures():
    # Of 20 values a and b hold the same in the first, but not in the next.
    a, b = np.r_[10, np.full(3, 4.0), np.full(16, 0.01)], np.r_[10, np.full(19, np.sqrt(48 / 19))]
    got = finding({"q": a}, {"q": b})
    assert (got.agreement, got.more) == ("energy shares and within s[:k]", "a")
    assert got.sentence.endswith("the other measures are not clear.")
    assert "top-4, top-16, eff. rank of s[:20], Gini of s[:20]" in got.sentence


def test_a_spectrum_against_itself_is_not_clear_at_any_scale():
    a = power(8, 1)
    got = finding(a, {module: 1e-30 * s / 3 for module, s in a.items()})
    assert (got.agreement, got.more) == ("no clear difference", None)
    assert all(r.more_a == r.more_b == 0 for r in got.readings.values())
    assert got.log_distance < 100 * EPS
    assert got.wasserstein < 100 * EPS


@pytest.mark.parametrize(("ahead", "clear"), [(2, False), (3, True), (4, True)])
def test_clear_takes_three_quarters_of_the_modules(ahead, clear):
    steep, flat = [9, 1, 1, 1], [2, 1, 1, 1]
    a = {f"q{i}": steep if i < ahead else flat for i in range(4)}
    b = {f"q{i}": flat if i < ahead else steep for i in range(4)}
    got = finding(a, b)
    assert (got.more == "a") == clear
    assert got.readings["gini_k"].more_a == ahead


def test_clear_takes_a_difference_that_matters():
    a, b = {"q": [1, 0.5, 0.5]}, {"q": [1, 0.501, 0.501]}
    got = finding(a, b)
    assert got.readings["top_share_1"].more_a == 1
    assert got.agreement == "no clear difference"


@pytest.mark.parametrize("measure", dominance.MEASURES)
@pytest.mark.parametrize("a_is_ahead", [True, False])
@pytest.mark.parametrize(("part", "clear"), [(0.0, False), (0.0095, False), (0.0105, True)])
def test_a_difference_matters_from_a_hundredth_of_the_range(measure, a_is_ahead, part, clear):
    """The range is 1, and k directions for an effective rank, of which fewer is more dominated."""
    k = 20
    more, less = (3.0 - part * k, 3.0) if measure == "effective_rank_k" else (0.5 + part, 0.5)
    a, b = (more, less) if a_is_ahead else (less, more)
    # Chance is the same for both, and cancels.
    chance = k if measure == "effective_rank_k" else 1
    beyond = {f"{measure}_beyond_a": a / chance, f"{measure}_beyond_b": b / chance}
    row = ALIKE | {"k": k, f"{measure}_a": a, f"{measure}_b": b} | beyond
    row[f"{measure}_spread"] = 0.0
    got = dominance.reading([row] * 4, measure)
    assert got.more == (("a" if a_is_ahead else "b") if clear else None)
    assert got.by_capacity is None
    assert (got.more_a, got.more_b) == ((0, 0) if not part else (4, 0) if a_is_ahead else (0, 4))


@pytest.mark.parametrize("measure", dominance.MEASURES)
@pytest.mark.parametrize("a_is_ahead", [True, False])
@pytest.mark.parametrize(
    ("beyond", "spread", "confirmed"),
    [
        (0.25, 0.02, True),
        (0.255, 0.1, True),
        (0.245, 0.1, False),  # random updates differ as much
        (0.0105, 0.001, True),
        (0.0095, 0.001, False),  # too small to matter
        (-0.25, 0.02, False),  # on the other side
    ],
)
def test_between_unlike_updates_a_difference_is_also_beyond_chance(
    measure, a_is_ahead, beyond, spread, confirmed
):
    sign = -1 if measure == "effective_rank_k" else 1
    raw, beyond = sign * (6 if sign < 0 else 0.3), sign * beyond
    row = UNLIKE | {"k": 20, f"{measure}_a": 7.0 + raw, f"{measure}_b": 7.0}
    row |= {f"{measure}_beyond_a": 0.5 + beyond, f"{measure}_beyond_b": 0.5}
    if not a_is_ahead:
        row |= {f"{measure}_a": 7.0, f"{measure}_b": 7.0 + raw}
        row |= {f"{measure}_beyond_a": 0.5, f"{measure}_beyond_b": 0.5 + beyond}
    got = dominance.reading([row | {f"{measure}_spread": spread}] * 4, measure)
    ahead = "a" if a_is_ahead else "b"
    assert (got.more, got.by_capacity) == ((ahead, None) if confirmed else (None, ahead))
    assert got.beyond == pytest.approx(beyond if a_is_ahead else -beyond)


@pytest.mark.parametrize(("confirmed", "clear"), [(2, False), (3, True)])
def test_beyond_chance_takes_three_quarters_of_the_modules_too(confirmed, clear):
    row = UNLIKE | {"k": 20, "gini_k_a": 0.7, "gini_k_b": 0.4, "gini_k_beyond_b": 0.1}
    rows = [
        row | {"gini_k_beyond_a": 0.4 if i < confirmed else 0.12, "gini_k_spread": 0.02}
        for i in range(4)
    ]
    got = dominance.reading(rows, "gini_k")
    assert (got.more, got.by_capacity) == (("a", None) if clear else (None, "a"))


def test_one_value_decides_nothing():
    got = finding({"q": [3.0]}, {"q": [3.0, 1]})
    assert (got.agreement, got.more) == ("follows from the capacities", None)
    assert got.sentence == (
        "Which of a and b is more dominated follows from the capacities: k = 1."
    )


def test_nothing_in_common():
    got = finding({"q": [3.0, 1]}, {"v": [3.0, 1]})
    assert (got.agreement, got.readings, got.held) == ("nothing to compare", {}, None)
    assert got.sentence == "a and b have no update in common that could be compared."
    assert json.loads(store.strict_json(dominance.as_json(got)))["only_b"] == ["v"]


def test_random_updates_of_one_kind_are_rarely_clear(rng):
    """The negative control: the same distribution on both sides."""

    def draw():
        return {
            f"q{i}": np.linalg.svd(
                rng.standard_normal((48, 8)) @ rng.standard_normal((8, 64)), compute_uv=False
            )[:8]
            for i in range(24)
        }

    outcomes = [finding(draw(), draw()).agreement for _ in range(40)]
    assert outcomes.count("no clear difference") >= 36


def test_findings_are_strict_json_and_the_same_again():
    found = spectra(a=power(8, 2), b=power(4, 1), c={"v": [0, 0]})
    first, again = (
        store.strict_json([dominance.as_json(f) for f in dominance.findings(found)]) for _ in "ab"
    )
    assert first == again
    verdicts = json.loads(first)
    assert [(v["run_a"], v["run_b"], v["modules"]) for v in verdicts] == [
        *(("a", "b", 4), ("a", "c", 0), ("b", "c", 0))
    ]
    assert verdicts[0]["more_dominated"] == "a"
    assert verdicts[1]["outcome"] == "nothing to compare"
    assert len(dominance.rows(dominance.findings(found))) == 4


# Real adapters


def test_real_ranks_against_their_dense_matrices(real_adapter):
    from analysis import checkpoint
    from analysis.formats import Options

    root = real_adapter("sam-lora-ranks")
    options = Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)"))
    paths = [root / "rank2", root / "rank8"]
    found = analyse(paths, options=options)
    (got,) = dominance.findings(found)
    assert len(got.comparison.rows) == 24
    row = got.comparison.rows[5]
    dense = [
        next(u for u in checkpoint.read(p, options=options) if u.name == row["module"]).dense()
        for p in paths
    ]
    a, b = (np.linalg.svd(W, compute_uv=False) for W in dense)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    want = scipy.stats.wasserstein_distance(a, b)
    assert row["wasserstein"] == pytest.approx(want, rel=1e-9)
    assert row["log_distance"] == pytest.approx(
        np.sqrt(np.mean(np.log(a[:2] / b[:2]) ** 2)), rel=1e-9
    )
    assert row["held_k_b"] == pytest.approx(np.sum(b[:2] ** 2), rel=1e-12)


def test_a_comparison_needs_numpy_only():
    code = (
        "import sys, analysis.pairs.dominance, analysis.tables.dominance;"
        "print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_comparison_of_some_rows_is_a_comparison():
    compared = dominance.pair_spectra(spectra(a=power(8, 2), b=power(8, 1)), A, B)
    part = dataclasses.replace(compared, rows=compared.rows[:1])
    assert isinstance(part, Comparison)
    assert judge(part).readings["gini_k"].modules == 1
