"""Records → examples: no item in two splits, nothing left out without being counted.

Items are compared by normalised text: lower case, white space and punctuation folded.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis import UserError
from multilora.tasks.builtin import splits
from multilora.tasks.example import SPLITS, Example
from multilora.tasks.public import templates
from multilora.tasks.public.records import Record, Table

_HELD_OUT = ("validation", "test")
_SHOWN = 8  # tasks that a line names before it counts the rest; what is left out names all
_TELLING = "+-*/%&#@\\"  # punctuation that tells 3 * 4 from 3 / 4
_PUNCTUATION = "".join(
    character
    for character in map(chr, range(0x3100))
    if unicodedata.category(character).startswith("P") and character not in _TELLING
)
_FOLDED = re.compile(rf"[\s{re.escape(_PUNCTUATION)}]+")

Count = Counter[tuple[str, str]]  # of (task, what was done)


class Keyed(NamedTuple):
    """A record and its normalised text."""

    record: Record
    key: str


def examples(tables: Sequence[Table]) -> tuple[dict[str, list[Example]], list[str]]:
    """The tables' examples by split, task by task in their order, and lines about them.

    Records without answer or prompt are left out. So are training items that are held out too, in
    whatever task. Splits that a table lacks are carved out of its training items. Raises
    ValueError for two tables of one task, or one of which nothing is left.
    """
    twice = [task for task, n in Counter(table.task for table in tables).items() if n > 1]
    if twice:
        raise UserError(f"two tasks are called {twice[0]!r}; name one of them: NAME=KIND:PATH")
    count: Count = Counter()
    keyed = {table.task: _filled(table, count) for table in tables}
    # Before carving, so that what the files test is never validated on; after it, for other tables.
    _leave_out_overlap(keyed, count)
    for table in tables:
        if table.carve:
            _carve(table.task, keyed[table.task], count)
    _leave_out_overlap(keyed, count)
    _count_repeats(keyed, count)
    empty = [task for task, here in keyed.items() if not any(here.values())]
    if empty:
        raise UserError(f"task {empty[0]!r} has no items left; {'; '.join(_lines(count))}")
    made = {
        split: [
            _example(table, split, item.record)
            for table in tables
            for item in keyed[table.task].get(split, ())
        ]
        for split in SPLITS
    }
    return made, [*_lines(count), *_lacking(keyed)]


def normalise(text: str) -> str:
    """Lower case, runs of white space and punctuation as one space; the text where nothing is left.

    Signs of arithmetic stay: they are all that tells some questions apart.
    """
    return _FOLDED.sub(" ", text.lower()).strip() or text.strip()


def _filled(table: Table, count: Count) -> dict[str, list[Keyed]]:
    """The records with an answer and a prompt, by split."""
    kept: dict[str, list[Keyed]] = {}
    for split, records in table.splits.items():
        here = kept.setdefault(split, [])
        for record in records:
            key = normalise(record.content)
            if not record.answer.strip():
                count[table.task, "records without an answer left out"] += 1
            elif not key:
                count[table.task, "records without a prompt left out"] += 1
            else:
                here.append(Keyed(record, key))
    return kept


def _leave_out_overlap(keyed: Mapping[str, dict[str, list[Keyed]]], count: Count) -> None:
    held = {
        item.key for here in keyed.values() for split in _HELD_OUT for item in here.get(split, ())
    }
    for task, here in keyed.items():
        train = here.get("train", [])
        apart = [item for item in train if item.key not in held]
        if len(apart) < len(train):
            what = "training items left out, held out in validation or test"
            count[task, what] += len(train) - len(apart)
            here["train"] = apart


def _carve(task: str, here: dict[str, list[Keyed]], count: Count) -> None:
    """Move a tenth of the training items into each split that is lacking, group by group."""
    lacking = [split for split in _HELD_OUT if split not in here]
    train = here.get("train", [])
    if not lacking or not train:
        return
    here |= {split: [] for split in ("train", *lacking)}
    for item in train:
        split = splits.by_hash(normalise(item.record.group) if item.record.group else item.key)
        here[split if split in lacking else "train"].append(item)
    for split in lacking:
        count[task, f"training items made {split} items, by hash"] += len(here[split])


def _count_repeats(keyed: Mapping[str, dict[str, list[Keyed]]], count: Count) -> None:
    for task, here in keyed.items():
        for split, items in here.items():
            repeats = len(items) - len({item.key for item in items})
            count[task, f"{split} items that occur before in the split, kept"] += repeats
        validation, test = ({i.key for i in here.get(split, ())} for split in _HELD_OUT)
        count[task, "validation items that are test items too, kept"] += len(validation & test)


def _example(table: Table, split: str, record: Record) -> Example:
    prompt = templates.fill(record.template, record.fields)
    return Example(table.task, table.family, split, prompt, record.answer, record.options)


def _lines(count: Count) -> list[str]:
    """A line for everything that was done: how often, and in which tasks."""
    lines = []
    for what in dict.fromkeys(what for (_, what), n in count.items() if n):
        of = {task: n for (task, done), n in count.items() if done == what and n}
        shown = len(of) if "left out" in what else _SHOWN
        tasks = _some([f"{task} {n}" for task, n in of.items()], shown)
        lines.append(f"{sum(of.values())} {what} ({tasks})")
    return lines


def _lacking(keyed: Mapping[str, dict[str, list[Keyed]]]) -> list[str]:
    lines = []
    for split in SPLITS:
        tasks = [task for task, here in keyed.items() if not here.get(split)]
        if tasks:
            lines.append(f"no {split} items in {len(tasks)} tasks ({_some(tasks, _SHOWN)})")
    return lines


def _some(names: Sequence[str], shown: int) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
