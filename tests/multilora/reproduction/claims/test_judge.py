"""The list of claims, presets that leave some out, and the files that are written."""

import json
from pathlib import Path

import pytest
from claim_tables import (
    AS_CLAIMED,
    EVERYTHING,
    cut_rows,
    dynamics_rows,
    judged,
    methods_rows,
    nearness_rows,
    outcomes,
    overlap_rows,
    wild_rows,
    write_results,
)

from analysis.numerics.statistics import Outcome
from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.tables import Tables

NUMBERS = (
    "1a", "1b", "2", "3a", "3b", "4a left", "4a right", "4b", "4c", "4d", "5", "6a", "6b", "7",
    "8a", "8b", "9",
)  # fmt: skip

PUBLISHED = Path(__file__).parents[4] / "figures"


@pytest.fixture
def results(tmp_path):
    """A directory with all tables."""
    return write_results(tmp_path)


def test_every_claim_stands_once():
    assert tuple(stated.number for stated in judge.CLAIMS["score"]) == NUMBERS


def test_claims_5_and_7_have_no_parts_and_all_others_have():
    without = [stated.number for stated in judge.CLAIMS["score"] if not stated.parts]
    assert without == ["5", "7"]


def test_without_tables_nothing_is_measured():
    assert set(outcomes().values()) == {"not measured"}


def test_every_claim_can_be_supported():
    got = outcomes(**EVERYTHING)
    assert {number for number, outcome in got.items() if outcome != "supported"} == {"5", "7"}
    assert {got["5"], got["7"]} == {"no verdict"}


def test_no_part_is_judged_against_a_bare_constant():
    """If what is compared is equal, every primary difference is 0, whatever the values are."""
    same = dict.fromkeys(AS_CLAIMED, AS_CLAIMED["lora"])
    rows_of = {
        "methods": methods_rows(same, noise=0),
        "dynamics": dynamics_rows(same),
        "overlap": overlap_rows(left=(0.3, 0.3), right=(0.4, 0.4)),
        "nearness": nearness_rows(left=(0.3, 0.3), right=(0.4, 0.4), shape=(0.7, 0.7)),
        "cuts": cut_rows(dict.fromkeys(AS_CLAIMED, 0.6), dict.fromkeys(AS_CLAIMED, 0.0)),
        "wild": [row | {"top_share_1": row["null_top_share_1"]} for row in wild_rows([0.5] * 3)],
    }
    for row in rows_of["methods"]:
        row["top_share_1_above_null"] = 0.4  # also of methods whose null is another
    noise = 5e-3  # of the tables that have some
    by_number = judged(**rows_of)
    for one in by_number.values():
        for part in one.statement.parts:
            difference = one.evidence.differences[part.claim.primary]
            assert abs(difference.mean) < noise, (one.statement.number, part.claim.primary)
            assert difference.low - noise < 0 < difference.high + noise


def test_every_bound_is_one_that_equal_methods_do_not_reach():
    for stated in judge.CLAIMS["score"]:
        for part in stated.parts:
            assert part.claim.delta > 0, stated.number
            assert part.what, stated.number
            assert part.why, stated.number


S, C, U, N = Outcome.SUPPORTED, Outcome.CONTRADICTED, Outcome.UNDECIDED, Outcome.NOT_MEASURED


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ((S,), S),
        ((S, S), S),
        ((S, C), C),
        ((U, C), C),
        ((N, C), C),
        ((S, U), U),
        ((S, N), U),
        ((N, N), N),
        ((U, U), U),
    ],
)
def test_a_claim_needs_all_of_its_parts(parts, whole):
    assert judge._weakest(parts) is whole
    assert judge._weakest(parts[::-1]) is whole


def test_a_preset_says_which_claims_it_measures():
    quick = {"arguments": {"claims": "1a,4b,4c,4d,5"}}
    got = {one.statement.number: one for one in judge.judge(Tables(EVERYTHING, quick))}
    measured = {number for number, one in got.items() if one.outcome is not N}
    assert measured == {"1a", "4b", "4c", "4d", "5"}
    assert got["3a"].evidence.notes == ["This preset does not measure it."]


@pytest.mark.parametrize(
    ("given", "measured"),
    [
        ("1", {"1a", "1b"}),
        ("4", {"4a left", "4a right", "4b", "4c", "4d"}),
        ("4a, 9", {"4a left", "4a right", "9"}),
        ("4a left", {"4a left"}),
        ("", set(NUMBERS)),
    ],
)
def test_a_number_names_all_claims_of_that_number(given, measured):
    of = Tables(EVERYTHING, {"arguments": {"claims": given}})
    got = {one.statement.number for one in judge.judge(of) if one.outcome is not N}
    assert got == measured


def test_a_claim_that_there_is_not_cannot_be_named():
    with pytest.raises(ValueError, match="unknown claim 12; expected numbers from 1a, 1b, 2"):
        judge.judge(Tables({}, {"arguments": {"claims": "1a,12"}}))


def test_written_claims_follow_from_the_tables(results):
    from_memory = judge.judge(Tables(EVERYTHING, tables.load(results).record))
    assert judge.write(results) == judge.judge(tables.load(results))
    assert json.loads((results / "claims.json").read_text()) == claims_text.as_json(from_memory)
    assert (results / "claims.md").read_text().startswith("# The claims")
    assert "seeds 0–4" not in (results / "claims.md").read_text()


def test_earlier_tables_are_judged_apart_and_stand_beside(results):
    """They lack the measure beyond the null, and say the opposite of the others."""
    swapped = AS_CLAIMED | {"lora": AS_CLAIMED["full"], "full": AS_CLAIMED["lora"]}
    rows = [row | {"top_share_1_above_null": None} for row in methods_rows(swapped)]
    write_results(results / judge.EARLIER, {"methods": rows})
    now, measured, earlier = judge.of_results(results)
    assert measured.record == tables.load(results).record
    assert [str(v.outcome) for v in earlier[0].verdicts] == ["not measured", "contradicted"]
    assert [str(v.outcome) for v in now[0].verdicts] == ["supported", "supported"]
    assert judge.write(results) == now
    lines = (results / "claims.md").read_text().splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("| 1a |"))
    above_null, share = lines[place : place + 2]
    assert above_null.endswith("| **supported** | n/a |")
    before = claims_text.number_text(earlier[0].evidence.differences["top_share_1"])
    assert share.endswith(f"| {before} |")
    assert before.startswith("-0.")
    objects = json.loads((results / "claims.json").read_text())
    assert objects["earlier"][0]["outcome"] == "contradicted"
    assert objects["claims"][0]["outcome"] == "supported"


def test_earlier_tables_that_were_edited_are_refused(results):
    before = write_results(results / judge.EARLIER, {"methods": methods_rows()})
    file = before / "methods.csv"
    file.write_text(file.read_text().replace("0.5", "0.9", 1))
    with pytest.raises(ValueError, match=r"earlier/methods\.csv: was edited"):
        judge.of_results(results)


def test_the_published_tables_can_be_judged():
    """Also those of seeds 0 to 4, which were made before some measures existed."""
    judged, _, earlier = judge.of_results(PUBLISHED)
    for claims, seeds in ((judged, 2), (earlier, 5)):
        assert tuple(one.statement.number for one in claims) == NUMBERS
        assert len(claims[0].evidence.differences["top_share_1"].values) >= seeds
