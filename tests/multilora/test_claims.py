"""Tables → verdicts on the claims, from made-up tables; what is refused, and what is said."""

import json

import numpy as np
import pytest
import scipy.stats

from analysis import store
from multilora import claims
from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

SEEDS = (0, 1, 2, 3, 4)
# What each method measures: as the paper says it.
AS_CLAIMED = {
    "full": {"top_share_1": 0.1, "effective_rank_k": 22.0, "gini_k": 0.2, "score": 0.6},
    "lora": {"top_share_1": 0.5, "effective_rank_k": 12.0, "gini_k": 0.5, "score": 0.6},
    "multilora": {"top_share_1": 0.2, "effective_rank_k": 18.0, "gini_k": 0.3, "score": 0.7},
}


def methods_rows(values=AS_CLAIMED, seeds=SEEDS, noise=1e-3, draw=0):
    """methods.csv, with a little noise over seeds."""
    rng = np.random.default_rng(draw)
    rows = []
    for method, of in values.items():
        for seed in seeds:
            row = {name: value + noise * rng.standard_normal() for name, value in of.items()}
            row |= {"method": method, "seed": seed, "k": 24, "parameters": 1000}
            row["top_share_1_above_null"] = row["top_share_1"] - 0.05
            row |= {"top_share_4": min(1, 2 * row["top_share_1"]), "above_floor_share": 0.99}
            row["top_share_16"] = min(1, 2.5 * row["top_share_1"])
            row |= {f"score_{family}": row["score"] for family in FAMILIES}
            row |= {"learning_rate": 3e-3, "task_sort": row["score"], "held_k": 1.0}
            rows.append(row | {"null_top_share_1": 0.05, "democracy": 0.7})
    return rows


def nearness_rows(left, right, k=24, seeds=SEEDS):
    """nearness.csv of LoRA and MultiLoRA with full; left, right: φ of both methods."""
    rng = np.random.default_rng(1)
    rows = []
    for i, method in enumerate(("lora", "multilora")):
        for seed in seeds:
            row = {"method": method, "seed": seed, "reference": "full", "k": k}
            for side, phi in (("left", left[i]), ("right", right[i])):
                value = phi + 1e-3 * rng.standard_normal()
                row |= {f"{side}_phi_k": value, f"{side}_above_chance": value - 0.1}
                row[f"{side}_chance_k"] = 0.15
            row["log_distance"] = 0.9 - 0.1 * i + 1e-3 * rng.standard_normal()
            rows.append(row)
    return rows


def overlap_rows(above, method="multilora", n=3):
    return [
        {"method": method, "seed": seed, "n": n, "r": 8, "overlap_above_chance": value}
        for seed, value in enumerate(above)
    ]


def judged(**rows):
    """The verdicts by number, of tables by name."""
    return {one.stated.number: one for one in judge.judge(Tables(rows))}


def outcomes(**rows):
    return {number: str(one.outcome) for number, one in judged(**rows).items()}


def with_values(**changes):
    """AS_CLAIMED with other values: method__measure=value."""
    values = {method: dict(of) for method, of in AS_CLAIMED.items()}
    for name, value in changes.items():
        method, measure = name.split("__")
        values[method][measure] = value
    return values


def test_every_claim_of_the_paper_stands_once():
    numbers = [stated.number for stated in judge.CLAIMS]
    assert numbers == ["1", "2", "3", "4a", "4b", "4c", "5", "6", "7", "8", "9"]


def test_without_tables_nothing_is_measured():
    assert set(outcomes().values()) == {"not measured"}


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
    got = judged(methods=rows)["1"].found.differences["top_share_1"]
    assert (got.mean, got.low, got.high) == pytest.approx((np.mean(d), low, high))


def test_measures_that_disagree_are_said():
    rows = methods_rows(with_values(multilora__top_share_1=0.8))
    one = judged(methods=rows)["3"]
    assert (one.outcome, one.disagree) == ("supported", ["top_share_1"])
    text = claims_text.as_markdown([one])
    assert "**Measures disagree**: top-1 share." in text
    assert "**the opposite of what is claimed**" in text


