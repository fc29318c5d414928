"""Read and write result tables; refuse a CSV file whose hash differs from record.json.

The claims are judged from these tables, so an edited table would change a verdict.
"""

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import UserError, store
from analysis.files import exchange
from analysis.files.regular import is_plain
from analysis.results import Row
from multilora import record

AGAIN = "make it again with python -m multilora.reproduce"
HASHES = "tables"  # key in record.json: file name -> SHA-256
# The keys of record.json that are read, and the types of their values.
KINDS = {
    HASHES: dict,
    "arguments": dict,
    "base_scores": dict,
    "environment": dict,
    "methods": dict,
    "runs": dict,
    "trained_on": list,
}
BLOCKS = "blocks"  # the directory of the blocks in a directory of results
# What claims on the benefit of training are judged by: the share of right answers, or the loss.
SCORE, LOSS = "score", "nll"
# Columns of text, even if a value looks like a number.
TEXT = (
    "method",
    "method_a",
    "method_b",
    "measure",
    "reference",
    "setting",
    "kind",
    "side",
    "axis",
    "adapter",
    "module",
    "part",
    "part_a",
    "part_b",
    "layer",
    "task_a",
    "task_b",
    "trained_on",
    "model",
)
# The tables that claims are judged from, and the columns that each must have.
COLUMNS = {
    "methods": ("method", "seed", "k", "top_share_1", "top_share_1_above_null", "score"),
    "dynamics": ("method", "seed", "step", "top_share_1", "effective_rank_k"),
    "overlap": ("method", "seed", "n", "left_phi_k", "right_phi_k"),
    "nearness": ("method", "seed", "reference", "k", "left_phi_k", "right_phi_k"),
    "sweep": ("method", "learning_rate", "score_validation", "top_share_1", "chosen"),
    "llama_budget": ("model", "n", "r", "share"),
    "grid": ("setting", "value", "seed", "method", "top_share_1", "effective_rank_k"),
    "cuts": ("method", "seed", "kind", "k", "score"),
    "rounding_floor": ("ratio", "effective_rank", "effective_rank_true", "above_floor_share"),
    "wild": ("adapter", "step", "module", "kind", "r", "top_share_1", "null_top_share_1"),
}


@dataclass(frozen=True)
class Tables:
    """The tables of a results directory.

    rows: name of the table -> its rows; an empty cell is None.
    record: the record of what made them.
    notes: sentences on tables that are missing or of unknown origin.
    """

    rows: Mapping[str, Sequence[Row]]
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def judged_by(self) -> str:
        """SCORE or LOSS, as the record says; SCORE if it does not."""
        return str(self.record.get("arguments", {}).get("judged_by") or SCORE)

    def of(self, name: str) -> Sequence[Row]:
        """Return the rows of a table; no rows if it is missing."""
        return self.rows.get(name, ())


