"""Load tasks from public formats, as in `--tasks alpaca:PATH,mmlu:DIR,superglue:DIR`.

KIND:PATH reads files, KIND:hub:NAME a data set of the Hugging Face hub. NAME=KIND:PATH names the
task, so that two files of one kind can be mixed; a kind of many tasks becomes one task by it.
NAME@FAMILY=KIND:PATH also puts it into another family than that of its kind.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from analysis import UserError
from multilora.tasks.example import FAMILIES, SPLITS, Example
from multilora.tasks.public import alpaca, curation, llm_adapters, mmlu, superglue
from multilora.tasks.public.records import Loaded, Record, Table

ONE_TASK: dict[str, tuple[Callable[[Path, str], Loaded], Callable[[str, str], Loaded]]] = {
    "alpaca": (alpaca.load, alpaca.load_hub),
    "llm-adapters": (llm_adapters.load, llm_adapters.load_hub),
}
MANY_TASKS: dict[str, tuple[Callable[[Path], Loaded], Callable[[str], Loaded]]] = {
    "mmlu": (mmlu.load, mmlu.load_hub),
    "superglue": (superglue.load, superglue.load_hub),
}


@dataclass(frozen=True)
class Source:
    """The examples of a specification.

    examples: examples by split
    notes: lines about what was left out
    files: SHA-256 of each file that was read, by path
    """

    examples: dict[str, list[Example]]
    notes: list[str]
    files: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in order of first appearance."""
        return list(self.family_of)

    @property
    def family_of(self) -> dict[str, str]:
        """Task family of each task, in order of first appearance."""
        return {e.task: e.family for split in SPLITS for e in self.examples[split]}


class Part(NamedTuple):
    """One `NAME@FAMILY=KIND:PATH` of a specification.

    name, family: "" if they are those of the kind.
    """

    name: str
    kind: str
    path: str
    family: str


def load(spec: str) -> Source:
    """Load the examples of a specification; the same in every call.

    Raises UserError, with file and line, if a file cannot be read, and if two tasks have one name.
    """
    parts = [_load_part(part) for part in parse(spec)]
    examples, notes = curation.examples([table for part in parts for table in part.tables])
    return Source(
        examples,
        notes=[note for part in parts for note in part.notes] + notes,
        files={path: sha256 for part in parts for path, sha256 in part.files.items()},
    )


def parse(spec: str) -> list[Part]:
    """Split a specification into its parts; raise UserError if one is malformed."""
    return [_parse_part(text.strip()) for text in spec.split(",")]


def _parse_part(text: str) -> Part:
    """Parse one `KIND:PATH` or `NAME=KIND:PATH`."""
    kinds = [*ONE_TASK, *MANY_TASKS]
    head, _, path = text.partition(":")
    name, named, kind = head.rpartition("=")
    name, moved, family = name.partition("@")
    if not path:
        raise UserError(
            f"tasks: {text!r} is not KIND:PATH; expected one of the kinds {', '.join(kinds)} and a "
            "path without a comma"
        )
    if kind not in kinds:
        raise UserError(f"tasks: {text!r}: kind is {kind!r}; expected one of {', '.join(kinds)}")
    if named and not re.fullmatch(r"[\w.-]+", name):
        raise UserError(
            f"tasks: {text!r}: the name is {name!r}; expected letters, digits, '_', '.' or '-'"
        )
    if moved and family not in FAMILIES:
        raise UserError(
            f"tasks: {text!r}: the family is {family!r}; expected one of {', '.join(FAMILIES)}"
        )
    return Part(name, kind, path, family)


def _load_part(part: Part) -> Loaded:
    """Load the files or the data set of one part."""
    hub = part.path.removeprefix("hub:") if part.path.startswith("hub:") else ""
    if part.kind in ONE_TASK:
        load, load_hub = ONE_TASK[part.kind]
        name = part.name or part.kind
        loaded = load_hub(hub, name) if hub else load(Path(part.path), name)
    else:
        load_all, load_all_hub = MANY_TASKS[part.kind]
        loaded = load_all_hub(hub) if hub else load_all(Path(part.path))
        if part.name:
            loaded = replace(loaded, tables=[_joined(loaded.tables, part.name)])
    if part.family:
        moved = [replace(table, family=part.family) for table in loaded.tables]
        loaded = replace(loaded, tables=moved)
    return loaded


def _joined(tables: Sequence[Table], name: str) -> Table:
    """Return one task with the records of all, split by split."""
    splits: dict[str, list[Record]] = {}
    for table in tables:
        for split, records in table.splits.items():
            splits.setdefault(split, []).extend(records)
    return Table(name, tables[0].family, splits, carve=any(table.carve for table in tables))
