"""Turn records into examples: no item in two splits, and everything left out is counted.

Items are compared by normalised text: lower case, with white space and punctuation folded.
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
_SHOWN = 8  # tasks that a note names before it counts the others; notes on losses name all tasks
_KEPT_SIGNS = "+-*/%&#@\\"  # punctuation that distinguishes items, such as 3 * 4 and 3 / 4
_PUNCTUATION = "".join(
    character
    for character in map(chr, range(0x3100))
    if unicodedata.category(character).startswith("P") and character not in _KEPT_SIGNS
)
_FOLDED = re.compile(rf"[\s{re.escape(_PUNCTUATION)}]+")


class Item(NamedTuple):
    """A record and its normalised text."""

    record: Record
    key: str


BySplit = dict[str, list[Item]]
Count = Counter[tuple[str, str]]  # number of items by (task, what was done with them)


def examples(tables: Sequence[Table]) -> tuple[dict[str, list[Example]], list[str]]:
    """Return the tables' examples by split, task by task in their order, and notes about them.

    Left out are records without an answer or a prompt, and training items that are also held out
    in some task. Splits that a table lacks are carved out of its training items if it says so.
    Raises UserError if two tables have one task, or if nothing is left of a task.
    """
    names = Counter(table.task for table in tables)
    repeated = [task for task, count in names.items() if count > 1]
    if repeated:
        raise UserError(f"two tasks are called {repeated[0]!r}; name one of them: NAME=KIND:PATH")
    items, incomplete = _complete(tables)
    # Before carving, so that no test item of the files is carved for validation.
    items, overlap = _without_overlap(items)
    items, carved = _carve(items, [table.task for table in tables if table.carve])
    # And after it, because one task's carved items can be training items of another.
    items, overlap_carved = _without_overlap(items)
    lines = _lines(incomplete + overlap + carved + overlap_carved + _repeats(items))
    empty = [task for task, own in items.items() if not any(own.values())]
    if empty:
        raise UserError(f"task {empty[0]!r} has no items left; {'; '.join(lines)}")
    by_split = {
        split: [
            _example(table, split, item.record)
            for table in tables
            for item in items[table.task].get(split, ())
        ]
        for split in SPLITS
    }
    return by_split, [*lines, *_lacking(items)]


def normalise(text: str) -> str:
    """Lower-case the text and fold runs of white space and punctuation into one space.

    Arithmetic signs stay, because some questions differ in nothing else. A text of punctuation
    only is returned without the white space around it.

    >>> normalise("“What” is 3 * 4?")
    'what is 3 * 4'
    """
    return _FOLDED.sub(" ", text.lower()).strip() or text.strip()


def _complete(tables: Sequence[Table]) -> tuple[dict[str, BySplit], Count]:
    """Items that have an answer and a prompt, by task and split, and the count of the others."""
    items: dict[str, BySplit] = {}
    count: Count = Counter()
    for table in tables:
        own = items[table.task] = {split: [] for split in table.splits}
        for split, records in table.splits.items():
            for record in records:
                key = normalise(record.content)
                if not record.answer.strip():
                    count[table.task, "records without an answer left out"] += 1
                elif not key:
                    count[table.task, "records without a prompt left out"] += 1
                else:
                    own[split].append(Item(record, key))
    return items, count


def _without_overlap(items: Mapping[str, BySplit]) -> tuple[dict[str, BySplit], Count]:
    """The items without training items that are held out in any task, and the count of those."""
    held_out = {
        item.key for own in items.values() for split in _HELD_OUT for item in own.get(split, ())
    }
    kept: dict[str, BySplit] = {}
    count: Count = Counter()
    for task, own in items.items():
        kept[task] = dict(own)
        if "train" in own:
            kept[task]["train"] = [item for item in own["train"] if item.key not in held_out]
            left_out = len(own["train"]) - len(kept[task]["train"])
            count[task, "training items left out, also in validation or test"] = left_out
    return kept, count


def _carve(items: Mapping[str, BySplit], tasks: Sequence[str]) -> tuple[dict[str, BySplit], Count]:
    """Move a tenth of the training items of `tasks` into each split that is lacking, by group."""
    carved = dict(items)
    count: Count = Counter()
    for task in tasks:
        lacking = [split for split in _HELD_OUT if split not in items[task]]
        train = items[task].get("train", [])
        if not lacking or not train:
            continue
        moved: BySplit = {split: [] for split in ("train", *lacking)}
        for item in train:
            group = item.record.group
            split = splits.by_hash(normalise(group) if group else item.key)
            moved[split if split in lacking else "train"].append(item)
        carved[task] = items[task] | moved
        for split in lacking:
            count[task, f"training items moved to {split}, by hash"] = len(moved[split])
    return carved, count


def _repeats(items: Mapping[str, BySplit]) -> Count:
    """Number of items that occur again in their split, or in both validation and test."""
    count: Count = Counter()
    for task, own in items.items():
        for split, here in own.items():
            repeats = len(here) - len({item.key for item in here})
            count[task, f"{split} items that repeat an earlier one, kept"] = repeats
        validation, test = ({item.key for item in own.get(split, ())} for split in _HELD_OUT)
        count[task, "validation items that are also test items, kept"] = len(validation & test)
    return count


def _example(table: Table, split: str, record: Record) -> Example:
    """Example of a record, with its prompt filled in."""
    return Example(
        task=table.task,
        family=table.family,
        split=split,
        prompt=templates.fill(record.template, record.fields),
        answer=record.answer,
        options=record.options,
    )


def _lines(count: Count) -> list[str]:
    """One line per thing that was done: to how many items, and in which tasks."""
    lines = []
    for done in dict.fromkeys(done for (_, done), n in count.items() if n):
        by_task = {task: n for (task, what), n in count.items() if what == done and n}
        shown = len(by_task) if "left out" in done else _SHOWN
        tasks = _shortened([f"{task} {n}" for task, n in by_task.items()], shown)
        lines.append(f"{sum(by_task.values())} {done} ({tasks})")
    return lines


def _lacking(items: Mapping[str, BySplit]) -> list[str]:
    """One line per split that some tasks lack."""
    lines = []
    for split in SPLITS:
        tasks = [task for task, own in items.items() if not own.get(split)]
        if tasks:
            lines.append(f"no {split} items in {len(tasks)} tasks ({_shortened(tasks, _SHOWN)})")
    return lines


def _shortened(names: Sequence[str], shown: int) -> str:
    """The first `shown` names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
