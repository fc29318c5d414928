"""Read the records of AGI-Edgerunners/LLM-Adapters, {instruction, input, output, answer}.

These are commonsense_170k.json, math_10k.json and the test files next to them. The right answer is
`answer`; `output`, a sentence or a chain of thought, is not trained on. If the instruction states
a closed set of answers (`Answer format: true/false` or `Answer Choices: (A) … (B) …`), the options
are that set.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.tasks.public import alpaca, files, hub
from multilora.tasks.public.records import Loaded, Record, Table


def load(path: Path, task: str) -> Loaded:
    """Load the records of a file, or of the files of a directory, as one task."""
    loaded = alpaca.load_files(path, task, record)
    return replace(loaded, notes=[*loaded.notes, *_notes(loaded.tables[0])])


def load_hub(name: str, task: str) -> Loaded:
    """Load the splits of a data set on the hub as one task."""
    loaded = hub.load_splits(name, config=None, wanted=alpaca.HUB_SPLITS, parse=record)
    table = Table(task, alpaca.FAMILY, loaded.splits)
    return Loaded([table], loaded.files, [*loaded.notes, *_notes(table)])


def record(row: Any) -> Record:
    """Record of one row; free text if its answer is not among the options stated."""
    answer = _answer(files.field(row, "answer", object))
    options = stated_options(files.string(row, "instruction"))
    return alpaca.instruction_record(row, answer, options if answer in options else None)


def stated_options(instruction: str) -> tuple[str, ...]:
    """Closed set of answers that the instruction states; empty if it states none.

    >>> stated_options("Is tin soft? Answer format: true/false")
    ('true', 'false')
    >>> stated_options("2 + 2? Answer Choices: (A) 4 (B) 5")
    ('A', 'B')
    """
    _, marker, stated = instruction.rpartition("Answer format:")
    if marker:
        options = tuple(stated.strip().split("/"))
        distinct = len(set(options)) == len(options) > 1
        return options if distinct and all(re.fullmatch(r"\w+", o) for o in options) else ()
    _, marker, stated = instruction.rpartition("Answer Choices:")
    letters = "".join(dict.fromkeys(re.findall(r"\(([A-J])\)", stated))) if marker else ""
    return tuple(letters) if len(letters) > 1 and "ABCDEFGHIJ".startswith(letters) else ()


def _answer(value: object) -> str:
    """Text of an answer: a string, a number (24.0 becomes 24), or a list of one of these."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        files.check_text("answer", value)
        return value.strip()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value == int(value) else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UserError(
        f"'answer' is {value!r}; expected a string, a number or a list with one of these"
    )


def _notes(table: Table) -> list[str]:
    """A line that counts the answers outside the options stated; nothing if there are none."""
    outside = sum(
        record.options is None and bool(stated_options(record.fields["instruction"]))
        for records in table.splits.values()
        for record in records
    )
    if not outside:
        return []
    return [
        f"{table.task}: {outside} answers are not among the options that the instruction states; "
        "kept as free text"
    ]