def test_what_rests_on_one_way_of_comparing_is_said():
    rows = methods_rows(with_values(lora__effective_rank_k=23.0, lora__gini_k=0.1))
    found = judged(methods=rows)["1"].found
    assert any("Only energy shares say" in note for note in found.notes)
    both = judged(methods=methods_rows())["1"].found
    assert any("both say what is claimed" in note for note in both.notes)


def test_a_missing_seed_is_said_and_the_others_are_paired():
    rows = [row for row in methods_rows() if (row["method"], row["seed"]) != ("lora", 3)]
    one = judged(methods=rows)["1"]
    assert len(one.found.differences["top_share_1"].values) == 4
    assert one.outcome == "supported"
    (note,) = (note for note in one.found.notes if "seeds" in note)
    assert "seeds 3 are not there for both: paired on 0, 1, 2, 4" in note
    assert "Train what is missing" in note


def test_one_seed_in_common_decides_nothing():
    rows = [r for r in methods_rows() if r["method"] != "lora" or r["seed"] == 2]
    assert judged(methods=rows)["1"].outcome == "undecided"


def test_no_seed_in_common_is_not_measured():
    rows = [r for r in methods_rows() if (r["method"] == "lora") == (r["seed"] > 2)]
    one = judged(methods=rows)["1"]
    assert one.outcome == "not measured"
    assert "paired on none" in one.found.notes[0]


def test_a_run_that_stands_twice_is_an_error():
    with pytest.raises(ValueError, match="two rows of lora, seed 0"):
        judged(methods=[*methods_rows(), *methods_rows(seeds=(0,))])


def test_a_preset_says_which_claims_it_measures():
    of = Tables({"methods": methods_rows(), "overlap": overlap_rows([0.0, 0.01])}, QUICK)
    got = {one.stated.number: str(one.outcome) for one in judge.judge(of)}
    assert [got[n] for n in ("1", "2", "3", "4a", "6")] == [
        *("supported", "supported", "not measured", "supported", "not measured")
    ]


QUICK = {"arguments": {"claims": "1,2,4,5"}}


def test_a_claim_that_there_is_not_cannot_be_named():
    with pytest.raises(ValueError, match="there is no claim 12"):
        judge.judge(Tables({}, {"arguments": {"claims": "1,12"}}))


# 3: the ablations


def test_variants_stand_beside_claim_3_and_decide_nothing():
    values = AS_CLAIMED | {
        "multilora n=1": AS_CLAIMED["lora"],
        "multilora n=1 zero": AS_CLAIMED["lora"],
        "multilora zero": AS_CLAIMED["multilora"],
        "lora r=26": AS_CLAIMED["lora"],
    }
    one = judged(methods=methods_rows(values))["3"]
    assert one.outcome == "supported"
    against_lora, two_by_two = one.found.beside
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
    against_lora = judged(methods=rows)["3"].found.beside[0]
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
        (note,) = (n for n in judged(methods=rows, sweep=sweep)[number].found.notes if "rates" in n)
        assert note.startswith("Learning rates: full 0.002; lora 0.003; multilora 0.001. ")
        assert "Not chosen by a sweep of its own: full." in note
        assert note.endswith("a better one may lie beyond: multilora.")
    (note,) = (n for n in judged(methods=rows)["6"].found.notes if "rates" in n)
    assert note.endswith("Not chosen by a sweep of its own: full, lora, multilora.")
    assert judged(methods=rows, sweep=[*sweep[:3], sweep[5]])["3"].found.beside[-1].cells == [
        ["", "0.001", "0.003", "0.006"],
        ["lora", "(15.0, 0.01)", "15.0, 0.03", "(15.0, 0.06)"],
        ["multilora", "–", "–", "(–, 0.06)"],
    ]


