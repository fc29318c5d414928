"""Read records from text files; errors name the file and the line."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from analysis import UserError

Row = TypeVar("Row")
Result = TypeVar("Result")

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_text(path: Path) -> tuple[str, str]:
    """Return the text of a UTF-8 file, without a byte order mark, and the SHA-256 of its bytes.

    Raises UserError if the path is not a file, or if the file is empty or not UTF-8.
    """
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; expected a file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = b"\xef\xbb\xbf"  # the byte order mark, which error.start does not count
        at = error.start + (len(mark) if data.startswith(mark) else 0)
        line = data.count(b"\n", 0, at) + 1
        raise UserError(
            f"{path}, line {line}: byte {at} ({data[at]:#04x}) is not UTF-8; expected a file "
            "in that encoding"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; expected records")
    return text, hashlib.sha256(data).hexdigest()


def children(directory: Path) -> list[Path]:
    """Return the paths in a directory, sorted by name, without hidden ones.

    Raises UserError if the path is not a directory, or if the directory is empty.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {what}; expected a directory")
    visible = [path for path in directory.iterdir() if not path.name.startswith(".")]
    if not visible:
        raise UserError(f"{directory} is an empty directory; expected files")
    return sorted(visible, key=lambda path: (path.name.lower(), path.name))


def parse_rows(
    place: object,
    rows: Iterable[tuple[int, Row]],
    parse: Callable[[Row], Result],
    unit: str = "line",
) -> list[Result]:
    """Parse every row; a ValueError of `parse` becomes a UserError that names the row.

    place: path of the file or name of the data set, for messages
    rows: (number, row) pairs
    parse: turns one row into a value
    unit: name of what the numbers count, for messages

    Raises UserError if there are no rows.
    """
    results = []
    for number, row in rows:
        try:
            results.append(parse(row))
        except ValueError as error:
            raise UserError(f"{place}, {unit} {number}: {error}") from None
    if not results:
        raise UserError(f"{place} has no records; expected at least one")
    return results


def json_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each element of a JSON array, or for each line of JSON lines.

    Blank lines are skipped. Raises UserError, with the line, if the text is not JSON.
    """
    start = _after_space(text, 0)
    rows = _elements(text, start) if text.startswith("[", start) else _lines(text)
    try:
        yield from rows
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: {error.msg}, column {error.colno}; "
            "expected a JSON array of records, or one record per line"
        ) from None
    except (ValueError, RecursionError) as error:  # a number with too many digits, deep nesting
        raise UserError(f"{path}: {error}") from None


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each element of the JSON array whose bracket is at `start`."""
    at, line, counted = _after_space(text, start + 1), 1, 0
    more = not text.startswith("]", at)
    while more:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _DECODER.raw_decode(text, at)
        yield line, value
        at = _after_space(text, at)
        more = text.startswith(",", at)
        if more:
            at = _after_space(text, at + 1)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    end = _after_space(text, at + 1)
    if end < len(text):
        raise json.JSONDecodeError("Text after the array", text, end)


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each line that is not blank; only a line feed ends a line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line)
        except json.JSONDecodeError as error:
            error.lineno = number
            raise


def _after_space(text: str, at: int) -> int:
    """Position of the first character from `at` on that is not white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) for each row, every cell as text; blank lines are skipped.

    Raises UserError, with the line, if the text is not CSV.
    """
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
    """Return `row[name]`; raise UserError if it is missing or of another type than `kind`."""
    if not isinstance(row, dict):
        raise UserError(f"{_TYPES[type(row)]}; expected an object with the field {name!r}")
    if name not in row:
        fields = f"the fields are {', '.join(row)}" if row else "the object is empty"
        raise UserError(f"field {name!r} is missing; {fields}")
    value = row[name]
    if not isinstance(value, kind):
        raise UserError(f"{name!r} is {_TYPES[type(value)]}; expected {_TYPES[kind]}")
    return value


def string(row: Any, name: str) -> str:
    """Return the string `row[name]`; raise UserError as `field` and `check_text` do."""
    value = field(row, name, str)
    if not value.isascii():
        check_text(name, value)
    return value


def check_text(name: str, value: str) -> None:
    """Raise UserError if a text has half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise UserError(
            f"{name!r} contains {half}, half a character; expected text that UTF-8 can hold"
        ) from None


_TYPES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
