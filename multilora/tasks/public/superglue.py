"""Read SuperGLUE's JSON lines, TASK/{train,val}.jsonl in the official form.

The directory has a folder for each wanted task of BoolQ, CB, COPA, MultiRC, RTE, WiC and WSC, or
is one of these folders. Labels become words. The official test files have no labels, so `val` is
the test split.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.tasks.public import files, hub
from multilora.tasks.public.records import Loaded, Record, Table, checked

FAMILY = "understanding"
SPLITS = {"train": "train", "val": "test"}
YES_NO: dict[Any, str] = {True: "yes", False: "no"}  # 1 and 0 are the same keys
CB = {"entailment": "true", "contradiction": "false", "neutral": "neither"}
RTE = {"entailment": "true", "not_entailment": "false"}


def load(directory: Path) -> Loaded:
    """Load the tasks in a directory, by name, or the one whose folder it is."""
    tables, hashes, notes = [], {}, []
    children = files.children(directory)
    one = directory.name.lower() in TASKS and any(path.suffix == ".jsonl" for path in children)
    for folder in [directory] if one else children:
        task = folder.name.lower()
        if task not in TASKS:
            notes.append(f"{folder}: not read; expected one of {', '.join(TASKS)}")
            continue
        paths = files.children(folder)
        labelled = [path for path in paths if path.suffix == ".jsonl" and path.stem in SPLITS]
        if not labelled:
            raise UserError(f"{folder} has no labelled file; expected train.jsonl or val.jsonl")
        splits = {}
        for path in labelled:
            text, hashes[str(path)] = files.read_text(path)
            rows = files.json_rows(path, text)
            splits[SPLITS[path.stem]] = files.parse_rows(path, rows, TASKS[task])
        tables.append(Table(task, FAMILY, _joined(splits)))
        notes += [f"{path}: not read{_reason(path)}" for path in paths if path not in labelled]
        notes += _unmarked(tables[-1])
    if not tables:
        raise UserError(f"{directory} has no task; expected some of {', '.join(TASKS)}")
    return Loaded(tables, hashes, notes)


def load_hub(name: str) -> Loaded:
    """Load all seven tasks of a data set such as aps/super_glue."""
    tables, hashes, notes = [], {}, []
    for task in TASKS:
        config = "wsc.fixed" if task == "wsc" else task
        wanted = {"train": "train", "validation": "test"}
        loaded = hub.load_splits(
            name, config=config, wanted=wanted, parse=partial(hub_records, task)
        )
        tables.append(Table(task, FAMILY, _joined(loaded.splits)))
        hashes.update(loaded.files)
        notes += [*loaded.notes, *_unmarked(tables[-1])]
    return Loaded(tables, hashes, notes)


def hub_records(task: str, row: Any) -> list[Record]:
    """Records of a hub row, in which labels are numbers and fields are not nested."""
    labels = {"cb": list(CB), "rte": list(RTE)}.get(task)
    if labels:
        label = files.field(row, "label", int)
        if not 0 <= label < len(labels):
            raise UserError(f"'label' is {label}; expected 0 to {len(labels) - 1}")
        return TASKS[task]({**row, "label": labels[label]})
    if task == "wsc":
        return TASKS[task]({**row, "target": row})
    if task == "multirc":
        answer = {"text": files.string(row, "answer"), "label": files.field(row, "label", int)}
        question = {"question": files.string(row, "question"), "answers": [answer]}
        passage = {"text": files.string(row, "paragraph"), "questions": [question]}
        return TASKS[task]({"passage": passage})
    return TASKS[task](row)


def boolq(row: Any) -> list[Record]:
    """Record of BoolQ: is the answer to a question yes? Grouped by passage."""
    fields = {name: files.string(row, name) for name in ("passage", "question")}
    return [_labelled("boolq", fields, row, YES_NO, group=fields["passage"])]


def cb(row: Any) -> list[Record]:
    """Record of CB: does a premise entail a hypothesis, contradict it, or neither?"""
    fields = {name: files.string(row, name) for name in ("premise", "hypothesis")}
    return [_labelled("cb", fields, row, CB)]


def copa(row: Any) -> list[Record]:
    """Record of COPA: which of two sentences is the cause, or the effect? They are the options."""
    names = ("premise", "question", "choice1", "choice2")
    fields = {name: files.string(row, name) for name in names}
    if fields["question"] not in ("cause", "effect"):
        raise UserError(f"'question' is {fields['question']!r}; expected 'cause' or 'effect'")
    return [_labelled("copa", fields, row, {0: fields["choice1"], 1: fields["choice2"]})]


def multirc(row: Any) -> list[Record]:
    """Records of MultiRC, one per answer: does it answer the question? Grouped by passage."""
    passage = files.field(row, "passage", dict)
    text = files.string(passage, "text")
    return [
        _labelled("multirc", {"passage": text, **fields}, answer, YES_NO, group=text)
        for fields, answer in _answers(passage)
    ]


def _answers(passage: dict[str, Any]) -> Iterator[tuple[dict[str, str], Any]]:
    """Yield the fields of each answer in a passage, with the answer's own row."""
    for question in files.field(passage, "questions", list):
        asked = files.string(question, "question")
        for answer in files.field(question, "answers", list):
            yield {"question": asked, "candidate": files.string(answer, "text")}, answer


