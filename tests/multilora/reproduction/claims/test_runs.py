"""Evidence on claims 1a, 3 and 6, from made-up tables."""

import numpy as np
import pytest
import scipy.stats
from claim_tables import (
    AS_CLAIMED,
    EVERYTHING,
    SEEDS,
    dynamics_rows,
    judged,
    methods_rows,
    outcomes,
    with_values,
)

from analysis.numerics.statistics import paired
from multilora.reproduction.claims import judge, runs, text
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

NUMBERS = ("1a", "3a", "3b", "6a", "6b")


def of_runs(values=AS_CLAIMED, **options):
    """methods.csv and dynamics.csv with the same values of the measures."""
    return {"methods": methods_rows(values, **options), "dynamics": dynamics_rows(values)}


def test_what_is_as_claimed_is_supported():
    got = outcomes(**of_runs(with_values(full__score=0.5)))
    assert {n: got[n] for n in NUMBERS} == dict.fromkeys(NUMBERS, "supported")
    assert {got[n] for n in ("1b", "2", "4a left", "4b", "5", "9")} == {"not measured"}


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        ("1a", {"lora__top_share_1": 0.05}),
        ("3a", {"multilora__top_share_1": 0.6}),
        ("3b", {"multilora__effective_rank_k": 11.0}),
        ("6a", {"lora__score": 0.8}),
        ("6b", {"full__score": 0.8}),
    ],
)
def test_the_other_way_round_is_contradicted(number, changes):
    assert outcomes(**of_runs(with_values(**changes)))[number] == "contradicted"


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        ("1a", {"lora__top_share_1": 0.16}),  # surely above, and by less than matters
        ("3a", {"multilora__top_share_1": 0.49}),
        ("3b", {"multilora__effective_rank_k": 12.5}),
        ("6a", {"lora__score": 0.695}),
        ("6b", {"full__score": 0.7}),
    ],
)
def test_too_little_is_undecided(number, changes):
    assert outcomes(**of_runs(with_values(**changes)))[number] == "undecided"


@pytest.mark.parametrize("number", NUMBERS)
def test_without_runs_of_one_method_a_claim_is_not_measured(number):
    rows = [row for row in methods_rows() if row["method"] != "lora"]
    if number == "6b":
        rows = [row for row in rows if row["method"] != "full"]
    one = judged(methods=rows)[number]
    assert one.outcome == "not measured"
    assert any(note.startswith("There is no run of ") for note in one.evidence.notes)


def test_dominance_that_capacity_explains_is_not_supported():
    """The raw share is far above that of full; beyond the null it is below."""
    values = with_values(lora__top_share_1=0.5)
    values["lora"]["top_share_1_above_null"] = 0.0
    values["full"]["top_share_1_above_null"] = 0.05
    one = judged(methods=methods_rows(values))["1a"]
    assert [str(verdict.outcome) for verdict in one.verdicts] == ["contradicted", "supported"]
    assert one.outcome == "contradicted"
    values["full"]["top_share_1_above_null"] = 0.0
    assert outcomes(methods=methods_rows(values))["1a"] == "undecided"


def test_the_interval_is_students_over_seeds():
    rows = methods_rows(noise=0.05)
    of = {m: {r["seed"]: r["top_share_1"] for r in rows if r["method"] == m} for m in AS_CLAIMED}
    d = [of["lora"][s] - of["full"][s] for s in SEEDS]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(d), scipy.stats.sem(d))
    got = judged(methods=rows)["1a"].evidence.differences["top_share_1"]
    assert (got.mean, got.low, got.high) == pytest.approx((np.mean(d), low, high))


def test_measures_that_disagree_are_said():
    rows = methods_rows(with_values(multilora__gini_k=0.8))
    one = judged(methods=rows, dynamics=dynamics_rows())["3b"]
    assert (one.outcome, one.disagree) == ("supported", ["gini_k"])
    written = text.as_markdown([one])
    assert "**Measures disagree**: Gini of s[:k]." in written
    assert "**the opposite of the claim**" in written


# At equal validation loss.


COLUMNS = ("top_share_1", "top_share_4", "effective_rank_k", "gini_k")


def curve(method, losses, seed=0):
    """Rows of dynamics.csv of one run, with other values of each measure at each step."""
    return [
        {"method": method, "seed": seed, "step": 10 * i, "k": 24, "validation_loss": loss}
        | {name: 0.1 * j + 0.01 * (i + 1) ** 2 for j, name in enumerate(COLUMNS)}
        for i, loss in enumerate(losses)
    ]