# 4


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
    surely = any("surely above chance" in note for note in one.found.notes)
    assert surely == (len(above) > 1 and outcome != "undecided")


def test_a_side_whose_modules_are_independent_is_said():
    """The mean of both sides is beyond the margin for the right one alone."""
    rows = [
        row | {"left_above_chance": 0.05 + 1e-3 * i, "right_above_chance": 0.18 - 1e-3 * i}
        for i, row in enumerate(overlap_rows((0.115, 0.116, 0.114)))
    ]
    one = judged(overlap=rows)["4a"]
    assert (one.outcome, one.disagree) == ("contradicted", ["left_above_margin"])
    text = claims_text.as_markdown([one])
    assert "- overlap above chance, left, less 0.1: -0.049" in text
    assert "**Measures disagree**: overlap above chance, left, less 0.1." in text


def test_the_sides_may_disagree_and_each_has_its_verdict():
    got = judged(nearness=nearness_rows(left=(0.35, 0.2), right=(0.25, 0.35)))
    assert (got["4b"].outcome, got["4c"].outcome) == ("contradicted", "supported")
    # Of the side that is contradicted, the distance of the spectra says what was claimed.
    assert (got["4b"].disagree, got["4c"].disagree) == (["log_distance"], [])


def test_phi_at_other_k_is_not_compared():
    rows = nearness_rows((0.2, 0.3), (0.2, 0.3))
    for row in rows:
        if row["method"] == "multilora":
            row["k"] = 8
    one = judged(nearness=rows)["4b"]
    assert one.outcome == "not measured"
    assert "k = 24, 8" in " ".join(one.found.notes)


# 5


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
    assert "(exact)" in claims_text.as_markdown([one])
    assert "r = 22" in one.found.notes[0]


def test_one_model_that_comes_to_the_share_is_enough():
    rows = [
        {"model": model, "n": 3, "r": r, "share": share}
        for model, r, share in (("a", 1, 0.01), ("b", 2, 0.02502), ("c", 3, 0.04))
    ]
    one = judged(llama_budget=rows)["5"]
    assert one.outcome == "supported"
    assert one.found.differences["share_distance"].mean == pytest.approx(0.00002 - 0.0005)


# 7


def grid_rows(holds):
    """Two seeds a setting; holds: whether claims 1 and 3 do."""
    rows = []
    for value, as_claimed in enumerate(holds):
        of = AS_CLAIMED if as_claimed else {"full": AS_CLAIMED["lora"], "lora": AS_CLAIMED["full"]}
        of = AS_CLAIMED | of
        for row in methods_rows(of, seeds=(0, 1), draw=value):
            phi = 0.2 + (0.1 + 1e-3 * value) * (row["method"] == "multilora")
            row |= {"setting": "steps", "value": value, "overlap_above_chance": 0.02 + 1e-3 * value}
            rows.append(row | {"left_phi_k": phi, "right_phi_k": phi})
    return rows


def test_a_claim_holds_over_the_grid_where_enough_signs_agree():
    assert outcomes(grid=grid_rows([True] * 6))["7"] == "supported"
    assert outcomes(grid=grid_rows([True] * 5))["7"] == "undecided"
    assert outcomes(grid=grid_rows([False] * 6))["7"] == "contradicted"


def test_the_interval_of_signs_is_the_binomials():
    got = judged(grid=grid_rows([True] * 7 + [False] * 2))["7"].found.differences["sign of 1"]
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
    found = judged(grid=rows)["7"].found
    assert len(found.differences["sign of 1"].values) == 3
    assert len(found.differences["sign of 3"].values) == 6
    assert len(found.beside[0].cells) == 1 + 6


def test_what_the_grid_lacks_is_said():
    rows = grid_rows([True] * 6)
    for row in rows:
        for column in ("overlap_above_chance", "left_phi_k", "right_phi_k"):
            del row[column]
    one = judged(grid=rows)["7"]
    assert one.outcome == "undecided"
    assert "Claim 4a has no setting in grid.csv." in one.found.notes


