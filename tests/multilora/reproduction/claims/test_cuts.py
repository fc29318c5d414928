"""Evidence on claims 1b, 2 and 8, from made-up tables."""

import numpy as np
import pytest
import scipy.stats
from claim_tables import BASE, KEEP, REMOVE, SEEDS, WHOLE, cut_rows, judged, methods_rows, outcomes

from multilora.reproduction.claims import judge
from multilora.reproduction.tables import Tables

NUMBERS = ("1b", "2", "8a", "8b")


def test_what_is_as_claimed_is_supported():
    got = outcomes(cuts=cut_rows())
    assert {got[number] for number in NUMBERS} == {"supported"}


def test_without_cuts_nothing_is_measured():
    for number in NUMBERS:
        one = judged()[number]
        assert one.outcome == "not measured"
        assert one.evidence.notes == ["There is no cuts.csv."]
    without_lora = [row for row in cut_rows() if row["method"] != "lora"]
    got = outcomes(cuts=without_lora)
    assert [number for number in NUMBERS if got[number] != "not measured"] == ["2"]
    assert got["2"] == "supported"


@pytest.mark.parametrize(
    ("number", "keep", "remove", "outcome"),
    [
        ("1b", {"lora": 0.2}, {}, "contradicted"),
        ("1b", {"lora": 0.35}, {}, "undecided"),
        ("2", {}, {"full": -0.2}, "contradicted"),  # worse than the base without its top 24
        ("2", {}, {"full": 0.01}, "undecided"),  # half a point above the base
        ("8a", {"multilora": 0.9}, {}, "contradicted"),
        ("8a", {"multilora": 0.78}, {}, "undecided"),
        ("8a", {}, {"multilora": 0.1}, "contradicted"),
        ("8a", {}, {"multilora": 0.22}, "undecided"),
        ("8b", {"lora": 0.1}, {}, "contradicted"),
        ("8b", {"lora": 0.32}, {}, "undecided"),
        ("8b", {}, {"lora": 0.7}, "contradicted"),
        ("8b", {}, {"lora": 0.48}, "undecided"),
    ],
)
def test_the_other_way_round_and_too_little(number, keep, remove, outcome):
    """Every claim about cuts of other gains than as claimed; one of two parts is enough."""
    rows = cut_rows(keep=KEEP | keep, remove=REMOVE | remove)
    for row in rows:  # an interval needs some variation
        row["score"] += 1e-5 * (-1) ** row["seed"] * (row["k"] > 0)
    assert outcomes(cuts=rows)[number] == outcome


def test_the_share_that_is_carried_is_of_the_gain_over_the_base():
    """Scores and the base's scores are other ones in every run; the shares are not."""
    rows = cut_rows()
    for row in rows:
        row["score"] = 0.1 * row["seed"] + 0.3 * row["score"] + 0.05 * (row["method"] == "full")
    d = [KEEP["lora"] + 1e-4 * seed - KEEP["full"] for seed in SEEDS]
    got = judged(cuts=rows)["1b"].evidence.differences["carried"]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(d), scipy.stats.sem(d))
    assert got.values == pytest.approx(d)
    assert (got.low, got.high) == pytest.approx((low, high))


def test_full_fine_tuning_without_its_top_directions_is_compared_with_the_base():
    rows = cut_rows()
    got = judged(cuts=rows)["2"].evidence.differences["left"]
    assert got.values == pytest.approx([REMOVE["full"] * (WHOLE - BASE)] * len(SEEDS))
    for row in rows:  # a better base leaves less
        if (row["method"], row["kind"], row["k"]) == ("full", "keep", 0):
            row["score"] += 0.05
    got = judged(cuts=rows)["2"].evidence.differences["left"]
    assert got.mean == pytest.approx(REMOVE["full"] * (WHOLE - BASE) - 0.05)


def test_energy_and_the_share_that_is_carried_stand_beside_claim_2():
    one = judged(cuts=cut_rows(), methods=methods_rows())["2"]
    assert one.evidence.notes[0] == (
        "The top 8 directions of full carry 0.30 ±0.00 of its gain; 90 % of its energy lies in"
        " 20.0 ±0.0 directions."
    )


