"""Alpaca's records, {instruction, input, output}: a JSON array or JSON lines."""

from pathlib import Path
from typing import Any

from multilora.tasks.public import files, hub
from multilora.tasks.public.records import Loaded, Record, Table

FAMILY = "instruction"
# A file of such a name holds that split, and none is made out of it.
NAMED = {"test": "test", "validation": "validation", "val": "validation"}
HUB_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


def load(path: Path, task: str) -> Loaded:
    """The file's records, for training unless its name is that of another split."""
    text, sha256 = files.read_text(path)
    records = files.parsed(path, files.json_rows(path, text), record)
    return Loaded([of_file(path, task, records)], {str(path): sha256})


def of_file(path: Path, task: str, records: list[Record]) -> Table:
    """The records of one file: test.json is the test split, any other is carved."""
    split = NAMED.get(path.stem, "train")
    return Table(task, FAMILY, {split: records}, carve=split == "train")


def load_hub(name: str, task: str) -> Loaded:
    """The splits of a data set on the hub."""
    found = hub.read(name, None, HUB_SPLITS, record)
    return Loaded([Table(task, FAMILY, found.splits)], found.files, found.notes)


def record(row: Any) -> Record:
    """One row; its instruction as prompt, with the input where there is one."""
    return instructed(row, files.string(row, "output"))


def instructed(row: Any, answer: str, options: tuple[str, ...] | None = None) -> Record:
    """Alpaca's prompt of a row's instruction and input, with the answer stripped."""
    fields = {"instruction": files.string(row, "instruction")}
    given = files.string(row, "input")
    if not given.strip():
        return Record("alpaca_no_input", fields, answer.strip(), options)
    return Record("alpaca", fields | {"input": given}, answer.strip(), options)