# 8


def cut_rows(keep, remove, ks=(1, 2, 4, 8)):
    """cuts.csv; keep, remove: score of LoRA and of MultiLoRA at every k."""
    rows = []
    for kind, pair in (("keep", keep), ("remove", remove)):
        for method, score in zip(("lora", "multilora"), pair, strict=True):
            for seed in SEEDS:
                for k in ks:
                    at = score + 0.01 * np.log2(max(k, 1)) + 1e-4 * seed * (method == "lora")
                    row = {"method": method, "seed": seed, "kind": kind, "k": k, "score": at}
                    rows.append(row | {f"score_{family}": at for family in FAMILIES})
    return rows


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
    got = judged(cuts=rows)["8"].found.differences
    assert got["remove of the whole"].mean == pytest.approx(0, abs=1e-15)
    assert got["remove"].mean == pytest.approx(-0.1)
    # Where one loses all but a quarter of it without its first direction, and the other half:
    for row in rows:
        if row["method"] == "multilora" and row["k"] > 0:
            row["score"] = 0.2
    got = judged(cuts=rows)["8"].found.differences
    assert got["remove of the whole"].mean == pytest.approx(0.5 - 0.25)


def test_the_area_is_a_mean_over_log_k():
    got = judged(cuts=cut_rows((0.5, 0.3), (0.2, 0.4)))["8"].found
    # Both curves rise by 0.01 a doubling: the areas differ as the curves do.
    assert got.differences["keep"].mean == pytest.approx(-0.2 - 1e-4 * np.mean(SEEDS))
    areas = {row[0]: row for row in got.beside[0].cells}
    assert areas["multilora"][2].startswith(f"{0.3 + 0.01 * np.log2(8) / 2:.3f}")


def test_cuts_that_not_every_run_has_are_left_out_and_said():
    rows = [r for r in cut_rows((0.5, 0.3), (0.2, 0.4)) if (r["method"], r["k"]) != ("lora", 8)]
    one = judged(cuts=rows)["8"]
    assert "keep: k = 8 is not there for every run, and left out." in one.found.notes
    assert one.outcome == "supported"


# 9


def wild_rows(shares, step=None):
    return [
        {
            **{"adapter": f"a{i}", "step": step, "module": f"m{j}", "kind": "q_proj", "r": 8},
            **{"top_share_1": share + 0.01 * j, "null_top_share_1": 0.2},
        }
        for i, share in enumerate(shares)
        for j in range(3)
    ]


def test_adapters_in_the_wild():
    one = judged(wild=wild_rows([0.6, 0.7, 0.8]))["9"]
    assert one.outcome == "supported"
    d = [0.41, 0.51, 0.61]
    got = one.found.differences["above_null"]
    want = scipy.stats.t.interval(0.95, 2, np.mean(d), scipy.stats.sem(d))
    assert (got.low, got.high) == pytest.approx(want)
    assert outcomes(wild=wild_rows([0.15, 0.16, 0.14]))["9"] == "contradicted"


def test_adapters_of_one_author_for_one_task_are_one_unit():
    rows = wild_rows([0.6, 0.7, 0.8])
    again = [row | {"adapter": f"a0/rank{i}"} for i in range(3) for row in wild_rows([0.6])]
    one = judged(wild=[*rows, *again])["9"]
    assert len(one.found.differences["above_null"].values) == 3


def test_an_adapter_of_rank_1_says_nothing():
    one_value = [row | {"adapter": "r1", "null_top_share_1": 1.0} for row in wild_rows([1.0])]
    rows = wild_rows([0.6, 0.7, 0.8])
    one = judged(wild=[*rows, *one_value])["9"]
    assert one.found.differences == judged(wild=rows)["9"].found.differences
    assert any("rank 1" in note and "r1" in note for note in one.found.notes)
    assert outcomes(wild=one_value)["9"] == "not measured"