def test_at_equal_loss_a_run_is_interpolated_between_its_steps():
    """LoRA ends at 0.7; MultiLoRA passes it between two steps."""
    lora, multilora = curve("lora", (2.0, 1.0, 0.7)), curve("multilora", (1.8, 0.9, 0.6, 0.4))
    rows, notes = runs.at_equal_loss([*multilora[::-1], *lora])  # in any order of the steps
    at = {row["method"]: row for row in rows}
    assert notes == ["Equal validation loss: 0.700 nats."]
    for name in COLUMNS:
        assert at["lora"][name] == lora[-1][name]
        losses, values = ([row[c] for row in multilora[::-1]] for c in ("validation_loss", name))
        assert at["multilora"][name] == pytest.approx(np.interp(0.7, losses, values), rel=1e-12)
    assert {(row["seed"], row["k"]) for row in rows} == {(0, 24)}


def test_a_loss_that_rises_again_counts_where_it_is_first_reached():
    rows, _ = runs.at_equal_loss(
        [*curve("lora", (3.0, 1.3)), *curve("multilora", (2.0, 1.2, 1.5, 0.9))]
    )
    at = {row["method"]: row for row in rows}
    share = (2.0 - 1.3) / (2.0 - 1.2)
    assert at["multilora"]["top_share_1"] == pytest.approx(0.01 + share * 0.03)


def test_a_loss_that_is_reached_at_the_first_step_is_not_extrapolated():
    """MultiLoRA never comes down to where LoRA starts."""
    lora, multilora = curve("lora", (0.5, 0.4)), curve("multilora", (2.0, 1.5))
    rows, _ = runs.at_equal_loss([*lora, *multilora])
    at = {row["method"]: row for row in rows}
    assert at["lora"]["top_share_1"] == lora[0]["top_share_1"]
    assert at["multilora"]["top_share_1"] == multilora[-1]["top_share_1"]


def test_a_seed_without_one_of_the_methods_has_no_equal_loss():
    both = [*curve("lora", (1.0, 0.5)), *curve("multilora", (1.0, 0.5)), *curve("full", (0.1,))]
    alone = curve("lora", (1.0, 0.5), seed=1)
    rows, notes = runs.at_equal_loss([*both, *alone])
    assert [(row["method"], row["seed"]) for row in rows] == [("lora", 0), ("multilora", 0)]
    assert notes == ["Equal validation loss: 0.500 nats."]
    assert runs.at_equal_loss(alone) == ([], [])


def test_tables_without_a_loss_leave_claim_3_undecided():
    without = [
        {name: value for name, value in row.items() if name != "validation_loss"}
        for row in dynamics_rows()
    ]
    for rows in (without, []):
        one = judged(methods=methods_rows(), dynamics=rows)["3a"]
        assert [str(v.outcome) for v in one.verdicts] == ["supported", "not measured"]
        assert one.outcome == "undecided"
        assert "dynamics.csv does not give the validation loss" in " ".join(one.evidence.notes)


@pytest.mark.parametrize(("number", "measure"), [("3a", "top_share_1"), ("3b", "effective_rank_k")])
def test_equal_steps_and_equal_loss_are_judged_apart(number, measure):
    """At equal loss the measure says the opposite: the claim does not hold."""
    swapped = AS_CLAIMED | {"lora": AS_CLAIMED["multilora"], "multilora": AS_CLAIMED["lora"]}
    one = judged(methods=methods_rows(), dynamics=dynamics_rows(swapped))[number]
    assert [str(v.outcome) for v in one.verdicts] == ["supported", "contradicted"]
    assert one.outcome == "contradicted"
    of_seed = {
        (row["method"], row["seed"]): row[measure]
        for row in dynamics_rows(swapped)
        if row["step"] == 3
    }
    want = np.mean([of_seed["multilora", s] - of_seed["lora", s] for s in SEEDS])
    got = one.evidence.differences[f"{measure} at equal validation loss"]
    assert got.mean == pytest.approx(want)


# Scores.


@pytest.mark.parametrize(("spread", "half"), [(0.01, 0.01), (0.03, 0.01), (0.2, 0.05)])
def test_the_seeds_that_an_interval_needs_are_those_of_student(spread, half):
    values = spread * np.array([-1.0, 0.0, 1.0])  # standard deviation `spread`
    n = runs.seeds_needed(paired(dict(enumerate(values)), dict.fromkeys(range(3), 0.0)), half)

    def half_width(n):
        return scipy.stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n)

    assert half_width(n) <= half < half_width(n - 1)


def test_the_seeds_that_are_needed_have_limits():
    assert runs.seeds_needed(paired({0: 1.0, 1: 1.0}, {0: 0.5, 1: 0.5}), 0.01) == 2
    assert runs.seeds_needed(paired({0: 1.0}, {0: 0.5}), 0.01) is None
    assert runs.seeds_needed(paired({0: 1e4, 1: -1e4}, {0: 0.0, 1: 0.0}), 1.0) is None