def test_what_rounding_would_leave_stands_beside_claim_2():
    row = {"effective_rank": 90.0, "effective_rank_true": 70.0, "above_floor_share": 0.14}
    rows = [row | {"ratio": 0.003}, row | {"ratio": 0.003, "effective_rank": 92.0}]
    (beside,) = judged(cuts=cut_rows(), rounding_floor=rows)["2"].evidence.supplements
    assert beside.cells[1:] == [["0.003", "91 ±1", "70 ±0", "0.14 ±0"]]


def test_the_mean_gain_is_over_log_k():
    """A gain that rises with log₂ k has its mean in the middle; k are not evenly spaced."""
    rows = cut_rows(ks=(1, 2, 8, 32), seeds=(0, 1))
    for row in rows:
        if row["kind"] == "keep" and row["k"] > 0:
            gain = (0.1 if row["method"] == "multilora" else 0.15) * np.log2(2 * row["k"])
            row["score"] = BASE + gain * (WHOLE - BASE)
    one = judged(cuts=rows)["8a"]
    x, y = np.log2([1, 2, 8, 32]), 0.05 * np.log2([2, 4, 16, 64])
    want = np.trapezoid(y, x) / 5
    assert want == pytest.approx(0.05 * 3.5)
    assert one.evidence.differences["keep"].mean == pytest.approx(-want)
    by_method = {row[0]: row for row in one.evidence.supplements[0].cells}
    assert by_method["multilora"][1:3] == ["2", "0.350 ±0.000"]


def test_only_cuts_that_every_run_has_are_averaged():
    rows = [
        row
        for row in cut_rows()
        if (row["method"], row["seed"], row["k"]) not in {("lora", 0, 4), ("multilora", 1, 24)}
    ]
    got = judged(cuts=rows)
    assert "k = 1, 2, 8, 16." in got["8a"].evidence.notes[0]
    assert "k = 1, 2, 8, 16, 24." in got["8b"].evidence.notes[0]
    assert got["8a"].outcome == "supported"


def test_one_cut_has_no_mean():
    got = judged(cuts=cut_rows(ks=(8,)))
    assert got["8a"].outcome == "not measured"
    assert got["1b"].outcome == "supported"


def test_a_run_that_gains_nothing_has_no_share():
    rows = cut_rows()
    for row in rows:
        if (row["method"], row["seed"]) == ("lora", 2):
            row["score"] = BASE
    one = judged(cuts=rows)["1b"]
    assert len(one.evidence.differences["carried"].values) == 4
    assert "Seeds 2 were not cut for both." in one.evidence.notes
    assert len(judged(cuts=rows)["8b"].evidence.differences["keep"].values) == 4


def test_the_gain_at_every_k_stands_beside_claim_1b():
    (beside,) = judged(cuts=cut_rows())["1b"].evidence.supplements
    assert beside.cells[0] == ["", *(f"k = {k}" for k in (1, 2, 4, 8, 16, 24))]
    assert beside.cells[1] == ["full", *["0.30 ±0.00"] * 6]


def by_loss(rows):
    """The same table with losses: what has the score x has the loss 3 − x."""
    return [row | {"nll": 3 - row["score"], "score": 0.0} for row in rows]


def test_the_gain_can_be_one_of_loss():
    """1b and 8 are the same as by scores; claim 2 needs a twentieth of a nat instead of a point."""
    record = {"arguments": {"judged_by": "nll"}}
    for keep, remove in ((KEEP, REMOVE), (KEEP | {"lora": 0.2}, REMOVE | {"full": 0.05})):
        rows = cut_rows(keep=keep, remove=remove)
        want = {one.statement.number: one for one in judge.judge(Tables({"cuts": rows}))}
        got = judge.judge(Tables({"cuts": by_loss(rows)}, record))
        for one in got:
            if one.statement.number in ("1b", "8a", "8b"):
                same = want[one.statement.number].evidence.differences
                for name, difference in one.evidence.differences.items():
                    assert difference.values == pytest.approx(same[name].values)
                assert one.outcome == want[one.statement.number].outcome
        (many,) = [one for one in got if one.statement.number == "2"]
        left = remove["full"] * (WHOLE - BASE)
        assert many.evidence.differences["left"].values == pytest.approx([left] * len(SEEDS))
        assert many.statement.parts[0].claim.delta == 0.05
        assert "loss of the base" in many.statement.parts[0].what
        assert many.outcome == ("supported" if left > 0.05 else "undecided")
