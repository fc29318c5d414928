"""Write results to disk, each file whole or not at all, and read them back.

The results of `spectrum.analyse` are three files: spectrum.csv (the rows), spectra.safetensors
(the singular values) and record.json (command, arguments, versions, hashes of the inputs and of the
other files). They are replaced together.

    store.save(directory, spectra, store.record(command, paths, arguments))
    spectra, record = store.load(directory)
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as deserialised
from safetensors.numpy import save as serialised

from analysis import CheckpointError, UserError, __version__
from analysis.files import exchange
from analysis.files.regular import is_plain
from analysis.results import COLUMNS, FUNCTION, HILL, Row, Spectra, columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.checkpoint import Run

# The columns of a table of spectra that hold text and integers; all others hold floats.
TEXT = ("key", "run", "method", "module", "kind", "part", "algorithm")
WHOLE = (
    "step", "layer", "d_out", "d_in", "r", "capacity", "rank",
    "energy_rank_50", "energy_rank_90", "energy_rank_99", "outliers", "above_floor",
)  # fmt: skip
TABLE, SPECTRA, RECORD = "spectrum.csv", "spectra.safetensors", "record.json"
START = 4096  # bytes of a file in which the mark of who made it must stand
FILES = "files"  # key in record.json: file name -> SHA-256 of the files of the result
# Text that a spreadsheet takes for a formula, or that begins with such text after apostrophes.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def record(command: str, read: "Iterable[Path | Run]", arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a result: command, arguments, versions, seed, SHA-256 of the inputs.

    read: the checkpoints and models from which the result was computed.
    """
    # Imported here, so that writing a file does not need every format of checkpoints.
    from analysis import checkpoint
    from analysis.numerics import null

    inputs = {}
    for path in read:
        for file in checkpoint.inputs(path):
            with file.open("rb") as opened:
                inputs[str(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    return {
        "command": command,
        "arguments": arguments,
        "versions": versions(),
        "seed": null.SEED,
        "inputs": inputs,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and the libraries that compute its results."""
    import platform

    libraries = ("numpy", "ml_dtypes", "safetensors", "scipy", "torch")
    return {
        "python": platform.python_version(),
        "multilora": __version__,
        **{library: _version(library) for library in libraries},
    }


def _version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(
    directory: str | Path,
    spectra: Spectra,
    record: dict[str, Any],
    tables: Mapping[str, str] | None = None,
) -> None:
    """Write spectra, their record and further tables into `directory`, as `write` does."""
    notes = {"skipped": spectra.skipped, "other": spectra.other}
    texts = {TABLE: csv_text(spectra.rows, columns(spectra.rows)), **(tables or {})}
    write(directory, {SPECTRA: spectra.s}, texts, {**record, **notes})


def write(
    directory: str | Path,
    tensors: Mapping[str, dict[str, np.ndarray]],
    tables: Mapping[str, str],
    record: dict[str, Any],
    stale: Iterable[str] = (),
) -> None:
    """Replace a result in `directory`, which is created if need be: all of its files or none.

    tensors: file name -> arrays by name, written as safetensors.
    tables: file name -> text.
    record: written as record.json, with the SHA-256 of each of these files as FILES.
    stale: names of further files to remove. What an earlier result of the same command left behind
        and this one lacks is removed too, unless it was edited.

    Raises ValueError, before any file is replaced, if the record holds NaN.
    """
    contents = {name: serialised(arrays) for name, arrays in tensors.items()}
    contents |= {name: text.encode() for name, text in tables.items()}
    files = {name: _sha256(content) for name, content in contents.items()}
    contents[RECORD] = (strict_json({**record, FILES: files}) + "\n").encode()
    out = Path(directory)
    before = _earlier(out, record.get("command"))
    with exchange.replacing(out, stale=({*before, *stale} - contents.keys())) as new:
        for name, content in contents.items():
            (new / name).write_bytes(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _earlier(out: Path, command: str | None) -> list[str]:
    """Return the files of an earlier result of a command that are as its record describes them."""
    try:
        record = json.loads(exchange.read_bytes(out, RECORD))
        files = dict(record[FILES]) if record["command"] == command else {}
        return [
            name
            for name, known in files.items()
            if is_plain(name)
            and (out / name).is_file()
            and _sha256((out / name).read_bytes()) == known
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def load(directory: str | Path) -> tuple[Spectra, dict[str, Any]]:
    """Return the spectra and the record that `save` wrote into `directory`.

    While another process replaces the result, the old or the new one is returned. Raises
    CheckpointError if one of the files is missing, damaged, cut short or not the one whose SHA-256
    is in the record, or if table and arrays do not belong together. Results of version 0.1, whose
    record has no SHA-256, are read.
    """
    out = Path(directory)
    while True:
        content = b""
        try:
            content = exchange.read_bytes(out, RECORD)
            return _loaded(out, content)
        except (OSError, ValueError, SafetensorError, RecursionError) as error:
            if _is_current(out, content):
                raise CheckpointError(f"{out}: not the results of an analysis: {error}") from None


def _is_current(out: Path, content: bytes) -> bool:
    """Return whether `content` is that of record.json, or there is none."""
    try:
        return exchange.read_bytes(out, RECORD) == content
    except OSError:
        return True


def _loaded(out: Path, content: bytes) -> tuple[Spectra, dict[str, Any]]:
    """Return spectra and record; content: of record.json. Raises ValueError if they do not fit."""
    record = json.loads(content)
    if not isinstance(record, dict) or not {"skipped", "other"} <= record.keys():
        raise ValueError(f"{RECORD}: is not the record of spectra")
    skipped, other = record.pop("skipped"), record.pop("other")
    files = record.pop(FILES, None)
    contents = {name: exchange.read_bytes(out, name) for name in (TABLE, SPECTRA)}
    table = _parsed(TABLE, contents[TABLE])
    try:
        arrays = deserialised(contents[SPECTRA])
    except (KeyError, TypeError) as error:  # a dtype that numpy lacks
        raise ValueError(f"{SPECTRA}: {error}") from None
    keys = [row["key"] for row in table]
    if sorted(keys) != sorted(arrays):
        raise ValueError(
            f"{TABLE} has {len(keys)} rows, {SPECTRA} has {len(arrays)} spectra;"
            " expected the same keys in both"
        )
    if files is not None:  # results of version 0.1 have none
        _check_files(files, contents)
    return Spectra(table, {key: arrays[key] for key in keys}, skipped, other), record


def _check_files(files: object, contents: Mapping[str, bytes]) -> None:
    """Raise ValueError unless `files` has the SHA-256 of the contents by name."""
    if not isinstance(files, dict):
        raise ValueError(f"{RECORD}: {FILES} is a {type(files).__name__}; expected an object")
    for name, content in contents.items():
        if name not in files:
            raise ValueError(f"{RECORD}: is the record of another result, which has no {name}")
        if files[name] != _sha256(content):
            raise ValueError(
                f"{name}: is not the file that {RECORD} describes (its SHA-256 differs): it was"
                " edited or damaged; run the command again"
            )


def rows(path: Path) -> list[Row]:
    """Return the rows of a table of spectra, keyed by `results.columns`.

    The columns HILL, which older tables lack, may be missing.

    Raises ValueError, naming the file, if it is cut short or is not such a table.
    """
    return _parsed(path.name, path.read_bytes())


def _parsed(name: str, content: bytes) -> list[Row]:
    """Return the rows of a table of spectra; raise ValueError, naming the file, as `rows`."""
    text = content.decode("utf-8")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _rows(reader, text, name)
    except csv.Error as error:
        raise ValueError(f"{name}: line {reader.line_num}: {error}") from None


def _rows(reader: "csv.DictReader[str]", text: str, name: str) -> list[Row]:
    named = reader.fieldnames or ()
    missing = [column for column in COLUMNS if column not in (*named, *HILL)]
    if missing:
        raise ValueError(f"{name}: has no column {missing[0]}; expected a table of spectra")
    wanted = (*COLUMNS, *FUNCTION) if FUNCTION[0] in named else COLUMNS
    table = []
    for cells in reader:
        try:
            table.append(_row(dict.fromkeys(HILL, "") | cells, wanted))
        except ValueError as error:
            raise ValueError(f"{name}: line {reader.line_num}: {error}") from None
    if not text.endswith("\n"):
        raise ValueError(f"{name}: line {reader.line_num}: is cut short; expected a whole line")
    return table


def _row(cells: Mapping[str, str | None], wanted: Sequence[str]) -> Row:
    """Return the cells of one line as a row; ValueError if some are missing or not numbers."""
    row: Row = {}
    for column in wanted:
        cell = cells.get(column)
        if cell is None:  # as csv fills up a line that is too short
            raise ValueError(f"is cut short before {column}; expected a whole line")
        if cell == "":
            row[column] = None
        elif column in TEXT:
            row[column] = plain_text(cell)
        else:
            row[column] = int(cell) if column in WHOLE else float(cell)
    return row


def csv_text(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Return the rows as CSV with a header; a number that is undefined is an empty cell.

    Text that a spreadsheet would take for a formula gets a leading apostrophe, which `plain_text`
    removes; numbers stay as they are.

    >>> csv_text([{"kind": "q_proj", "gini": -0.5}, {"kind": "=up", "gini": None}],
    ...          columns=("kind", "gini")).splitlines()
    ['kind,gini', 'q_proj,-0.5', "'=up,"]
    """
    text, lines = io.StringIO(newline=""), []
    # With this end of a line, both of its characters are quoted in a cell.
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        lines.append(_taken(text))
        writer.writerow({column: _neutralised(cell) for column, cell in row.items()})
    return "".join([*lines, _taken(text)])


def _taken(text: io.StringIO) -> str:
    """Return the line in a buffer, with a plain end of a line, and empty the buffer."""
    line = text.getvalue().removesuffix("\r\n")
    text.seek(0)
    text.truncate()
    return f"{line}\n"


def _neutralised(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula; only text is changed."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def plain_text(cell: str) -> str:
    """Return the text that `csv_text` wrote as `cell`.

    >>> [plain_text(cell) for cell in ("'=up", "''=up", "'up", "-0.5")]
    ['=up', "'=up", "'up", '-0.5']
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def strict_json(value: Any) -> str:
    """Return `value` as JSON in ASCII; ValueError for NaN or Inf, which JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 with `replace`."""
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_target(
    path: Path, is_ours: Callable[[bytes], bool], option: str, *, force: bool | None
) -> None:
    """Raise UserError if a file that is made of results must not be written to `path`.

    It must not lie in a directory that does not exist, nor replace a directory or, without `force`,
    a file of somebody else.

    is_ours: whether a file that begins with these bytes, START of them, was made by this tool.
    option: that gave the path.
    force: whether --force was given; None if there is no such option.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a directory; expected the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no directory {path.parent}; make it first")
    if force or not os.path.lexists(path):
        return
    if not path.is_file():
        raise UserError(f"{option} {path}: is not a file; expected the name of one")
    with path.open("rb") as file:
        if not is_ours(file.read(START)):
            forcible = "" if force is None else ", or pass --force to replace it"
            raise UserError(
                f"{option} {path}: exists and was not made by this tool; choose another name"
                f"{forcible}"
            )


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file, then rename it to `path`.

    A reader sees the old file or the new one, never a part; if `write` fails, the old file stays
    and the temporary one is removed. What a killed process left behind for the same file is removed
    too. The temporary file lies in the directory of `path`, which must
    exist. Its name is unique to this process and thread, and does not keep the suffix of `path`: a
    writer that chooses its format by the suffix (numpy.savez, matplotlib) must be told the format
    or given an open file.
    """
    exchange.remove_left_behind(path)
    temporary = exchange.temporary(path)
    exchange.remove(temporary)  # a link there would be followed
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # after the renaming there is nothing to remove
            temporary.unlink()


def save_figure(figure: "Figure", stem: Path) -> None:
    """Write stem.png and stem.pdf, renamed into place; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        draw = partial(figure.savefig, dpi=150, format=kind, metadata=metadata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that no font has
            replace(stem.parent / f"{stem.name}.{kind}", draw)
