"""Judged claims as text, Markdown and JSON."""

import json

import pytest
from claim_tables import methods_rows, write_results

from analysis import store
from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.tables import Tables


@pytest.fixture
def results(tmp_path):
    """A directory with all tables."""
    return write_results(tmp_path)


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