def rte(row: Any) -> list[Record]:
    """Record of RTE: does a premise entail a hypothesis?"""
    fields = {name: files.string(row, name) for name in ("premise", "hypothesis")}
    return [_labelled("rte", fields, row, RTE)]


def wic(row: Any) -> list[Record]:
    """Record of WiC: does a word mean the same in two sentences?"""
    fields = {name: files.string(row, name) for name in ("word", "sentence1", "sentence2")}
    return [_labelled("wic", fields, row, YES_NO)]


def wsc(row: Any) -> list[Record]:
    """Record of WSC: does a pronoun, put between asterisks, mean a noun? Grouped by text."""
    target = files.field(row, "target", dict)
    pronoun, noun = (files.string(target, name) for name in ("span2_text", "span1_text"))
    text = files.string(row, "text")
    marked = _mark(text, pronoun, files.field(target, "span2_index", int))
    fields = {"text": marked, "pronoun": pronoun, "noun": noun}
    return [_labelled("wsc", fields, row, YES_NO, group=text)]


def _mark(text: str, pronoun: str, index: int) -> str:
    """Put asterisks around the pronoun at word `index`; no change if another word is there."""
    words = text.split()
    stop = index + len(pronoun.split())
    marked = " ".join(words[index:stop])
    rest = marked.removeprefix(pronoun)
    if index < 0 or not pronoun or not marked.startswith(pronoun) or rest[:1].isalnum():
        return text
    return " ".join([*words[:index], f"*{pronoun}*{rest}", *words[stop:]])


TASKS: dict[str, Callable[[Any], list[Record]]] = {
    task.__name__: task for task in (boolq, cb, copa, multirc, rte, wic, wsc)
}


def _labelled(
    task: str, fields: dict[str, str], row: Any, answers: dict[Any, str], group: str = ""
) -> Record:
    """Record whose answer is the text of the row's label.

    task: name of the task and of its template
    fields: text of each slot of the template
    row: the row with the field `label`
    answers: text of each label; these texts are the options
    group: group of the item; empty for a group of its own
    """
    label = files.field(row, "label", object)
    if not isinstance(label, bool | int | str) or label not in answers:
        raise UserError(f"'label' is {label!r}; expected one of {', '.join(map(repr, answers))}")
    return checked(Record(task, fields, answers[label], tuple(answers.values()), group=group))


def _joined(splits: dict[str, list[list[Record]]]) -> dict[str, list[Record]]:
    """Concatenate the records of all rows of each split."""
    return {split: [r for records in rows for r in records] for split, rows in splits.items()}


def _unmarked(table: Table) -> list[str]:
    """A line that counts the WSC items without asterisks; nothing if there are none."""
    if table.task != "wsc":
        return []
    records = [record for split in table.splits.values() for record in split]
    count = sum(f"*{r.fields['pronoun']}*" not in r.fields["text"] for r in records)
    if not count:
        return []
    return [f"wsc: {count} pronouns are not at span2_index; kept without asterisks"]


def _reason(path: Path) -> str:
    """Reason why a file was not read, for a note; empty if it is obvious."""
    return "; official test files have no labels" if path.name == "test.jsonl" else ""
