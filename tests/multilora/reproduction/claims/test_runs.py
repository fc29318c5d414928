"""Evidence on claims 1 to 4 and 6, from made-up tables."""

import numpy as np
import pytest
import scipy.stats
from claim_tables import (
    AS_CLAIMED,
    SEEDS,
    judged,
    methods_rows,
    nearness_rows,
    outcomes,
    overlap_rows,
    with_values,
)

from multilora.reproduction.claims import text


def test_what_is_as_claimed_is_supported():
    got = outcomes(methods=methods_rows())
    assert {n: got[n] for n in ("1", "2", "3", "6")} == dict.fromkeys(
        ("1", "2", "3", "6"), "supported"
    )
    assert got["4a"] == got["5"] == got["9"] == "not measured"


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        ("1", {"lora__top_share_1": 0.05}),
        ("2", {"full__top_share_1": 0.6}),
        ("3", {"multilora__effective_rank_k": 11.0}),
        ("6", {"full__score": 0.8}),  # better than LoRA, worse than full: contradicted
    ],
)
def test_the_other_way_round_is_contradicted(number, changes):
    assert outcomes(methods=methods_rows(with_values(**changes)))[number] == "contradicted"


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        ("1", {"lora__top_share_1": 0.15}),  # surely above, and by less than matters
        ("3", {"multilora__effective_rank_k": 12.5}),
        ("6", {"full__score": 0.7}),  # better than LoRA, as good as full
    ],
)
def test_too_little_is_undecided(number, changes):
    assert outcomes(methods=methods_rows(with_values(**changes)))[number] == "undecided"


def test_the_interval_is_students_over_seeds():
    rows = methods_rows(noise=0.05)
    of = {m: {r["seed"]: r["top_share_1"] for r in rows if r["method"] == m} for m in AS_CLAIMED}
    d = [of["lora"][s] - of["full"][s] for s in SEEDS]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(d), scipy.stats.sem(d))
    got = judged(methods=rows)["1"].evidence.differences["top_share_1"]
    assert (got.mean, got.low, got.high) == pytest.approx((np.mean(d), low, high))


def test_measures_that_disagree_are_said():
    rows = methods_rows(with_values(multilora__top_share_1=0.8))
    one = judged(methods=rows)["3"]
    assert (one.outcome, one.disagree) == ("supported", ["top_share_1"])
    written = text.as_markdown([one])
    assert "**Measures disagree**: top-1 share." in written
    assert "**the opposite of the claim**" in written


def test_what_rests_on_one_way_of_comparing_is_said():
    rows = methods_rows(with_values(lora__effective_rank_k=23.0, lora__gini_k=0.1))
    evidence = judged(methods=rows)["1"].evidence
    assert any("Only energy shares support the claim" in note for note in evidence.notes)
    both = judged(methods=methods_rows())["1"].evidence
    assert any("Both energy shares and the first k values support" in note for note in both.notes)


def test_what_rounding_would_leave_stands_beside_claim_2():
    row = {"effective_rank": 90.0, "effective_rank_true": 70.0, "above_floor_share": 0.14}
    rows = [row | {"ratio": 0.003}, row | {"ratio": 0.003, "effective_rank": 92.0}]
    (beside,) = judged(methods=methods_rows(), rounding_floor=rows)["2"].evidence.supplements
    assert beside.cells[1:] == [["0.003", "91", "70", "0.14"]]


def test_variants_stand_beside_claim_3_and_decide_nothing():
    values = AS_CLAIMED | {
        "multilora n=1": AS_CLAIMED["lora"],
        "multilora n=1 zero": AS_CLAIMED["lora"],
        "multilora zero": AS_CLAIMED["multilora"],
        "lora r=26": AS_CLAIMED["lora"],
    }
    one = judged(methods=methods_rows(values))["3"]
    assert one.outcome == "supported"
    against_lora, two_by_two = one.evidence.supplements
    assert [row[0] for row in against_lora.cells[1:]] == [
        *(f"{name} − lora" for name in values if name not in ("full", "lora")),
        "multilora − lora r=26",
    ]
    effect = {row[0]: row[3] for row in two_by_two.cells[1:]}
    assert effect["n = 3 − n = 1, B zero"].startswith("+6")
    assert len(effect) == 4
    assert abs(float(effect["B Kaiming − zero, n = 3"].split()[0])) < 0.1


