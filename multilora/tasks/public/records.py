"""Records between a file and the examples: what a loader reads, and what it left out."""

from dataclasses import dataclass, field

from analysis import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One item as its file gives it.

    template: the prompt's, filled from `fields`. options: None for free text.
    text: what makes it the item it is, by which it is found again elsewhere; all fields unless
    given. group: items of one group come into one split; the item's text unless given.
    """

    template: str
    fields: dict[str, str]
    answer: str
    options: tuple[str, ...] | None = None
    text: str = ""
    group: str = ""

    @property
    def content(self) -> str:
        """What makes it the item it is."""
        return self.text or "\n".join(self.fields.values())


@dataclass(frozen=True)
class Table:
    """The records of one task by split, from one place; `carve` where lacking splits are made.

    family: one of example.FAMILIES. A split that the files lack is absent.
    """

    task: str
    family: str
    splits: dict[str, list[Record]]
    carve: bool = True


@dataclass(frozen=True)
class Loaded:
    """Tables of one place, the SHA-256 of each file read, and lines about what was not read."""

    tables: list[Table]
    files: dict[str, str]
    notes: list[str] = field(default_factory=list)


def checked(record: Record) -> Record:
    """The record, if its options are distinct texts and its answer is one; else ValueError.

    White space around them tells no two apart: answers are compared without it.
    """
    options = record.options
    if options is not None:
        if not all(option.strip() for option in options):
            raise UserError(f"an option is empty: {', '.join(map(repr, options))}")
        if len({option.strip() for option in options}) < len(options):
            raise UserError(f"two options are the same: {', '.join(map(repr, options))}")
        if record.answer not in options:
            raise UserError(f"answer {record.answer!r} is none of {', '.join(map(repr, options))}")
    return record


# NEEDIMPORT
