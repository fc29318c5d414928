"""LLM-Adapters' records (AGI-Edgerunners/LLM-Adapters): {instruction, input, output, answer}.

commonsense_170k.json, math_10k.json and the test files beside them. The gold is `answer`; what
`output` says beside it, a sentence or a chain of thought, is not trained on. Where the
instruction states a closed set, `Answer format: true/false` or `Answer Choices: (A) … (B) …`, the
options are that set.
"""

import math
import re
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.tasks.public import alpaca, files, hub
from multilora.tasks.public.records import Loaded, Record, Table


def load(path: Path, task: str) -> Loaded:
    """The file's records, for training unless its name is that of another split."""
    text, sha256 = files.read_text(path)
    records = files.parsed(path, files.json_rows(path, text), record)
    table = alpaca.of_file(path, task, records)
    return Loaded([table], {str(path): sha256}, _notes(table))


def load_hub(name: str, task: str) -> Loaded:
    """The splits of a data set on the hub."""
    found = hub.read(name, None, alpaca.HUB_SPLITS, record)
    table = Table(task, alpaca.FAMILY, found.splits)
    return Loaded([table], found.files, [*found.notes, *_notes(table)])


def record(row: Any) -> Record:
    """One row; an answer outside the set that the instruction states makes it free text."""
    answer = _answer(files.field(row, "answer", object))
    options = stated_options(files.string(row, "instruction"))
    return alpaca.instructed(row, answer, options if answer in options else None)


def stated_options(instruction: str) -> tuple[str, ...]:
    """The closed set that the instruction says to answer from; empty where it says none."""
    _, found, stated = instruction.rpartition("Answer format:")
    if found:
        options = tuple(stated.strip().split("/"))
        distinct = len(set(options)) == len(options) > 1
        return options if distinct and all(re.fullmatch(r"\w+", o) for o in options) else ()
    _, found, stated = instruction.rpartition("Answer Choices:")
    letters = "".join(dict.fromkeys(re.findall(r"\(([A-J])\)", stated))) if found else ""
    return tuple(letters) if len(letters) > 1 and "ABCDEFGHIJ".startswith(letters) else ()


def _answer(value: object) -> str:
    """An answer as text: a string, a number (24.0 is 24), or a list of one of these."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        files.check_text("answer", value)
        return value.strip()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value == int(value) else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"'answer' is {value!r}; expected a string, a number or a list of one")


def _notes(table: Table) -> list[str]:
    outside = sum(
        record.options is None and bool(stated_options(record.fields["instruction"]))
        for records in table.splits.values()
        for record in records
    )
    if not outside:
        return []
    return [
        f"{table.task}: {outside} answers are not in the set that the instruction states; "
        "kept as free text"
    ]
