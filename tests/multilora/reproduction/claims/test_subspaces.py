"""Evidence on claim 4, from made-up tables."""

import numpy as np
import pytest
from claim_tables import SEEDS, judged, nearness_rows, outcomes, overlap_rows

SIDES = ("left", "right")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("phi", "outcome"),
    [
        ((0.2, 0.4), "supported"),
        ((0.4, 0.2), "contradicted"),
        ((0.38, 0.4), "undecided"),  # surely less, and by less than a third of a direction
    ],
)
def test_modules_depend_less_on_one_another_than_with_B_at_zero(side, phi, outcome):
    of = {"left": (0.3, 0.3), "right": (0.3, 0.3)} | {side: phi}
    got = outcomes(overlap=overlap_rows(**of))
    assert got[f"4a {side}"] == outcome
    (other,) = {"left", "right"} - {side}
    assert got[f"4a {other}"] == "undecided"


def test_overlap_is_compared_run_by_run():
    rows = overlap_rows(left=(0.2, 0.4), right=(0.3, 0.5))
    at = {(row["method"], row["seed"]): row for row in rows}
    got = judged(overlap=rows)["4a left"].evidence.differences
    for measure in ("left_phi_k", "left_above_null"):
        want = [
            at["multilora", seed][measure] - at["multilora zero", seed][measure] for seed in SEEDS
        ]
        assert got[measure].values == pytest.approx(want)
    assert got.keys() == {"left_phi_k", "left_above_null"}


@pytest.mark.parametrize("missing", ["multilora", "multilora zero", "overlap.csv"])
def test_without_both_starts_independence_is_not_measured(missing):
    rows = [
        row
        for row in overlap_rows((0.2, 0.4), (0.2, 0.4))
        if row["method"] != missing and missing != "overlap.csv"
    ]
    one = judged(overlap=rows)["4a right"]
    assert one.outcome == "not measured"
    assert missing in one.evidence.notes[0]


def test_the_overlap_of_modules_of_different_seeds_stands_beside():
    rows = overlap_rows(left=(0.2, 0.4), right=(0.3, 0.5))
    (beside,) = judged(overlap=rows)["4a left"].evidence.supplements
    assert judged(overlap=rows)["4a right"].evidence.supplements == []
    by_method = {row[0]: dict(zip(beside.cells[0], row, strict=True)) for row in beside.cells[1:]}
    assert list(by_method) == ["multilora", "multilora zero"]
    row = by_method["multilora zero"]
    assert (row["n"], row["r"], row["left, different seeds"]) == ("3", "8", "0.100 ±0.000")
    assert row["right"].startswith(f"{np.mean([r['right_phi_k'] for r in rows[5:]]):.3f} ±")


def test_the_sides_may_disagree_and_each_has_its_verdict():
    got = judged(nearness=nearness_rows(left=(0.35, 0.2), right=(0.25, 0.35)))
    assert (got["4b"].outcome, got["4c"].outcome) == ("contradicted", "supported")
    assert (got["4b"].disagree, got["4c"].disagree) == ([], [])


@pytest.mark.parametrize(
    ("number", "changes", "outcome"),
    [
        ("4b", {"left": (0.2, 0.3)}, "supported"),
        ("4b", {"left": (0.2, 0.22)}, "undecided"),
        ("4c", {"right": (0.3, 0.2)}, "contradicted"),
        ("4d", {"shape": (0.9, 0.6)}, "supported"),
        ("4d", {"shape": (0.9, 0.85)}, "undecided"),
        ("4d", {"shape": (0.6, 0.9)}, "contradicted"),
    ],
)
def test_nearness_to_full_fine_tuning(number, changes, outcome):
    of = {"left": (0.2, 0.2), "right": (0.2, 0.2)} | changes
    assert outcomes(nearness=nearness_rows(**of))[number] == outcome


def test_only_nearness_to_full_counts():
    rows = nearness_rows(left=(0.2, 0.3), right=(0.2, 0.3))
    others = [
        row | {"reference": row["method"], "left_phi_k": 0.9, "log_distance": 0.1} for row in rows
    ]
    alone, both = (judged(nearness=of)["4b"] for of in (rows, [*others, *rows]))
    assert both.evidence.differences == alone.evidence.differences
    (beside,) = both.evidence.supplements
    assert [row[0] for row in beside.cells[1:]] == ["lora", "multilora"]
    assert [row[3] for row in beside.cells[1:]] == ["0.900 ±0.000"] * 2
    assert beside.cells[1][4] == "0.150"


def test_without_nearness_to_full_nothing_is_measured():
    rows = [row | {"reference": "lora"} for row in nearness_rows((0.2, 0.3), (0.2, 0.3))]
    for of in ([], rows):
        got = outcomes(nearness=of)
        assert {got[number] for number in ("4b", "4c", "4d")} == {"not measured"}
