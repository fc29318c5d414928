"""Evidence on claims 5, 7, 8 and 9, from made-up tables."""

import numpy as np
import pytest
import scipy.stats
from claim_tables import SEEDS, cut_rows, grid_rows, judged, outcomes, wild_rows

from multilora.reproduction.claims import text


@pytest.mark.parametrize(
    ("share", "outcome"), [(0.0254, "supported"), (0.0256, "contradicted"), (0.02, "contradicted")]
)
def test_the_count_is_exact(share, outcome):
    rows = [
        {"model": "llama-7b", "n": 3, "r": 22, "share": share},
        {"model": "llama-7b", "n": 1, "r": 67, "share": 0.025},  # of another n: does not count
    ]
    one = judged(llama_budget=rows)["5"]
    assert one.outcome == outcome
    assert "(exact)" in text.as_markdown([one])
    assert "r = 22" in one.evidence.notes[0]


def test_one_model_that_comes_to_the_share_is_enough():
    rows = [
        {"model": model, "n": 3, "r": r, "share": share}
        for model, r, share in (("a", 1, 0.01), ("b", 2, 0.02502), ("c", 3, 0.04))
    ]
    one = judged(llama_budget=rows)["5"]
    assert one.outcome == "supported"
    assert one.evidence.differences["share_distance"].mean == pytest.approx(0.00002 - 0.0005)


def test_a_claim_holds_over_the_grid_where_enough_signs_agree():
    assert outcomes(grid=grid_rows([True] * 6))["7"] == "supported"
    assert outcomes(grid=grid_rows([True] * 5))["7"] == "undecided"
    assert outcomes(grid=grid_rows([False] * 6))["7"] == "contradicted"


def test_the_interval_of_signs_is_the_binomials():
    got = judged(grid=grid_rows([True] * 7 + [False] * 2))["7"].evidence.differences["sign of 1"]
    want = scipy.stats.binomtest(7, 9).proportion_ci(0.95, "exact")
    assert (got.low, got.high) == pytest.approx((2 * want.low - 1, 2 * want.high - 1))
    assert (got.positive, got.negative) == (7, 2)


def test_runs_that_several_settings_share_count_once():
    """n is a setting of MultiLoRA alone: LoRA − full is the same at every n."""
    rows = grid_rows([True] * 6)
    first = {(r["seed"], r["method"]): r["top_share_1"] for r in rows if r["value"] == 0}
    for row in rows:
        if row["value"] in (1, 2, 3) and row["method"] != "multilora":
            row["top_share_1"] = first[row["seed"], row["method"]]
    evidence = judged(grid=rows)["7"].evidence
    assert len(evidence.differences["sign of 1"].values) == 3
    assert len(evidence.differences["sign of 3"].values) == 6
    assert len(evidence.supplements[0].cells) == 1 + 6


def test_what_the_grid_lacks_is_said():
    rows = grid_rows([True] * 6)
    for row in rows:
        for column in ("overlap_above_chance", "left_phi_k", "right_phi_k"):
            del row[column]
    one = judged(grid=rows)["7"]
    assert one.outcome == "undecided"
    assert "Claim 4a has no setting in grid.csv." in one.evidence.notes


def test_dominance_matters_where_few_directions_carry_the_score():
    assert outcomes(cuts=cut_rows((0.5, 0.3), (0.2, 0.4)))["8"] == "supported"
    assert outcomes(cuts=cut_rows((0.3, 0.5), (0.2, 0.4)))["8"] == "contradicted"
    assert outcomes(cuts=cut_rows((0.5, 0.3), (0.4, 0.405)))["8"] == "undecided"


def test_the_share_of_the_score_that_is_left_is_of_the_whole_update():
    """MultiLoRA is half as good at every cut, and uncut: relative to that they are alike."""
    rows = cut_rows((0.4, 0.4), (0.2, 0.2), ks=(0, 1, 2, 4))
    for row in rows:
        at = {0: 0.8, 1: 0.2, 2: 0.2, 4: 0.2}[row["k"]]
        row["score"] = (1 if row["method"] == "lora" else 0.5) * at
    got = judged(cuts=rows)["8"].evidence.differences
    assert got["remove of the whole"].mean == pytest.approx(0, abs=1e-15)
    assert got["remove"].mean == pytest.approx(-0.1)
    # Where one loses all but a quarter of it without its first direction, and the other half:
    for row in rows:
        if row["method"] == "multilora" and row["k"] > 0:
            row["score"] = 0.2
    got = judged(cuts=rows)["8"].evidence.differences
    assert got["remove of the whole"].mean == pytest.approx(0.5 - 0.25)


def test_the_area_is_a_mean_over_log_k():
    got = judged(cuts=cut_rows((0.5, 0.3), (0.2, 0.4)))["8"].evidence
    # Both curves rise by 0.01 a doubling: the areas differ as the curves do.
    assert got.differences["keep"].mean == pytest.approx(-0.2 - 1e-4 * np.mean(SEEDS))
    areas = {row[0]: row for row in got.supplements[0].cells}
    assert areas["multilora"][2].startswith(f"{0.3 + 0.01 * np.log2(8) / 2:.3f}")


def test_cuts_that_not_every_run_has_are_left_out_and_said():
    rows = [r for r in cut_rows((0.5, 0.3), (0.2, 0.4)) if (r["method"], r["k"]) != ("lora", 8)]
    one = judged(cuts=rows)["8"]
    assert "keep: k = 8 is missing for some runs and left out." in one.evidence.notes
    assert one.outcome == "supported"


def test_adapters_in_the_wild():
    one = judged(wild=wild_rows([0.6, 0.7, 0.8]))["9"]
    assert one.outcome == "supported"
    d = [0.41, 0.51, 0.61]
    got = one.evidence.differences["above_null"]
    want = scipy.stats.t.interval(0.95, 2, np.mean(d), scipy.stats.sem(d))
    assert (got.low, got.high) == pytest.approx(want)
    assert outcomes(wild=wild_rows([0.15, 0.16, 0.14]))["9"] == "contradicted"


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
