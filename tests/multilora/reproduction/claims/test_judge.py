"""The list of claims, presets that leave some out, and the files that are written."""

import json

import pytest
from claim_tables import EVERYTHING, methods_rows, outcomes, overlap_rows, write_results

from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.tables import Tables


@pytest.fixture
def results(tmp_path):
    """A directory with all tables."""
    return write_results(tmp_path)


def test_every_claim_of_the_paper_stands_once():
    numbers = [stated.number for stated in judge.CLAIMS]
    assert numbers == ["1", "2", "3", "4a", "4b", "4c", "5", "6", "7", "8", "9"]


def test_without_tables_nothing_is_measured():
    assert set(outcomes().values()) == {"not measured"}


QUICK = {"arguments": {"claims": "1,2,4,5"}}


def test_a_preset_says_which_claims_it_measures():
    of = Tables({"methods": methods_rows(), "overlap": overlap_rows([0.0, 0.01])}, QUICK)
    got = {one.statement.number: str(one.outcome) for one in judge.judge(of)}
    assert [got[n] for n in ("1", "2", "3", "4a", "6")] == [
        *("supported", "supported", "not measured", "supported", "not measured")
    ]


def test_a_claim_that_there_is_not_cannot_be_named():
    with pytest.raises(ValueError, match="unknown claim 12; expected numbers from 1, 2"):
        judge.judge(Tables({}, {"arguments": {"claims": "1,12"}}))


def test_written_claims_follow_from_the_tables(results):
    from_memory = judge.judge(Tables(EVERYTHING, tables.load(results).record))
    judge.write(results)
    assert json.loads((results / "claims.json").read_text()) == claims_text.as_json(from_memory)
    assert (results / "claims.md").read_text().startswith("# The claims")
