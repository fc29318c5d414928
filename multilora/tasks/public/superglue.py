"""SuperGLUE's JSON lines, TASK/{train,val}.jsonl in the official form; labels as words.

The directory holds those of BoolQ, CB, COPA, MultiRC, RTE, WiC and WSC that are wanted. Official
test files have no labels, so `val` is the test split.
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
    """The tasks that are there, in the order of their names."""
    tables, hashes, notes = [], {}, []
    for folder in files.children(directory):
        task = folder.name.lower()
        if task not in TASKS:
            notes.append(f"{folder}: not read; expected one of {', '.join(TASKS)}")
            continue
        paths = files.children(folder)
        here = [path for path in paths if path.suffix == ".jsonl" and path.stem in SPLITS]
        if not here:
            raise UserError(f"{folder} holds neither train.jsonl nor val.jsonl")
        splits = {}
        for path in here:
            text, hashes[str(path)] = files.read_text(path)
            splits[SPLITS[path.stem]] = files.parsed(path, files.json_rows(path, text), TASKS[task])
        tables.append(Table(task, FAMILY, _joined(splits)))
        notes += [f"{path}: not read{_why(path)}" for path in paths if path not in here]
        notes += _unmarked(tables[-1])
    if not tables:
        raise UserError(f"{directory} holds none of {', '.join(TASKS)}")
    return Loaded(tables, hashes, notes)


def load_hub(name: str) -> Loaded:
    """All seven tasks of a data set like aps/super_glue."""
    tables, hashes, notes = [], {}, []
    for task in TASKS:
        config = "wsc.fixed" if task == "wsc" else task
        wanted = {"train": "train", "validation": "test"}
        found = hub.read(name, config, wanted, partial(hub_records, task))
        tables.append(Table(task, FAMILY, _joined(found.splits)))
        hashes.update(found.files)
        notes += [*found.notes, *_unmarked(tables[-1])]
    return Loaded(tables, hashes, notes)


def hub_records(task: str, row: Any) -> list[Record]:
    """The records of a hub row, in which labels are numbers and nothing is nested."""
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
    """Is the answer to the question yes? One passage's questions stay together."""
    fields = {name: files.string(row, name) for name in ("passage", "question")}
    return [_chosen("boolq", fields, row, YES_NO, group=fields["passage"])]


def cb(row: Any) -> list[Record]:
    fields = {name: files.string(row, name) for name in ("premise", "hypothesis")}
    return [_chosen("cb", fields, row, CB)]


def copa(row: Any) -> list[Record]:
    """Which of two is the cause, or the effect? The options are the two texts."""
    names = ("premise", "question", "choice1", "choice2")
    fields = {name: files.string(row, name) for name in names}
    if fields["question"] not in ("cause", "effect"):
        raise UserError(f"'question' is {fields['question']!r}; expected 'cause' or 'effect'")
    return [_chosen("copa", fields, row, {0: fields["choice1"], 1: fields["choice2"]})]


def multirc(row: Any) -> list[Record]:
    """Is this an answer to the question? An item an answer; a passage's items stay together."""
    passage = files.field(row, "passage", dict)
    text = files.string(passage, "text")
    return [
        _chosen("multirc", {"passage": text, **asked}, answer, YES_NO, group=text)
        for asked, answer in _answers(passage)
    ]


def _answers(passage: dict[str, Any]) -> Iterator[tuple[dict[str, str], Any]]:
    for question in files.field(passage, "questions", list):
        asked = files.string(question, "question")
        for answer in files.field(question, "answers", list):
            yield {"question": asked, "candidate": files.string(answer, "text")}, answer


def rte(row: Any) -> list[Record]:
    fields = {name: files.string(row, name) for name in ("premise", "hypothesis")}
    return [_chosen("rte", fields, row, RTE)]


def wic(row: Any) -> list[Record]:
    """Does the word mean the same in both sentences?"""
    fields = {name: files.string(row, name) for name in ("word", "sentence1", "sentence2")}
    return [_chosen("wic", fields, row, YES_NO)]


def wsc(row: Any) -> list[Record]:
    """Does the pronoun mean the noun? It stands between asterisks; a text's items stay together."""
    target = files.field(row, "target", dict)
    pronoun, noun = (files.string(target, name) for name in ("span2_text", "span1_text"))
    text = files.string(row, "text")
    marked = _mark(text, pronoun, files.field(target, "span2_index", int))
    fields = {"text": marked, "pronoun": pronoun, "noun": noun}
    return [_chosen("wsc", fields, row, YES_NO, group=text)]


def _mark(text: str, pronoun: str, index: int) -> str:
    """The text with asterisks round the pronoun at word `index`; as it is where another stands."""
    words = text.split()
    stop = index + len(pronoun.split())
    there = " ".join(words[index:stop])
    rest = there.removeprefix(pronoun)
    if index < 0 or not pronoun or not there.startswith(pronoun) or rest[:1].isalnum():
        return text
    return " ".join([*words[:index], f"*{pronoun}*{rest}", *words[stop:]])


TASKS: dict[str, Callable[[Any], list[Record]]] = {
    task.__name__: task for task in (boolq, cb, copa, multirc, rte, wic, wsc)
}


def _chosen(
    task: str, fields: dict[str, str], row: Any, answers: dict[Any, str], group: str = ""
) -> Record:
    """A record whose answer is what the row's label stands for."""
    label = files.field(row, "label", object)
    if not isinstance(label, bool | int | str) or label not in answers:
        raise UserError(f"'label' is {label!r}; expected one of {', '.join(map(repr, answers))}")
    return checked(Record(task, fields, answers[label], tuple(answers.values()), group=group))


def _joined(splits: dict[str, list[list[Record]]]) -> dict[str, list[Record]]:
    """The records of all rows of a split, one after another."""
    return {split: [r for records in rows for r in records] for split, rows in splits.items()}


def _unmarked(table: Table) -> list[str]:
    if table.task != "wsc":
        return []
    records = [record for split in table.splits.values() for record in split]
    count = sum(f"*{r.fields['pronoun']}*" not in r.fields["text"] for r in records)
    if not count:
        return []
    return [f"wsc: {count} pronouns are not where span2_index says; kept without asterisks"]


def _why(path: Path) -> str:
    return "; official test files have no labels" if path.name == "test.jsonl" else ""
