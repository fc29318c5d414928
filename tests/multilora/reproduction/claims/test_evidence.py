"""Differences between runs: which seeds and measures are compared, and what the notes say."""

import pytest
from claim_tables import judged, methods_rows, nearness_rows

from analysis.numerics.statistics import Difference
from multilora.reproduction.claims import evidence, judge


def test_a_missing_seed_is_said_and_the_others_are_paired():
    rows = [row for row in methods_rows() if (row["method"], row["seed"]) != ("lora", 3)]
    one = judged(methods=rows)["1a"]
    assert len(one.evidence.differences["top_share_1"].values) == 4
    assert one.outcome == "supported"
    (note,) = (note for note in one.evidence.notes if "seeds" in note)
    assert "seeds 3 are missing for one of the two; paired on seeds 0, 1, 2, 4" in note
    assert "Train the missing runs" in note


def test_one_seed_in_common_decides_nothing():
    rows = [r for r in methods_rows() if r["method"] != "lora" or r["seed"] == 2]
    assert judged(methods=rows)["1a"].outcome == "undecided"


def test_no_seed_in_common_is_not_measured():
    rows = [r for r in methods_rows() if (r["method"] == "lora") == (r["seed"] > 2)]
    one = judged(methods=rows)["1a"]
    assert one.outcome == "not measured"
    assert "paired on seeds none" in one.evidence.notes[0]


def test_a_run_that_stands_twice_is_an_error():
    with pytest.raises(ValueError, match="two rows of lora, seed 0"):
        judged(methods=[*methods_rows(), *methods_rows(seeds=(0,))])


def test_phi_at_other_k_is_not_compared():
    rows = nearness_rows((0.2, 0.3), (0.2, 0.3))
    for row in rows:
        if row["method"] == "multilora":
            row["k"] = 8
    one = judged(nearness=rows)["4b"]
    assert one.outcome == "not measured"
    assert "k = 24, 8" in " ".join(one.evidence.notes)


ROWS = [
    {"method": method, "seed": seed, "k": 24, "gini_k": value, "setting": setting}
    for method, setting, values in (
        ("a", "x", (1.0, 2.0)),
        ("b", "x", (0.5, 1.0)),
        ("a", "y", (9.0,)),
    )
    for seed, value in enumerate(values)
]


def test_rows_are_chosen_by_method_and_by_the_values_of_columns():
    chosen = evidence.by_seed(ROWS, "a", setting="x")
    assert {seed: row["gini_k"] for seed, row in chosen.items()} == {0: 1.0, 1: 2.0}
    assert evidence.by_seed(ROWS, "c") == {}


def test_differences_are_a_minus_b():
    differences, notes = evidence.between(ROWS, "a", "b", ["gini_k", "absent"], setting="x")
    assert differences.keys() == {"gini_k"}
    assert differences["gini_k"].values == (0.5, 1.0)
    assert notes == []


def test_a_missing_method_is_named():
    assert evidence.between(ROWS, "c", "d", ["gini_k"]) == ({}, ["There is no run of c and d."])


def test_a_measure_that_is_undefined_for_every_run_is_left_out():
    rows = [row | {"gini_k": None} for row in ROWS]
    assert evidence.between(rows, "a", "b", ["gini_k"], setting="x") == ({}, [])


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.2, 0), (0.0, 0.2, 0)]
)
def test_an_interval_agrees_if_it_lies_wholly_on_one_side(low, high, side):
    difference = Difference((0.0,), mean=0.0, low=low, high=high, positive=0, negative=0)
    assert evidence.agreement(difference, +1) == side
    assert evidence.agreement(difference, -1) == -side


def test_primary_measures_come_first_and_each_once():
    by_number = {one.number: one for one in judge.CLAIMS["score"]}
    parts = by_number["4c"].parts + by_number["1a"].parts
    primary = ["right_phi_k", "top_share_1_above_null", "top_share_1"]
    shares = ["top_share_4_above_null", "top_share_16_above_null"]
    first_k = ["effective_rank_k_of_null", "gini_k_above_null"]
    assert evidence.measures(parts) == [*primary, "right_above_chance", *shares, *first_k]


def test_methods_come_in_the_order_of_the_rows():
    assert evidence.methods(ROWS) == ["a", "b"]
    assert evidence.methods([]) == []
