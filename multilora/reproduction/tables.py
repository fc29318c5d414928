"""Tables of results on disk: CSV files whose SHA-256 is in the record.json beside them.

`read` refuses a table that is not what was written; what is judged is what was measured.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import UserError, store
from analysis.results import Row
from multilora import record

AGAIN = "make it again with python -m multilora.reproduce"
HASHES = "tables"  # in record.json: file name -> SHA-256
# Columns that hold words, also where a word looks like a number.
TEXT = ("method", "reference", "setting", "kind", "adapter", "module", "part", "model")
# The tables that are read, and the columns without which they are another version's.
COLUMNS = {
    "methods": ("method", "seed", "k", "top_share_1", "top_share_1_above_null", "score"),
    "overlap": ("method", "seed", "n", "overlap_above_chance"),
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
    """What a results directory holds.

    rows: name of the table -> its rows, None where a cell is empty; record: what made them;
    notes: what a reader should know of how complete they are.
    """

    rows: Mapping[str, Sequence[Row]]
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> Sequence[Row]:
        """The rows of a table; none where it is not there."""
        return self.rows.get(name, ())


def write(directory: Path, rows_of: Mapping[str, Sequence[Row]]) -> None:
    """Write tables by name, and their SHA-256 into the record.json that is there.

    A table without rows is taken away: what is left of an earlier run is not a result.
    """
    made_by = _record(directory)
    hashes = dict(made_by.get(HASHES, {}))
    for name, rows in rows_of.items():
        file = directory / f"{name}.csv"
        if rows:
            text = store.csv_text(rows, list(rows[0]))
            store.write_text(file, text)
            hashes[file.name] = hashlib.sha256(text.encode()).hexdigest()
        else:
            file.unlink(missing_ok=True)
            hashes.pop(file.name, None)
    record.write_json(directory / store.RECORD, {**made_by, HASHES: hashes})


def hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 that the directory's record.json holds; none where there is none yet."""
    known = _record(directory).get(HASHES, {}) if (directory / store.RECORD).is_file() else {}
    return {name: mark for name, mark in known.items() if (directory / name).is_file()}


def load(directory: str | Path) -> Tables:
    """The tables that claims are judged from, those of COLUMNS that are there.

    Raises ValueError, which says what to do, where record.json is absent or another version's, a
    table was edited, or a table lacks a column.
    """
    out = Path(directory)
    made_by = _record(out)
    if HASHES not in made_by:
        raise UserError(
            f"{out / store.RECORD}: holds no SHA-256 of tables: another version wrote it; {AGAIN}"
        )
    rows: dict[str, list[Row]] = {}
    notes = []
    for name in COLUMNS:
        file = out / f"{name}.csv"
        known = made_by[HASHES].get(file.name)
        if file.is_file():
            content = file.read_bytes()
            if known is None:
                notes.append(f"{file.name} is not in {store.RECORD}: nothing says what made it.")
            elif hashlib.sha256(content).hexdigest() != known:
                raise UserError(
                    f"{file}: was edited: its SHA-256 is not the one in {store.RECORD}; restore"
                    f" it, or {AGAIN}"
                )
            rows[name] = parsed(file, content, COLUMNS[name])
        elif known is not None:
            notes.append(f"{file.name} was made and is not here; what rests on it is not measured.")
    return Tables(rows, made_by, tuple(notes))


def _record(directory: Path) -> dict[str, Any]:
    file = directory / store.RECORD
    try:
        made_by = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file}: is not there; expected a directory of results, as figures/quick"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON ({error}); {AGAIN}") from None
    if not isinstance(made_by, dict):
        raise UserError(f"{file}: is no object; {AGAIN}")
    return made_by


def parsed(file: Path, content: bytes, needed: Sequence[str]) -> list[Row]:
    """The rows of a CSV file's content: numbers, text, and None for what is empty or not finite.

    Columns of TEXT hold words whatever they look like. Raises ValueError, naming the file, where a
    column of `needed` is not there, or a row is of another length than the heading.
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
    """A number where the text is one and may be; None where it is empty or not finite."""
    if text == "":
        return None
    if column in TEXT:
        return text
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else None
    return text
