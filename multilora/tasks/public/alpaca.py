"""Read Alpaca's records, {instruction, input, output}, from a JSON array or JSON lines."""

from pathlib import Path
from typing import Any

from multilora.tasks.public import files, hub
from multilora.tasks.public.records import Loaded, Record, Table

FAMILY = "instruction"
# A file with one of these names holds that split, and no split is carved out of it.
NAMED = {"test": "test", "validation": "validation", "val": "validation"}
HUB_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


def load(path: Path, task: str) -> Loaded:
    """Load the records of a file as one task."""
    text, sha256 = files.read_text(path)
    records = files.parse_rows(path, files.json_rows(path, text), record)
    return Loaded([file_table(path, task, records)], {str(path): sha256})


def file_table(path: Path, task: str, records: list[Record]) -> Table:
    """Table of one file: training records, unless the file is named after another split."""
    split = NAMED.get(path.stem, "train")
    return Table(task, FAMILY, {split: records}, carve=split == "train")


def load_hub(name: str, task: str) -> Loaded:
    """Load the splits of a data set on the hub as one task."""
    loaded = hub.load_splits(name, config=None, wanted=HUB_SPLITS, parse=record)
    return Loaded([Table(task, FAMILY, loaded.splits)], loaded.files, loaded.notes)


def record(row: Any) -> Record:
    """Record of one row, whose answer is its output."""
    return instruction_record(row, files.string(row, "output"))


def instruction_record(row: Any, answer: str, options: tuple[str, ...] | None = None) -> Record:
    """Record with Alpaca's prompt for the row's instruction and input; the answer is stripped.

    An input of white space only counts as no input.
    """
    fields = {"instruction": files.string(row, "instruction")}
    given = files.string(row, "input")
    if not given.strip():
        return Record("alpaca_no_input", fields, answer.strip(), options)
    return Record("alpaca", fields | {"input": given}, answer.strip(), options)
