"""Read Alpaca's records, {instruction, input, output}, from a JSON array or JSON lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.tasks.public import files, hub
from multilora.tasks.public.records import Loaded, Record, Table

FAMILY = "instruction"
SUFFIXES = (".json", ".jsonl")
# A file with one of these names holds that split.
NAMED = {"test": "test", "validation": "validation", "val": "validation"}
HUB_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


def load(path: Path, task: str) -> Loaded:
    """Load the records of a file, or of the files of a directory, as one task."""
    return load_files(path, task, record)


def load_files(path: Path, task: str, parse: Callable[[Any], Record]) -> Loaded:
    """Load a task from a file, or from a directory with a file for each split.

    A file holds training records unless it is named after another split. parse: makes a record of
    a row. Raises UserError if two files hold the same split.
    """
    paths = files.children(path) if path.is_dir() else [path]
    read = [one for one in paths if one == path or one.suffix in SUFFIXES]
    notes = [f"{one}: not read; expected {', '.join(SUFFIXES)}" for one in paths if one not in read]
    if not read:
        raise UserError(f"{path} has no file of records; expected {' or '.join(SUFFIXES)}")
    splits: dict[str, list[Record]] = {}
    hashes = {}
    for file in read:
        split = NAMED.get(file.stem, "train")
        if split in splits:
            raise UserError(f"{path}: two files hold the {split} split; expected one")
        text, hashes[str(file)] = files.read_text(file)
        splits[split] = files.parse_rows(file, files.json_rows(file, text), parse)
    return Loaded([Table(task, FAMILY, splits, carve="train" in splits)], hashes, notes)


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
