"""MMLU's CSV files, {dev,val,test}/SUBJECT_{dev,val,test}.csv and auxiliary_train/*.csv.

Both forms that are about: rows without a header, the answer a letter (the original); or with the
header `question,choice0,choice1,choice2,choice3,answer`, the answer 0–3. Each subject is a task.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.tasks.public import files, hub
from multilora.tasks.public.records import Loaded, Record, Table, checked

FAMILY = "knowledge"
LETTERS = ("A", "B", "C", "D")
SPLITS = {"dev": "train", "val": "validation", "test": "test"}
AUXILIARY = "auxiliary_train"
HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]


def load(directory: Path) -> Loaded:
    """Every subject's splits, by name, then the auxiliary questions, all of them for training."""
    known = (*SPLITS, AUXILIARY)
    found = files.children(directory)
    present = [path for path in found if path.name in known]
    if not present:
        raise UserError(f"{directory} holds none of {', '.join(known)}")
    subjects: dict[str, dict[str, list[Record]]] = {}
    hashes = {}
    notes = [
        f"{path}: not read; expected one of {', '.join(known)}"
        for path in found
        if path not in present
    ]
    for folder in present:
        for path in files.children(folder):
            subject = _subject(path, folder.name)
            if subject is None:
                notes.append(f"{path}: not read; expected SUBJECT_{folder.name}.csv")
                continue
            records, hashes[str(path)] = _read(path, subject)
            splits = subjects.setdefault(subject, {})
            splits.setdefault(SPLITS.get(folder.name, "train"), []).extend(records)
    if not subjects:
        raise UserError(f"{directory}: no SUBJECT_dev.csv, SUBJECT_val.csv, SUBJECT_test.csv")
    return Loaded(_tables(subjects), hashes, notes)


def load_hub(name: str) -> Loaded:
    """The configuration `all` of a data set like cais/mmlu."""
    wanted = {"dev": "train", "validation": "validation", "test": "test", AUXILIARY: AUXILIARY}
    found = hub.read(name, "all", wanted, hub_record)
    subjects: dict[str, dict[str, list[Record]]] = {}
    for split, here in found.splits.items():
        for subject, record in here:
            splits = subjects.setdefault(subject, {})
            splits.setdefault("train" if split == AUXILIARY else split, []).append(record)
    return Loaded(_tables(subjects), found.files, found.notes)


def hub_record(row: Any) -> tuple[str, Record]:
    """Subject and record of a hub row {question, subject, choices, answer 0–3}.

    The auxiliary questions have an empty subject there.
    """
    choices = files.field(row, "choices", list)
    if not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"'choices' is {choices!r}; expected four strings")
    cells = [files.string(row, "question"), *choices, str(files.field(row, "answer", int))]
    subject = files.string(row, "subject") or AUXILIARY
    return subject, record(cells, subject, "0123")


def record(cells: Sequence[str], subject: str, names: Sequence[str] = LETTERS) -> Record:
    """One question; names: how the answer names the four choices."""
    if len(cells) != len(HEADER):
        raise UserError(f"{len(cells)} cells; expected question, four choices and answer")
    question, *choices, answer = cells
    if answer not in list(names):
        raise UserError(f"answer {answer!r} is none of {', '.join(names)}")
    fields = {"question": question.strip(), **dict(zip(LETTERS, choices, strict=True))}
    text = "\n".join(fields.values())  # not the subject: a question may stand under two
    template = "mmlu_auxiliary_train" if subject == AUXILIARY else "mmlu"
    if subject != AUXILIARY:
        fields = {"subject": subject.replace("_", " "), **fields}
    return checked(Record(template, fields, LETTERS[list(names).index(answer)], LETTERS, text))


def _subject(path: Path, split: str) -> str | None:
    """The subject that a file name says; None where it is no file of the split."""
    if split == AUXILIARY:
        return AUXILIARY if path.suffix == ".csv" else None
    subject = path.name.removesuffix(f"_{split}.csv")
    return subject if subject and subject != path.name else None


def _read(path: Path, subject: str) -> tuple[list[Record], str]:
    text, sha256 = files.read_text(path)
    rows = list(files.csv_rows(path, text))
    header = bool(rows) and rows[0][1] == HEADER
    names = "0123" if header else LETTERS
    rows = rows[1:] if header else rows
    return files.parsed(path, rows, lambda cells: record(cells, subject, names)), sha256


def _tables(subjects: dict[str, dict[str, list[Record]]]) -> list[Table]:
    names = sorted(subjects, key=lambda subject: (subject == AUXILIARY, subject))
    return [Table(f"mmlu_{s}", FAMILY, subjects[s], carve=s != AUXILIARY) for s in names]
