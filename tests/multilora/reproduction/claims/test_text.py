"""Judged claims as text, Markdown and JSON."""

import json

import pytest
from claim_tables import EVERYTHING, judged, methods_rows, nearness_rows, write_results

from analysis import store
from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.tables import Tables

OTHER_WAY = EVERYTHING | {"nearness": nearness_rows(left=(0.35, 0.2), right=(0.25, 0.35))}


@pytest.fixture
def results(tmp_path):
    """A directory with all tables, of which one contradicts claim 4b."""
    return write_results(tmp_path, OTHER_WAY)


def test_the_summary_names_the_claims_of_each_outcome():
    assert claims_text.summary(judge.judge(Tables(OTHER_WAY))) == (
        "supported: 1a, 1b, 2, 3a, 3b, 4a left, 4a right, 4c, 4d, 6a, 6b, 8a, 8b, 9;"
        " contradicted: 4b; undecided: none; not measured: none"
    )
    assert claims_text.summary([]) == (
        "supported: none; contradicted: none; undecided: none; not measured: none"
    )


def test_contradictions_are_as_prominent_as_support(results):
    judged_all = judge.judge(tables.load(results))
    text = claims_text.as_markdown(judged_all)
    assert "; contradicted: 4b; " in text.splitlines()[2]
    (row,) = (line for line in text.splitlines() if line.startswith("| 4b |"))
    assert row.endswith("| **contradicted** |")
    assert "0 of 5" in row
    widths = {line.count("|") for line in text.splitlines()[8:30] if line.startswith("|")}
    assert len(widths) == 1
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.endswith(" |")
    in_text = claims_text.as_text(judged_all)
    assert any(line.startswith("4b") and "contradicted" in line for line in in_text.splitlines())


def test_claims_without_a_verdict_stand_below_the_printed_table(results):
    lines = claims_text.as_text(judge.judge(tables.load(results))).splitlines()
    assert lines[-3].startswith("5: n = 3: llama-7b r = 22")
    assert lines[-2].startswith("7: 1a holds in 6 of 6")
    assert lines[-1].startswith("supported: 1a")
    assert not any(line.split()[0] in ("5", "7") for line in lines[1:-3])


def test_parts_that_differ_each_have_their_verdict():
    one = judged(methods=methods_rows())["3a"]  # no dynamics: equal loss is not measured
    rows = [row for row in claims_text.as_markdown([one]).splitlines() if row.startswith("| ")]
    assert rows[1].startswith("| 3a | ")
    assert rows[1].endswith("| **undecided** (this part: supported) |")
    assert rows[2].startswith("|  |  | top-1 share at equal validation loss")
    assert rows[2].endswith("| 0 | – | below -0.02 | – | (this part: not measured) |")


def test_a_claim_that_is_not_measured_says_what_it_would_have_been(results):
    (one,) = (one for one in judge.judge(Tables({})) if one.statement.number == "3a")
    text = claims_text.as_markdown([one])
    assert "- Primary: top-1 share, MultiLoRA − LoRA; claimed below -0.02." in text
    assert "| – | – | – | – | **not measured** |" in text


def test_the_conditions_name_seeds_steps_and_processors():
    made_by = {
        "seed": [5, 6],
        "arguments": {"steps": 1500},
        "environment": {"cpu": "of the report"},
        "trained_on": [{"cpu": "A"}, {"cpu": "B"}, {"cpu": "A"}],
    }
    judged_all = judge.judge(Tables({}))
    assert "Made with seeds 5, 6, 1500 steps, A and B." in claims_text.as_markdown(
        judged_all, made_by
    )
    here = {**made_by, "trained_on": []}
    assert "1500 steps, of the report." in claims_text.as_markdown(judged_all, here)
    assert "Made with" not in claims_text.as_markdown(judged_all)


def test_earlier_means_stand_in_a_column_of_their_own():
    now, before = (judge.judge(Tables({"methods": methods_rows(draw=i)})) for i in (0, 1))
    lines = claims_text.as_markdown(now, earlier=before).splitlines()
    (heading,) = (line for line in lines if line.startswith("|  | claim"))
    assert heading.endswith("| verdict | seeds 0–4 |")
    (row,) = (line for line in lines if line.startswith("| 1a |"))
    difference = before[0].evidence.differences["top_share_1_above_null"]
    assert row.endswith(f"| {claims_text.number_text(difference)} |")
    (not_measured,) = (line for line in lines if line.startswith("| 9 |"))
    assert not_measured.endswith("| **not measured** | n/a |")


def test_json_is_strict_and_whole(results):
    one_seed = {"methods": methods_rows(seeds=(0,))}
    for of in (tables.load(results), Tables(one_seed), Tables({})):
        object_ = claims_text.as_json(judge.judge(of))
        text = store.strict_json(object_)
        assert json.loads(text) == object_
        assert [one["number"] for one in object_["claims"]] == [
            s.number for s in judge.CLAIMS["score"]
        ]
        assert "earlier" not in object_
    measured = claims_text.as_json(judge.judge(Tables(one_seed)))["claims"][0]["parts"][0][
        "measured"
    ]
    assert (measured["n"], measured["low"], measured["high"]) == (1, None, None)


def test_json_says_which_claims_get_no_verdict(results):
    objects = claims_text.as_json(judge.judge(tables.load(results)))["claims"]
    without = {one["number"]: one for one in objects if one["outcome"] == "no verdict"}
    assert without.keys() == {"5", "7"}
    assert without["5"]["result"].startswith("n = 3: ")
    assert without["7"]["parts"] == []