def write(
    directory: Path,
    rows_of: Mapping[str, Sequence[Row]],
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Replace tables by name and record.json, which has their SHA-256: all of them or none.

    A table without rows is removed: a file left over from an earlier run is not a result.
    made_by: the record; by default the one that is there.
    """
    made_by = _record(directory) if made_by is None else made_by
    texts = as_texts(rows_of)
    gone = {f"{name}.csv" for name in rows_of} - texts.keys()
    known = {name: sha for name, sha in made_by.get(HASHES, {}).items() if name not in gone}
    made_by = {**made_by, HASHES: known | sha256_of(texts)}
    texts[store.RECORD] = record.json_text(made_by)
    with exchange.replacing(directory, stale=gone) as new:
        for name, text in texts.items():
            (new / name).write_bytes(text.encode())


def as_texts(rows_of: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Return {file name: CSV} of the tables that have rows."""
    return {
        f"{name}.csv": store.csv_text(rows, list(rows[0])) for name, rows in rows_of.items() if rows
    }


def sha256_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Return {file name: SHA-256} of tables as text, which record.json has as HASHES."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def hashes(directory: Path) -> dict[str, str]:
    """Return {file name: SHA-256} of the tables in record.json whose files exist.

    Empty if there is no record.json.
    """
    exchange.complete(directory)
    known = _record(directory).get(HASHES, {}) if (directory / store.RECORD).is_file() else {}
    return {
        name: sha256
        for name, sha256 in known.items()
        if is_plain(name) and (directory / name).is_file()
    }


def judged_by(directory: Path) -> str:
    """Return what the claims of the results in a directory go by; SCORE without a record."""
    if not (directory / store.RECORD).is_file():
        return SCORE
    return Tables({}, _record(directory)).judged_by


def load(directory: str | Path) -> Tables:
    """Read the tables in COLUMNS that exist in `directory`.

    Raises UserError if record.json is missing or from another version, a table was edited, or a
    table lacks a column.
    """
    return _load(Path(directory), COLUMNS)


def load_all(directory: Path) -> Tables:
    """Read all tables that record.json names; raises UserError as `load`."""
    names = [name.removesuffix(".csv") for name in _hashes(directory) if is_plain(name)]
    return _load(directory, {name: COLUMNS.get(name, ()) for name in names})


def _load(out: Path, columns: Mapping[str, Sequence[str]]) -> Tables:
    """Read the tables of these names that exist; columns: what each must have."""
    made_by, known_hashes = _record(out), _hashes(out)
    rows: dict[str, list[Row]] = {}
    notes = []
    for name, needed in columns.items():
        file = out / f"{name}.csv"
        known = known_hashes.get(file.name)
        try:
            content = exchange.read_bytes(out, file.name)
        except OSError:
            content = None
        if content is not None:
            if known is None:
                notes.append(f"{file.name} is not in {store.RECORD}; its origin is unknown.")
            elif hashlib.sha256(content).hexdigest() != known:
                raise UserError(
                    f"{file}: was edited: its SHA-256 is not the one in {store.RECORD}; restore"
                    f" it, or {AGAIN}"
                )
            rows[name] = parsed(file, content, needed)
        elif known is not None:
            notes.append(f"{file.name} is in {store.RECORD} but missing; its claims lack evidence.")
    return Tables(rows, made_by, tuple(notes))


def _hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of the tables by file name; UserError if record.json does not hold any."""
    made_by = _record(directory)
    if HASHES not in made_by:
        raise UserError(
            f"{directory / store.RECORD}: holds no SHA-256 of tables: another version wrote it;"
            f" {AGAIN}"
        )
    return dict(made_by[HASHES])


def _record(directory: Path) -> dict[str, Any]:
    """Read record.json; raise UserError if it is missing or not a JSON object."""
    file = directory / store.RECORD
    try:
        content = exchange.read_bytes(directory, store.RECORD)
    except OSError:
        raise UserError(
            f"{file}: missing; expected a directory of results, as figures/quick"
        ) from None
    try:
        made_by = record.json_object(content, file)
        _check(made_by, file)
    except UserError as error:
        raise UserError(f"{error}; {AGAIN}") from None
    return made_by


def _check(made_by: Mapping[str, Any], file: Path) -> None:
    """Raise UserError if a value of the record has another type than the one that is written."""
    wrong = [key for key, kind in KINDS.items() if not isinstance(made_by.get(key, kind()), kind)]
    for key in wrong:
        kind = type(made_by[key]).__name__
        expected = "an object" if KINDS[key] is dict else "a list"
        raise UserError(f"{file}: {key} is a {kind}; expected {expected}")
    for name, sha256 in made_by.get(HASHES, {}).items():
        if not isinstance(sha256, str):
            raise UserError(f"{file}: {HASHES}: {name} is {sha256!r}; expected its SHA-256")
    if other := [one for one in made_by.get("trained_on", ()) if not isinstance(one, dict)]:
        raise UserError(f"{file}: trained_on holds {other[0]!r}; expected machines")
    by = made_by.get("arguments", {}).get("judged_by", SCORE)
    if by not in (SCORE, LOSS):
        raise UserError(f"{file}: arguments: judged_by is {by!r}; expected {SCORE} or {LOSS}")
    claims = made_by.get("arguments", {}).get("claims", "")
    if claims is not None and not isinstance(claims, str):
        raise UserError(f"{file}: arguments: claims is {claims!r}; expected numbers of claims")


def parsed(file: Path, content: bytes, needed: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV file: numbers, text, and None for an empty or non-finite cell.

    file: named in errors.
    content: the bytes of the file.
    needed: columns that must exist.

    Columns in TEXT are text. Raises UserError if a column is missing or a row has more or fewer
    cells than the heading.
    """
    lines = [*csv.reader(io.StringIO(content.decode("utf-8"), newline=""))]
    heading, cells = (lines[0], lines[1:]) if lines else ([], [])
    missing = [column for column in needed if column not in heading]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}: another version wrote it; {AGAIN}")
    if other := {len(line) for line in cells} - {len(heading)}:
        raise UserError(
            f"{file}: rows have {', '.join(map(str, sorted(other)))} cells; expected"
            f" {len(heading)}, as the heading; {AGAIN}"
        )
    return [
        {name: _cell(name, text) for name, text in zip(heading, line, strict=True)}
        for line in cells
    ]


def _cell(column: str, text: str) -> str | int | float | None:
    """Return text for a column in TEXT, else a number if it is one; None if empty or not finite."""
    if text == "":
        return None
    if column in TEXT:
        return store.plain_text(text)
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return store.plain_text(text)