def test_of_several_steps_the_last_counts():
    rows = [*wild_rows([0.2, 0.2, 0.2], step=100), *wild_rows([0.6, 0.7, 0.8], step=200)]
    assert judged(wild=rows)["9"].found.differences["above_null"].mean == pytest.approx(0.51)


# What is written


EVERYTHING = {
    "methods": methods_rows(),
    "overlap": overlap_rows([0.02, 0.03, 0.025]),
    "nearness": nearness_rows((0.35, 0.2), (0.25, 0.35)),
    "llama_budget": [{"model": "llama-7b", "n": 3, "r": 22, "share": 0.02508}],
    "grid": grid_rows([True] * 6),
    "cuts": cut_rows((0.5, 0.3), (0.2, 0.4)),
    "wild": wild_rows([0.6, 0.7, 0.8]),
}


@pytest.fixture
def results(tmp_path):
    """A directory with all tables."""
    (tmp_path / "record.json").write_text('{"arguments": {"steps": 3}, "seed": [0, 1]}')
    tables.write(tmp_path, EVERYTHING)
    return tmp_path


def test_contradictions_are_as_prominent_as_support(results):
    judged_all = judge.judge(tables.load(results))
    text = claims_text.as_markdown(judged_all)
    assert "Supported: 1, 2, 3, 4a, 4c, 5, 6, 7, 8, 9; contradicted: 4b;" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| 4b |"))
    assert row.endswith("| **contradicted** |")
    assert "0 of 5" in row
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.endswith(" |")
    in_text = claims_text.as_text(judged_all)
    assert any(line.startswith("4b") and "contradicted" in line for line in in_text.splitlines())


def test_json_is_strict_and_whole(results):
    one_seed = {"methods": methods_rows(seeds=(0,))}
    for of in (tables.load(results), Tables(one_seed), Tables({})):
        object_ = claims_text.as_json(judge.judge(of))
        text = store.strict_json(object_)
        assert json.loads(text) == object_
        assert [one["number"] for one in object_["claims"]] == [s.number for s in judge.CLAIMS]
    measured = claims_text.as_json(judge.judge(Tables(one_seed)))["claims"][0]["parts"][0][
        "measured"
    ]
    assert (measured["n"], measured["low"], measured["high"]) == (1, None, None)


def test_the_command_prints_and_writes_nothing(results, run_main):
    before = {file.name: file.read_bytes() for file in results.iterdir()}
    status, out, err = run_main(claims.main, results)
    assert (status, err) == (0, [])
    of = tables.load(results)
    assert out == claims_text.as_markdown(judge.judge(of), of.record)
    status, out, _ = run_main(claims.main, results, "--json")
    assert json.loads(out) == claims_text.as_json(judge.judge(of))
    assert {file.name: file.read_bytes() for file in results.iterdir()} == before


def test_written_claims_follow_from_the_tables(results):
    from_memory = judge.judge(Tables(EVERYTHING, tables.load(results).record))
    judge.write(results)
    assert json.loads((results / "claims.json").read_text()) == claims_text.as_json(from_memory)
    assert (results / "claims.md").read_text().startswith("# The claims")


def test_an_edited_table_ends_in_one_line(results, run_main):
    file = results / "methods.csv"
    file.write_text(file.read_text().replace("0.5", "0.9", 1))
    status, out, (line,) = run_main(claims.main, results)
    assert (status, out) == (2, "")
    assert "methods.csv: was edited" in line
    assert "make it again with python -m multilora.reproduce" in line


def test_what_rounding_would_leave_stands_beside_claim_2():
    row = {"effective_rank": 90.0, "effective_rank_true": 70.0, "above_floor_share": 0.14}
    rows = [row | {"ratio": 0.003}, row | {"ratio": 0.003, "effective_rank": 92.0}]
    (beside,) = judged(methods=methods_rows(), rounding_floor=rows)["2"].found.beside
    assert beside.cells[1:] == [["0.003", "91", "70", "0.14"]]
