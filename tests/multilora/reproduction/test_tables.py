"""Tables on disk and the SHA-256 that the record keeps of them."""

import hashlib
import json

import pytest
from killed import at_every_call

from multilora.reproduction import tables

ROWS = [
    {"method": "lora", "seed": 0, "k": 24, "top_share_1": 0.1 + 0.2, "score": None},
    {"method": "007", "seed": 1, "k": 24, "top_share_1": 1e-300, "score": 1.0},
]
ROWS = [row | {"top_share_1_above_null": 0.25} for row in ROWS]


@pytest.fixture
def results(tmp_path):
    (tmp_path / "record.json").write_text('{"seed": [0, 1]}')
    tables.write(tmp_path, {"methods": ROWS})
    return tmp_path


def test_what_is_written_is_read(results):
    got = tables.load(results)
    assert got.of("methods") == ROWS
    assert [type(value) for value in got.of("methods")[0].values()] == [
        type(value) for value in ROWS[0].values()
    ]
    assert (got.of("grid"), got.notes, got.record["seed"]) == ((), (), [0, 1])


def test_the_record_keeps_the_hash_of_every_table(results):
    tables.write(results, {"overlap": []})
    tables.write(results, {"differences": [{"a": 1}]})
    kept = json.loads((results / "record.json").read_text())["tables"]
    assert kept == {
        name: hashlib.sha256((results / name).read_bytes()).hexdigest()
        for name in ("methods.csv", "differences.csv")
    }
    assert kept == tables.hashes(results)


def test_a_table_without_rows_is_taken_away(results):
    tables.write(results, {"methods": []})
    assert not (results / "methods.csv").exists()
    assert tables.load(results).rows == {}


def test_no_number_that_is_none(results):
    """NaN and infinity are what was not measured."""
    rows = [row | {"score": value} for row, value in zip(ROWS, ("nan", "inf"), strict=True)]
    tables.write(results, {"methods": rows})
    assert [row["score"] for row in tables.load(results).of("methods")] == [None, None]


def test_an_edited_table_is_refused(results):
    file = results / "methods.csv"
    file.write_text(file.read_text().replace("24", "25", 1))
    with pytest.raises(ValueError, match=r"methods\.csv: was edited.*restore it, or make it again"):
        tables.load(results)


def test_a_table_that_is_gone_or_of_unknown_origin_is_said(results):
    (results / "methods.csv").rename(results / "wild.csv")
    with pytest.raises(ValueError, match=r"wild\.csv: lacks adapter"):
        tables.load(results)
    (results / "wild.csv").write_text(",".join(tables.COLUMNS["wild"]) + "\n")
    first, second = sorted(tables.load(results).notes)
    assert "methods.csv is in record.json but missing" in first
    assert "wild.csv is not in record.json; its origin is unknown" in second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "missing; expected a directory of results"),
        ("{", "not readable as JSON.*; make it again with python -m"),
        ("[]", "expected a JSON object; make it again with python -m"),
        ('{"seed": []}', "another version wrote it; make it again with python -m"),
    ],
)
def test_a_directory_of_something_else_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        tables.load(tmp_path)


def test_a_table_of_another_version_is_refused(results):
    tables.write(results, {"methods": [{"method": "lora", "seed": 0}]})
    with pytest.raises(ValueError, match=r"lacks k, top_share_1, .*another version"):
        tables.load(results)


@pytest.mark.parametrize("text", ["a,b\n1,2\n3\n", "a,b\n1,2,3\n"])
def test_a_row_of_another_length_is_refused(tmp_path, text):
    file = tmp_path / "t.csv"
    with pytest.raises(ValueError, match=r"t\.csv: rows have . cells; expected 2"):
        tables.parsed(file, text.encode(), ("a",))


def test_an_empty_file_lacks_its_columns(tmp_path):
    with pytest.raises(ValueError, match="lacks a, b"):
        tables.parsed(tmp_path / "t.csv", b"", ("a", "b"))


def test_words_are_words_and_values_are_numbers(tmp_path):
    content = b"kind,value,part\n4,0.5,\nq,48,1\n"
    assert tables.parsed(tmp_path / "t.csv", content, ()) == [
        {"kind": "4", "value": 0.5, "part": None},
        {"kind": "q", "value": 48, "part": "1"},
    ]


def test_all_tables_of_the_record_are_read_and_no_other(results):
    tables.write(results, {"phi_grids": [{"method_a": "lora", "i": 1, "j1": 0.5}]})
    (results / "stray.csv").write_text("a,b\n1,2\n")
    got = tables.load_all(results)
    assert got.rows.keys() == {"methods", "phi_grids"}
    assert got.of("phi_grids") == [{"method_a": "lora", "i": 1, "j1": 0.5}]
    assert got.of("methods") == ROWS
    assert tables.load(results).rows.keys() == {"methods"}


def test_an_edited_table_is_refused_whether_or_not_a_claim_needs_it(results):
    tables.write(results, {"phi_grids": [{"method_a": "lora", "i": 1, "j1": 0.5}]})
    (results / "phi_grids.csv").write_text("method_a,i,j1\nlora,1,0.9\n")
    with pytest.raises(ValueError, match=r"phi_grids\.csv: was edited"):
        tables.load_all(results)
    tables.load(results)
    (results / "phi_grids.csv").unlink()
    assert tables.load_all(results).notes == (
        "phi_grids.csv is in record.json but missing; its claims lack evidence.",
    )


def test_all_tables_need_a_record(tmp_path):
    with pytest.raises(ValueError, match="missing; expected a directory of results"):
        tables.load_all(tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_killed_or_full_at_any_moment_the_tables_are_all_old_or_all_new(results, full):
    def write(seed):
        new = [row | {"seed": seed} for row in ROWS]
        tables.write(results, {"methods": new, "spread": [] if seed else [{"a": 1}]})

    write(0)
    seen = set()
    for _ in at_every_call(lambda: write(7), results, full):
        got = tables.load_all(results)
        assert got.notes == ()
        seeds = {row["seed"] for row in got.of("methods")}
        assert seeds == ({0} if got.of("spread") else {7})
        seen |= seeds
        write(0)
    assert seen == {0, 7}


def test_text_that_a_spreadsheet_takes_for_a_formula_is_read_back(results):
    rows = [{"method": "=1+1", "label": "-x", "value": -0.5}]
    tables.write(results, {"other": rows})
    assert (results / "other.csv").read_text() == "method,label,value\n'=1+1,'-x,-0.5\n"
    assert tables.load_all(results).of("other") == rows


def test_a_record_names_no_table_outside(results):
    (results.parent / "precious.csv").write_text("a\n1\n")
    file = results / "record.json"
    made_by = json.loads(file.read_text())
    made_by["tables"]["../precious.csv"] = "0" * 64
    file.write_text(json.dumps(made_by))
    assert tables.load_all(results).rows.keys() == {"methods"}
    assert tables.hashes(results).keys() == {"methods.csv"}
