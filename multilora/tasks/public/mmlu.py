"""Read MMLU's CSV files, {dev,val,test}/SUBJECT_{dev,val,test}.csv and auxiliary_train/*.csv.

Each subject is a task. Both published forms are read: rows without a header, in which the answer
is a letter (the original); and rows under the header
`question,choice0,choice1,choice2,choice3,answer`, in which it is a number from 0 to 3.
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
    """Load every subject with its splits, by name, then the auxiliary training questions."""
    known = (*SPLITS, AUXILIARY)
    children = files.children(directory)
    folders = [path for path in children if path.name in known]
    if not folders:
        raise UserError(f"{directory} has no folder of MMLU; expected some of {', '.join(known)}")
    notes = [
        f"{path}: not read; expected one of {', '.join(known)}"
        for path in children
        if path not in folders
    ]
    subjects: dict[str, dict[str, list[Record]]] = {}
    hashes = {}
    for folder in folders:
        for path in files.children(folder):
            subject = _subject(path, folder.name)
            if subject is None:
                notes.append(f"{path}: not read; expected SUBJECT_{folder.name}.csv")
                continue
            records, hashes[str(path)] = _load_csv(path, subject)
            splits = subjects.setdefault(subject, {})
            splits.setdefault(SPLITS.get(folder.name, "train"), []).extend(records)
    if not subjects:
        raise UserError(
            f"{directory} has no questions; expected SUBJECT_dev.csv, SUBJECT_val.csv or "
            "SUBJECT_test.csv in the folder of that split"
        )
    return Loaded(_tables(subjects), hashes, notes)


def load_hub(name: str) -> Loaded:
    """Load the configuration `all` of a data set such as cais/mmlu."""
    wanted = {"dev": "train", "validation": "validation", "test": "test", AUXILIARY: AUXILIARY}
    loaded = hub.load_splits(name, config="all", wanted=wanted, parse=hub_record)
    subjects: dict[str, dict[str, list[Record]]] = {}
    for split, rows in loaded.splits.items():
        for subject, record in rows:
            splits = subjects.setdefault(subject, {})
            splits.setdefault("train" if split == AUXILIARY else split, []).append(record)
    return Loaded(_tables(subjects), loaded.files, loaded.notes)


def hub_record(row: Any) -> tuple[str, Record]:
    """Subject and record of a hub row {question, subject, choices, answer 0–3}.

    The subject of the auxiliary questions is empty there.
    """
    choices = files.field(row, "choices", list)
    if not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"'choices' is {choices!r}; expected four strings")
    cells = [files.string(row, "question"), *choices, str(files.field(row, "answer", int))]
    subject = files.string(row, "subject") or AUXILIARY
    return subject, record(cells, subject, answers="0123")


def record(cells: Sequence[str], subject: str, answers: Sequence[str] = LETTERS) -> Record:
    """Record of one question.

    cells: question, four choices and answer
    subject: subject of the question, or AUXILIARY
    answers: the four values that the answer's cell can have, in the order of the choices
    """
    if len(cells) != len(HEADER):
        raise UserError(f"{len(cells)} cells; expected 6: question, four choices and answer")
    question, *choices, answer = cells
    if answer not in list(answers):
        raise UserError(f"the answer is {answer!r}; expected one of {', '.join(answers)}")
    fields = {"question": question.strip(), **dict(zip(LETTERS, choices, strict=True))}
    text = "\n".join(fields.values())  # without the subject: two subjects can share a question
    template = "mmlu_auxiliary_train" if subject == AUXILIARY else "mmlu"
    if subject != AUXILIARY:
        fields = {"subject": subject.replace("_", " "), **fields}
    letter = LETTERS[list(answers).index(answer)]
    return checked(Record(template, fields, letter, LETTERS, text))


def _subject(path: Path, split: str) -> str | None:
    """Subject in a file's name; None if the file does not belong to the split."""
    if split == AUXILIARY:
        return AUXILIARY if path.suffix == ".csv" else None
    subject = path.name.removesuffix(f"_{split}.csv")
    return subject if subject and subject != path.name else None


def _load_csv(path: Path, subject: str) -> tuple[list[Record], str]:
    """Records of one file, in either form, and the file's SHA-256."""
    text, sha256 = files.read_text(path)
    rows = list(files.csv_rows(path, text))
    header = bool(rows) and rows[0][1] == HEADER
    answers = "0123" if header else LETTERS
    rows = rows[1:] if header else rows
    return files.parse_rows(path, rows, lambda cells: record(cells, subject, answers)), sha256


def _tables(subjects: dict[str, dict[str, list[Record]]]) -> list[Table]:
    """One table per subject, by name; the auxiliary questions come last and are not carved."""
    names = sorted(subjects, key=lambda subject: (subject == AUXILIARY, subject))
    return [Table(f"mmlu_{s}", FAMILY, subjects[s], carve=s != AUXILIARY) for s in names]
