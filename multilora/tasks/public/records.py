"""Records, the form of a task's items between reading a file and making examples."""

from dataclasses import dataclass, field

from analysis import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One item as a file gives it.

    template: name of the prompt's template, which is filled from `fields`
    fields: text of each field
    answer: the right answer
    options: the answers to choose from; None for free text
    text: text by which the same item is recognised elsewhere; empty for all fields
    group: items of one group go into one split; empty for a group of its own
    """

    template: str
    fields: dict[str, str]
    answer: str
    options: tuple[str, ...] | None = None
    text: str = ""
    group: str = ""

    @property
    def content(self) -> str:
        """Text by which the same item is recognised elsewhere: `text`, otherwise all fields."""
        return self.text or "\n".join(self.fields.values())


@dataclass(frozen=True)
class Table:
    """The records of one task from one source.

    task: name of the task
    family: its task family, one of `example.FAMILIES`
    splits: records by split; a split that the source lacks is absent
    carve: whether held-out splits that are missing are carved out of the training records
    """

    task: str
    family: str
    splits: dict[str, list[Record]]
    carve: bool = True


@dataclass(frozen=True)
class Loaded:
    """The tables of one source.

    tables: one table per task
    files: SHA-256 of each file that was read, by path
    notes: lines about what was not read
    """

    tables: list[Table]
    files: dict[str, str]
    notes: list[str] = field(default_factory=list)


def checked(record: Record) -> Record:
    """Return the record if its options are distinct, not empty, and contain the answer.

    White space around options does not distinguish them, because answers are compared without it.
    Raises UserError otherwise. A record without options is always valid.
    """
    options = record.options
    if options is not None:
        shown = ", ".join(map(repr, options))
        if not all(option.strip() for option in options):
            raise UserError(f"an option is empty: {shown}; expected text in each")
        if len({option.strip() for option in options}) < len(options):
            raise UserError(f"two options are the same: {shown}; expected distinct ones")
        if record.answer not in options:
            raise UserError(f"the answer is {record.answer!r}; expected one of {shown}")
    return record
