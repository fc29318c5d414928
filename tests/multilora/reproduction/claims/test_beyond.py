"""Evidence on claims 5, 7 and 9, from made-up tables."""

import numpy as np
import pytest
import scipy.stats
from claim_tables import (
    AS_CLAIMED,
    EVERYTHING,
    budget_rows,
    dynamics_rows,
    grid_rows,
    judged,
    methods_rows,
    nearness_rows,
    outcomes,
    wild_rows,
)

from multilora.reproduction.claims import beyond, text


def test_the_budget_is_a_count_without_a_verdict():
    rows = [*budget_rows(), *budget_rows("llama-13b", r=27, share=0.0249)]
    rows.append({"model": "llama-7b", "n": 1, "r": 67, "share": 0.025})  # of another n
    one = judged(llama_budget=rows)["5"]
    assert (one.outcome, one.verdicts, one.evidence.differences) == (None, (), {})
    assert one.evidence.result == "n = 3: llama-7b r = 22 (2.51 %); llama-13b r = 27 (2.49 %)"
    assert [row[2] for row in one.evidence.supplements[0].cells[1:]] == ["22", "27"]
    written = text.as_markdown([one])
    assert "| 5 | MultiLoRA needs only 2.5 % of additional parameters | n = 3: llama-7b" in written
    assert "| no verdict |" in written


def test_without_three_modules_there_is_no_count():
    rows = [row | {"n": 1} for row in budget_rows()]
    assert outcomes(llama_budget=rows)["5"] == "not measured"


def at_the_usual_setting(grid):
    """Tables that support every claim at the usual setting, with a grid."""
    return EVERYTHING | {"grid": grid}


def counts(**rows):
    """Claim -> (settings in which it holds, settings)."""
    result = judged(**rows)["7"].evidence.result
    parts = [part.split(" holds in ") for part in result.split("; ")]
    return {number: tuple(map(int, of.split(" of "))) for number, of in parts}


def test_a_claim_holds_in_a_setting_if_its_mean_lies_beyond_the_bound():
    got = counts(**at_the_usual_setting(grid_rows([True] * 4 + [False] * 2)))
    numbers = {number for number, *_ in beyond.OVER_GRID}
    assert got.keys() == numbers == {"1a", "3a", "3b", "4b", "4c", "4d", "6a", "6b"}
    assert (got["1a"], got["3a"], got["3b"]) == ((4, 6), (4, 6), (4, 6))
    assert (got["4b"], got["4d"], got["6a"]) == ((6, 6), (6, 6), (6, 6))


def test_a_difference_within_the_bound_does_not_hold():
    rows = grid_rows([True] * 3)
    for row in rows:
        if row["method"] == "multilora" and row["value"] == 1:
            lora = next(
                r for r in rows if (r["method"], r["value"], r["seed"]) == ("lora", 1, row["seed"])
            )
            row["left_phi_k"] = lora["left_phi_k"] + 0.03
            row["log_distance"] = lora["log_distance"] - 0.05
    got = counts(**at_the_usual_setting(rows))
    assert (got["4b"], got["4c"], got["4d"]) == ((2, 3), (3, 3), (2, 3))


def test_only_claims_that_hold_at_the_usual_setting_are_counted():
    of = {
        "methods": methods_rows(),  # of the scores, MultiLoRA − full alone is supported
        "dynamics": dynamics_rows(),
        "nearness": nearness_rows(left=(0.35, 0.2), right=(0.25, 0.35)),
        "grid": grid_rows([True] * 6),
    }
    assert outcomes(**of)["4b"] == "contradicted"
    got = counts(**of)
    assert "4b" not in got
    assert {"1a", "3a", "3b", "4c", "4d"} <= got.keys()
    one = judged(grid=of["grid"])["7"]
    assert (one.outcome, one.verdicts) == (None, ())
    assert one.evidence.result == "no claim holds at the usual setting"


def test_runs_that_several_settings_share_count_once():
    """n is a setting of MultiLoRA alone: LoRA − full is the same at every n."""
    rows = grid_rows([True] * 6)
    shared = ("top_share_1", "top_share_1_above_null")
    first = {(r["seed"], r["method"]): r for r in rows if r["value"] == 0}
    for row in rows:
        if row["value"] in (1, 2, 3) and row["method"] != "multilora":
            row |= {name: first[row["seed"], row["method"]][name] for name in shared}
    got = counts(**at_the_usual_setting(rows))
    assert got["1a"] == (3, 3)
    assert got["3a"] == got["3b"] == (6, 6)
    (beside,) = judged(**at_the_usual_setting(rows))["7"].evidence.supplements
    assert len(beside.cells) == 1 + 6


def test_what_the_grid_lacks_has_a_dash():
    rows = grid_rows([True] * 2)
    for row in rows:
        del row["left_phi_k"]
    of = at_the_usual_setting(rows)
    assert "4b" not in counts(**of)
    (beside,) = judged(**of)["7"].evidence.supplements
    (column,) = (i for i, name in enumerate(beside.cells[0]) if name.startswith("4b: "))
    assert [row[column] for row in beside.cells[1:]] == ["–", "–"]
    assert outcomes(methods=methods_rows(AS_CLAIMED))["7"] == "not measured"


def test_adapters_in_the_wild():
    one = judged(wild=wild_rows([0.6, 0.7, 0.8]))["9"]
    assert one.outcome == "supported"
    d = [0.41, 0.51, 0.61]
    got = one.evidence.differences["above_null"]
    want = scipy.stats.t.interval(0.95, 2, np.mean(d), scipy.stats.sem(d))
    assert (got.low, got.high) == pytest.approx(want)
    assert outcomes(wild=wild_rows([0.15, 0.16, 0.14]))["9"] == "contradicted"
    assert outcomes(wild=wild_rows([0.25, 0.26, 0.24]))["9"] == "undecided"
    assert outcomes(wild=[])["9"] == "not measured"


def test_adapters_of_one_author_for_one_task_are_one_unit():
    rows = wild_rows([0.6, 0.7, 0.8])
    again = [row | {"adapter": f"a0/rank{i}"} for i in range(3) for row in wild_rows([0.6])]
    one = judged(wild=[*rows, *again])["9"]
    assert len(one.evidence.differences["above_null"].values) == 3


def test_an_adapter_of_rank_1_says_nothing():
    one_value = [row | {"adapter": "r1", "null_top_share_1": 1.0} for row in wild_rows([1.0])]
    rows = wild_rows([0.6, 0.7, 0.8])
    one = judged(wild=[*rows, *one_value])["9"]
    assert one.evidence.differences == judged(wild=rows)["9"].evidence.differences
    assert any("rank 1" in note and "r1" in note for note in one.evidence.notes)
    assert outcomes(wild=one_value)["9"] == "not measured"


def test_of_several_steps_the_last_counts():
    rows = [*wild_rows([0.2, 0.2, 0.2], step=100), *wild_rows([0.6, 0.7, 0.8], step=200)]
    assert judged(wild=rows)["9"].evidence.differences["above_null"].mean == pytest.approx(0.51)
