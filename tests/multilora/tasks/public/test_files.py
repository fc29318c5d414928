import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_files import write

from multilora.tasks.public import files

ROWS = [{"a": "x\ny"}, {"a": "é\u2028"}, {"a": "[,]"}]


def read(path):
    text, _ = files.read_text(path)
    return list(files.json_rows(path, text))


def test_text_and_hash_are_the_files(tmp_path):
    path = write(tmp_path / "a", b"\xef\xbb\xbf\xc3\xa9\r\n")
    assert files.read_text(path) == ("é\r\n", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_not_utf8_is_named_by_line_and_byte(tmp_path, mark):
    path = write(tmp_path / "a", mark + b"one\ntw\xe9o\n")
    message = rf"a, line 2: byte {len(mark) + 6} \(0xe9\) is not UTF-8"
    with pytest.raises(ValueError, match=message):
        files.read_text(path)


def test_utf16_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"line 1: byte 0 \(0xff\) is not UTF-8"):
        files.read_text(write(tmp_path / "a", "text".encode("utf-16")))


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="a is empty; expected records"):
        files.read_text(write(tmp_path / "a", content))


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a directory; expected a file"):
        files.read_text(tmp_path)
    with pytest.raises(ValueError, match="b does not exist; expected a file"):
        files.read_text(tmp_path / "b")


def test_children_are_by_name_and_without_hidden_files(tmp_path):
    for name in ("b", "C", "a", ".git"):
        write(tmp_path / name, "x")
    assert [path.name for path in files.children(tmp_path)] == ["a", "b", "C"]
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match="e is an empty directory; expected files"):
        files.children(tmp_path / "e")
    with pytest.raises(ValueError, match="a is a file; expected a directory"):
        files.children(tmp_path / "a")
    with pytest.raises(ValueError, match="d does not exist; expected a directory"):
        files.children(tmp_path / "d")


def test_a_json_array_is_told_by_line(tmp_path):
    text = '\n[\n  {"a": "x\\ny"},\n\n  {"a": "é\u2028"} , {"a": "[,]"}\n]\n'
    assert read(write(tmp_path / "a", text)) == [(3, ROWS[0]), (5, ROWS[1]), (5, ROWS[2])]


def test_json_lines_are_told_by_line(tmp_path):
    """Only line feeds end a line: a separator within a string does not."""
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = write(tmp_path / "a", f"{lines[0]}\r\n\n{lines[1]}\n  \n{lines[2]}")
    assert read(path) == [(1, ROWS[0]), (3, ROWS[1]), (5, ROWS[2])]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES), st.sampled_from([None, 0, 2]))
def test_an_array_is_what_the_json_library_reads(tmp_path_factory, rows, indent):
    path = write(tmp_path_factory.mktemp("a") / "a", json.dumps(rows, indent=indent))
    assert [value for _, value in read(path)] == rows


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1))
def test_lines_are_what_the_json_library_reads(tmp_path_factory, rows):
    text = "\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    path = write(tmp_path_factory.mktemp("a") / "a", text)
    assert read(path) == list(enumerate(rows, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a" 2}]', "a, line 3: Expecting ':' delimiter, column 6; expected a JSON"),
        ('[{"a": 1}\n{"a": 2}]', r"line 2: Expecting ',' or '\]', column 1"),
        ('[{"a": 1},\n', "line 2: Expecting value"),
        ('[{"a": 1}', r"line 1: Expecting ',' or '\]'"),
        ("[1,]", "line 1: Expecting value, column 4"),
        ("[1]\n[2]", "line 2: Text after the array, column 1"),
        ('{"a": 1}\n{"a": \n', "a, line 2: Expecting value"),
        ('{"a": 1} {"a": 2}', "line 1: Extra data"),
        ('{\n "data": []\n}', "line 1: Expecting property name .* or one record per line"),
        ("instruction,input\n", "line 1: Expecting value"),
        ("[" * 100_000, "a: maximum recursion depth"),
        ("[" + "9" * 5000 + "]", "a: Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_named_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "a", text))


def test_rows_of_csv_are_text_told_by_their_first_line(tmp_path):
    text = 'q,007,NA\r\n\r\n"a\nb","say ""x""",\n last,,1.0\n'
    rows = list(files.csv_rows(tmp_path, text))
    assert rows == [
        (1, ["q", "007", "NA"]),
        (3, ["a\nb", 'say "x"', ""]),
        (5, [" last", "", "1.0"]),
    ]


@pytest.mark.parametrize("text", ['a,b\n"c,d\ne,f\n', 'a,b\n"c"d,e\n'])
def test_a_quote_that_does_not_close_is_named_by_line(tmp_path, text):
    with pytest.raises(ValueError, match=r"a.csv, line 2: "):
        list(files.csv_rows(tmp_path / "a.csv", text))


def test_an_error_gets_place_and_line():
    assert files.parse_rows("f", [(1, "1"), (4, "2")], int) == [1, 2]
    with pytest.raises(ValueError, match=r"^f, line 4: invalid literal"):
        files.parse_rows("f", [(1, "1"), (4, "x")], int)
    with pytest.raises(ValueError, match=r"^f, row 4: invalid literal"):
        files.parse_rows("f", [(4, "x")], int, unit="row")
    with pytest.raises(ValueError, match=r"^f has no records"):
        files.parse_rows("f", [], int)


def test_a_field_is_there_and_of_its_type():
    assert files.string({"a": "é😀"}, "a") == "é😀"
    assert files.field({"a": [1]}, "a", list) == [1]
    with pytest.raises(ValueError, match=r"^field 'b' is missing; the fields are a, c$"):
        files.string({"a": "x", "c": 1}, "b")
    with pytest.raises(ValueError, match=r"^field 'b' is missing; the object is empty$"):
        files.string({}, "b")
    for value, what in (
        (1, "a number"), (0.5, "a number"), (None, "null"), (True, "a boolean"), ([], "a list"),
        ({}, "an object"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^'a' is {what}; expected a string$"):
            files.string({"a": value}, "a")
    with pytest.raises(ValueError, match=r"^a list; expected an object with the field 'a'$"):
        files.string(["a"], "a")


def test_half_a_character_is_refused():
    """JSON can write one; no tokenizer can read it."""
    with pytest.raises(
        ValueError, match=r"'a' contains '\\ud83d', half a character; expected text"
    ):
        files.string({"a": json.loads('"x\\ud83d"')}, "a")
