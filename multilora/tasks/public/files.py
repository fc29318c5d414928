"""Records out of text files, with the file and line of whatever is wrong in them."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from analysis import UserError

Record = TypeVar("Record")
Result = TypeVar("Result")

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_text(path: Path) -> tuple[str, str]:
    """The text of a UTF-8 file, without a byte order mark, and the SHA-256 of its bytes.

    Raises ValueError for what is no file, is empty or is not UTF-8.
    """
    if not path.is_file():
        what = "a directory" if path.is_dir() else "not there"
        raise UserError(f"{path} is {what}; expected a file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)  # without the mark
        line = data.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}, line {line}: byte {at} ({data[at]:#04x}) is not UTF-8; expected a file in "
            "that encoding"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; expected records")
    return text, hashlib.sha256(data).hexdigest()


def children(directory: Path) -> list[Path]:
    """What a directory holds, by name. Raises ValueError where it is none, or empty."""
    if not directory.is_dir():
        what = "a file" if directory.exists() else "not there"
        raise UserError(f"{directory} is {what}; expected a directory")
    visible = [path for path in directory.iterdir() if not path.name.startswith(".")]
    found = sorted(visible, key=lambda path: (path.name.lower(), path.name))
    if not found:
        raise UserError(f"{directory} is an empty directory")
    return found


def parsed(
    place: object,
    rows: Iterable[tuple[int, Record]],
    parse: Callable[[Record], Result],
    unit: str = "line",
) -> list[Result]:
    """`parse` of every (number, row); its ValueError gets place, unit and number in front.

    Raises ValueError where there is no row.
    """
    results = []
    for number, row in rows:
        try:
            results.append(parse(row))
        except ValueError as error:
            raise UserError(f"{place}, {unit} {number}: {error}") from None
    if not results:
        raise UserError(f"{place} has no records")
    return results


def json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of a JSON array, or of each line of JSON lines.

    Blank lines are passed over. Raises ValueError with the line where it is not JSON.
    """
    start = _skip(text, 0)
    rows = _elements(text, start) if text.startswith("[", start) else _lines(text)
    try:
        yield from rows
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: {error.msg}, column {error.colno}; "
            "expected a JSON array of records, or a record a line"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, deep nesting
        raise UserError(f"{path}: {error}") from None


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    at, line, counted = _skip(text, start + 1), 1, 0
    more = not text.startswith("]", at)
    while more:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _DECODER.raw_decode(text, at)
        yield line, value
        at = _skip(text, at)
        more = text.startswith(",", at)
        if more:
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    end = _skip(text, at + 1)
    if end < len(text):
        raise json.JSONDecodeError("Text after the array", text, end)


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line)
        except json.JSONDecodeError as error:
            error.lineno = number
            raise


def _skip(text: str, at: int) -> int:
    """Where the white space at `at` ends."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of each row, every cell as text; blank lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: {error}") from None


def field(row: Any, name: str, kind: type[Result]) -> Result:
    """`row[name]`, which must be there and of that type; an error says what came instead."""
    if not isinstance(row, dict):
        raise UserError(f"{_TYPES[type(row)]}; expected an object with the field {name!r}")
    if name not in row:
        raise UserError(f"no field {name!r}; there are {', '.join(row) or 'none'}")
    value = row[name]
    if not isinstance(value, kind):
        raise UserError(f"{name!r} is {_TYPES[type(value)]}; expected {_TYPES[kind]}")
    return value


def string(row: Any, name: str) -> str:
    """The string `row[name]`; one that no UTF-8 text can hold is an error."""
    value = field(row, name, str)
    if not value.isascii():
        check_text(name, value)
    return value


def check_text(name: str, value: str) -> None:
    """Raises ValueError for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise UserError(f"{name!r} holds {half}, half a character") from None


_TYPES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}

# NEEDIMPORT
