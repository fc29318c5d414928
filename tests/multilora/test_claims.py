"""The command multilora.claims: verdicts from the tables in a directory."""

import json

import pytest
from claim_tables import write_results

from multilora import claims
from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text


@pytest.fixture
def results(tmp_path):
    """A directory with all tables."""
    return write_results(tmp_path)


def test_the_command_prints_and_writes_nothing(results, run_main):
    before = {file.name: file.read_bytes() for file in results.iterdir()}
    status, out, err = run_main(claims.main, results)
    assert (status, err) == (0, [])
    of = tables.load(results)
    assert out == claims_text.as_markdown(judge.judge(of), of.record)
    status, out, _ = run_main(claims.main, results, "--json")
    assert json.loads(out) == claims_text.as_json(judge.judge(of))
    assert {file.name: file.read_bytes() for file in results.iterdir()} == before


def test_an_edited_table_ends_in_one_line(results, run_main):
    file = results / "methods.csv"
    file.write_text(file.read_text().replace("0.5", "0.9", 1))
    status, out, (line,) = run_main(claims.main, results)
    assert (status, out) == (2, "")
    assert "methods.csv: was edited" in line
    assert "make it again with python -m multilora.reproduce" in line


def test_earlier_tables_are_printed_beside(results, run_main):
    write_results(results / judge.EARLIER)
    status, out, _ = run_main(claims.main, results)
    assert status == 0
    assert "| verdict | seeds 0–4 |" in out
    objects = json.loads(run_main(claims.main, results, "--json")[1])
    assert objects["earlier"] == objects["claims"]


@pytest.mark.parametrize(
    "change",
    [
        *({"tables": value} for value in ([], 3, "x", None, {"methods.csv": 3}, {"../x": []})),
        *({"arguments": value} for value in ([], "x", None, {"claims": 3})),
        *({"trained_on": value} for value in ({}, "x", [3], [None])),
        *({key: [1]} for key in ("environment", "methods", "runs")),
    ],
)
def test_a_record_with_values_of_another_type_ends_in_one_line(results, run_main, change):
    file = results / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    status, out, (line,) = run_main(claims.main, results)
    assert (status, out) == (2, "")
    assert next(iter(change)) in line