@pytest.mark.parametrize("number", ["6a", "6b"])
def test_the_seeds_that_a_point_would_need_are_said(number):
    evidence = judged(methods=methods_rows(noise=0.05))[number].evidence
    n = runs.seeds_needed(evidence.differences["score"], 0.01)
    assert n > 5
    assert f"an interval of ±1 point would need {n} seeds." in evidence.notes[0]


# Tables that stand beside.


def test_variants_stand_beside_claim_3b_and_decide_nothing():
    values = AS_CLAIMED | {
        "multilora n=1": AS_CLAIMED["lora"],
        "multilora n=1 zero": AS_CLAIMED["lora"],
        "multilora zero": AS_CLAIMED["multilora"],
        "lora r=26": AS_CLAIMED["lora"],
    }
    one = judged(methods=methods_rows(values), dynamics=dynamics_rows())["3b"]
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
    against_lora = judged(methods=rows)["3b"].evidence.supplements[0]
    cells = {row[0]: row for row in against_lora.cells}
    assert cells["expert − lora"][3] == "–"
    assert cells["expert − lora"][4] != "–"


def test_concentration_stands_beside_claim_1a():
    (beside,) = judged(methods=methods_rows(noise=0))["1a"].evidence.supplements
    by_method = {row[0]: row[1:] for row in beside.cells}
    assert list(by_method) == ["", *AS_CLAIMED]
    assert by_method["lora"][:4] == ["5", "1,000", "0.500 ±0.000", "0.100 ±0.000"]
    assert "first 24 values" in beside.title


def test_scores_stand_beside_claim_6b():
    scores, tasks = judged(methods=methods_rows(noise=0))["6b"].evidence.supplements
    assert scores.cells[0] == tasks.cells[0] == ["", *AS_CLAIMED]
    assert scores.cells[-1] == ["mean", "0.600 ±0.000", "0.600 ±0.000", "0.700 ±0.000"]
    assert [row[0] for row in tasks.cells[1:]] == ["sort"]
    assert judged(methods=methods_rows())["6a"].evidence.supplements == ()


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
    for number in ("3b", "6b"):
        (note,) = (
            n for n in judged(methods=rows, sweep=sweep)[number].evidence.notes if "rates" in n
        )
        assert note.startswith("Learning rates: full 0.002; lora 0.003; multilora 0.001. ")
        assert "Not chosen by a sweep of the same method: full." in note
        assert note.endswith("a better one may lie outside it: multilora.")
    (note,) = (n for n in judged(methods=rows)["6b"].evidence.notes if "rates" in n)
    assert note.endswith("Not chosen by a sweep of the same method: full, lora, multilora.")
    assert judged(methods=rows, sweep=[*sweep[:3], sweep[5]])["3b"].evidence.supplements[
        -1
    ].cells == [
        ["", "0.001", "0.003", "0.006"],
        ["lora", "(15.0, 0.01)", "15.0, 0.03", "(15.0, 0.06)"],
        ["multilora", "–", "–", "(–, 0.06)"],
    ]


def test_runs_of_everything_support_what_is_claimed_of_runs():
    got = outcomes(**EVERYTHING)
    assert {got[number] for number in NUMBERS} == {"supported"}


def test_by_loss_the_lower_one_is_better():
    """MultiLoRA has the lower loss and the lower score: the loss decides, the score disagrees."""
    values = with_values(lora__nll=1.5, multilora__nll=1.4, full__nll=1.4, multilora__score=0.5)
    rows = methods_rows(values)
    for row in rows:
        row |= {f"nll_{family}": row["nll"] for family in FAMILIES} | {"nll_validation": 1.0}
        row |= {"score_validation": row["score"], "task_nll_sort": row["nll"]}
    record = {"arguments": {"judged_by": "nll"}}
    judged_by_loss = {
        one.statement.number: one for one in judge.judge(Tables({"methods": rows}, record))
    }
    lora, full = judged_by_loss["6a"], judged_by_loss["6b"]
    assert (lora.outcome, full.outcome) == ("supported", "undecided")
    assert lora.evidence.differences["nll"].mean == pytest.approx(-0.1, abs=0.01)
    assert lora.disagree == ["score"]
    assert "an interval of ±0.01 nats would need" in " ".join(lora.evidence.notes)
    titles = [beside.title for beside in full.evidence.supplements]
    assert titles == [
        "Scores, means over seeds",
        "Loss per token of answers, nats, means over seeds",
        "Scores by task",
        "Loss by task",
    ]
    assert [cells[0] for cells in full.evidence.supplements[1].cells[1:]] == [
        "validation", *FAMILIES, "mean",
    ]  # fmt: skip
    assert judged(methods=rows)["6a"].outcome == "contradicted"