def test_a_relative_of_lower_rank_has_a_dash_where_it_is_not_comparable():
    rows = methods_rows(AS_CLAIMED | {"expert": AS_CLAIMED["lora"]})
    for row in rows:
        if row["method"] == "expert":
            row |= {"effective_rank_k": None, "gini_k": None, "held_k": None}
    against_lora = judged(methods=rows)["3"].evidence.supplements[0]
    cells = {row[0]: row for row in against_lora.cells}
    assert cells["expert − lora"][3] == "–"
    assert cells["expert − lora"][4] != "–"


def test_what_chose_the_learning_rates_is_said():
    """LoRA at the middle of three, MultiLoRA at the lowest, full fine-tuning without a sweep."""
    rows = methods_rows()
    best = {"lora": 0.003, "multilora": 0.001}
    rows = [row | {"learning_rate": best.get(row["method"], 0.002)} for row in rows]
    sweep = [
        {
            "method": m,
            "learning_rate": rate,
            "score_validation": 0.5,
            "top_share_1": 10 * rate,
            "effective_rank_k": None if m == "multilora" else 15.0,
            "chosen": int(rate == best[m]),
        }
        for m in best
        for rate in (0.001, 0.003, 0.006)
    ]
    for number in ("3", "6"):
        (note,) = (
            n for n in judged(methods=rows, sweep=sweep)[number].evidence.notes if "rates" in n
        )
        assert note.startswith("Learning rates: full 0.002; lora 0.003; multilora 0.001. ")
        assert "Not chosen by a sweep of the same method: full." in note
        assert note.endswith("a better one may lie outside it: multilora.")
    (note,) = (n for n in judged(methods=rows)["6"].evidence.notes if "rates" in n)
    assert note.endswith("Not chosen by a sweep of the same method: full, lora, multilora.")
    assert judged(methods=rows, sweep=[*sweep[:3], sweep[5]])["3"].evidence.supplements[
        -1
    ].cells == [
        ["", "0.001", "0.003", "0.006"],
        ["lora", "(15.0, 0.01)", "15.0, 0.03", "(15.0, 0.06)"],
        ["multilora", "–", "–", "(–, 0.06)"],
    ]


@pytest.mark.parametrize(
    ("above", "outcome"),
    [
        ((0.02, 0.03, 0.025), "supported"),
        ((0.2, 0.21, 0.22), "contradicted"),
        ((0.05, 0.15, 0.1), "undecided"),
        ((0.02,), "undecided"),
    ],
)
def test_modules_share_less_or_more_than_the_margin(above, outcome):
    one = judged(overlap=overlap_rows(above))["4a"]
    assert one.outcome == outcome
    surely = any("whole interval lies above chance" in note for note in one.evidence.notes)
    assert surely == (len(above) > 1 and outcome != "undecided")


def test_a_side_whose_modules_are_independent_is_said():
    """The mean of both sides is beyond the margin for the right one alone."""
    rows = [
        row | {"left_above_chance": 0.05 + 1e-3 * i, "right_above_chance": 0.18 - 1e-3 * i}
        for i, row in enumerate(overlap_rows((0.115, 0.116, 0.114)))
    ]
    one = judged(overlap=rows)["4a"]
    assert (one.outcome, one.disagree) == ("contradicted", ["left_above_margin"])
    written = text.as_markdown([one])
    assert "- overlap above chance, left, minus 0.1: -0.049" in written
    assert "**Measures disagree**: overlap above chance, left, minus 0.1." in written


def test_the_sides_may_disagree_and_each_has_its_verdict():
    got = judged(nearness=nearness_rows(left=(0.35, 0.2), right=(0.25, 0.35)))
    assert (got["4b"].outcome, got["4c"].outcome) == ("contradicted", "supported")
    # Of the side that is contradicted, the distance of the spectra says what was claimed.
    assert (got["4b"].disagree, got["4c"].disagree) == (["log_distance"], [])
