"""Tasks from public formats: what `--tasks alpaca:PATH,mmlu:DIR,superglue:DIR` names.

KIND:PATH reads files, KIND:hub:NAME a data set of the Hugging Face hub. A kind that is one task
can be given a name, NAME=KIND:PATH, so that two files of a kind can be mixed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from analysis import UserError
from multilora.tasks.example import SPLITS, Example
from multilora.tasks.public import alpaca, curation, llm_adapters, mmlu, superglue
from multilora.tasks.public.records import Loaded

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
    """Examples of every split, lines about what was left out, and SHA-256 of each file read."""

    examples: dict[str, list[Example]]
    notes: list[str]
    files: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        """Their names, in order of first appearance."""
        return list(self.family_of)

    @property
    def family_of(self) -> dict[str, str]:
        """Task → family."""
        return {e.task: e.family for split in SPLITS for e in self.examples[split]}


class Part(NamedTuple):
    """One `NAME=KIND:PATH` of a specification; name is the kind unless given."""

    name: str
    kind: str
    path: str


def load(spec: str) -> Source:
    """The examples of everything that `spec` names; the same at every call.

    Raises ValueError, with file and line, for what cannot be read, and for two tasks of one name.
    """
    loaded = [_load(part) for part in parse(spec)]
    examples, notes = curation.examples([table for one in loaded for table in one.tables])
    return Source(
        examples,
        [note for one in loaded for note in one.notes] + notes,
        {path: sha256 for one in loaded for path, sha256 in one.files.items()},
    )


def parse(spec: str) -> list[Part]:
    """The parts of a specification. Raises ValueError where it is none."""
    return [_part(text.strip()) for text in spec.split(",")]


def _part(text: str) -> Part:
    kinds = [*ONE_TASK, *MANY_TASKS]
    head, _, path = text.partition(":")
    name, named, kind = head.rpartition("=")
    if not path:
        raise UserError(
            f"tasks: {text!r} is no KIND:PATH, kinds are {', '.join(kinds)}; a path that holds a "
            "comma cannot be given"
        )
    if kind not in kinds:
        raise UserError(f"tasks: {text!r}: kind is {kind!r}; expected one of {', '.join(kinds)}")
    if named and kind in MANY_TASKS:
        raise UserError(f"tasks: {text!r}: {kind} names its own tasks; expected {kind}:{path}")
    if named and not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"tasks: {text!r}: the name is {name!r}; expected letters and digits")
    return Part(name or kind, kind, path)


def _load(part: Part) -> Loaded:
    hub = part.path.removeprefix("hub:") if part.path.startswith("hub:") else ""
    if part.kind in ONE_TASK:
        load, load_hub = ONE_TASK[part.kind]
        return load_hub(hub, part.name) if hub else load(Path(part.path), part.name)
    load_all, load_all_hub = MANY_TASKS[part.kind]
    return load_all_hub(hub) if hub else load_all(Path(part.path))
