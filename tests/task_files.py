"""Small made-up twins of the public task formats, and of the real samples of them."""

import copy
import csv
import json
from pathlib import Path

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"

ALPACA = [
    {"instruction": "Name a river.", "input": "", "output": "The Vorn."},
    {"instruction": "Add the numbers.", "input": "2, 3", "output": "5"},
    {"instruction": "Translate to élan.", "input": "", "output": "Naïve “quote”."},
]

QUESTIONS = [
    ('Which is a "metal", if any?', "tin", "oak", "NA", "007", "A"),
    ("What is 3 * 4?\nSay it.", "7", "12", "1", "34", "B"),
    ("Who, of these, is kind?", "Ann", "Bob", "", "None", "D"),
]
HEADER = ("question", "choice0", "choice1", "choice2", "choice3", "answer")

SUPERGLUE = {
    "BoolQ": {"question": "is tin a metal", "passage": "Tin is a metal.", "idx": 0, "label": True},
    "CB": {"premise": "It rained.", "hypothesis": "it was wet", "label": "entailment", "idx": 0},
    "COPA": {
        "premise": "The cup fell.", "choice1": "It broke.", "choice2": "It sang.",
        "question": "effect", "label": 0, "idx": 0,
    },
    "MultiRC": {
        "idx": 0, "version": 1.1,
        "passage": {
            "text": "Ann met Bob. Bob met Cid.",
            "questions": [
                {"question": "Who met?", "idx": 0, "answers": [
                    {"text": "Ann", "idx": 0, "label": 1}, {"text": "Eve", "idx": 1, "label": 0},
                ]},
                {"question": "Whom did Bob meet?", "idx": 1, "answers": [
                    {"text": "Cid", "idx": 2, "label": 1},
                ]},
            ],
        },
    },
    "RTE": {"premise": "It is 5 pm.", "hypothesis": "It is noon.", "label": "not_entailment"},
    "WiC": {"word": "run", "sentence1": "They run.", "sentence2": "A run of luck.", "label": False},
    "WSC": {
        "text": "Pete saw Mark, who knew him, and he left.", "idx": 0, "label": True,
        "target": {"span1_index": 0, "span1_text": "Pete", "span2_index": 5, "span2_text": "him"},
    },
}  # fmt: skip


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_json(path, rows):
    return write(path, json.dumps(rows, indent=1, ensure_ascii=False))


def write_lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows, header=False):
    """Rows with a letter as answer; with `header` in the form that has 0–3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if header:
            out.writerow(HEADER)
            rows = [(*cells, "ABCD".index(answer)) for *cells, answer in rows]
        out.writerows(rows)
    return path


def write_samples(home):
    """Made-up records in the files of the real samples (REAL): the same names, forms and numbers.

    Every text occurs once; one Alpaca record has no answer.
    """
    rows = [
        {
            "instruction": f"Say {i}.",
            "input": f"number {i}" if i % 2 else "",
            "output": f"It is {i}",
        }
        for i in range(400)
    ]
    write_json(home / "alpaca" / "alpaca_data_400.json", [*rows[:-1], rows[-1] | {"output": ""}])
    for split, count in (("dev", 5), ("test", 7)):
        for subject in range(57):
            name = f"subject_{subject:02}_{split}.csv"
            asked = [
                (
                    f"What is {split} {subject} plus {i}?",
                    *(f"{i} {c}" for c in "wxyz"),
                    "ABCD"[i % 4],
                )
                for i in range(count)
            ]
            write_csv(home / "mmlu" / split / name, asked, header=True)
            write_csv(home / "mmlu_hendrycks_format" / split / name, asked)
    for name, (train, val) in SAMPLES.items():
        rows = [superglue_row(name, i) for i in range(train + val)]
        write_lines(home / "superglue" / name / "train.jsonl", rows[:train])
        if val:
            write_lines(home / "superglue" / name / "val.jsonl", rows[train:])
    for split, start in (("train", 0), ("test", 60)):
        path = home / "llm_adapters" / "ARC-Easy" / f"{split}.json"
        write_json(path, [llm_adapters_row(i) for i in range(start, start + 60)])
    return home


# Rows of each SuperGLUE task in the real samples: (train, val).
SAMPLES = {
    "BoolQ": (32, 0), "CB": (250, 56), "COPA": (368, 100), "MultiRC": (32, 0), "RTE": (300, 100),
    "WiC": (32, 0), "WSC": (300, 104),
}  # fmt: skip


def superglue_row(name, i):
    """Row `i` of a task: SUPERGLUE's with a text of its own."""
    row = copy.deepcopy(SUPERGLUE[name])
    if name == "MultiRC":
        row["passage"]["text"] += f" That was on day {i}."
        return row
    field = next(f for f in ("passage", "premise", "sentence1", "text") if f in row)
    return row | {field: f"{row[field]} It was day {i}."}


def llm_adapters_row(i):
    """Row `i` of a question with four answers, as in LLM-Adapters' files."""
    answer = f"answer{i % 4 + 1}"
    stated = " ".join(f"Answer{k}: {i + k}" for k in range(1, 5))
    return {
        "instruction": f"Please choose: which number is {i + i % 4 + 1}?\n\n{stated}\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "input": "", "output": f"the correct answer is {answer}", "answer": answer,
    }  # fmt: skip


def write_public(path):
    """A directory with a little of everything that the preset smollm2 is trained on.

    Every task has training, validation and test items.
    """
    write_json(path / "alpaca" / "few.json", ALPACA[:1])
    write_json(path / "alpaca" / "many.json", _numbered(ALPACA[0], "instruction", 40))
    for name in ("ARC-Easy", "openbookqa"):
        row = {"instruction": "2? Answer Choices: (A) 1 (B) 2", "input": "", "answer": "B"}
        for split, count in (("train", 40), ("test", 2)):
            rows = _numbered(row, "instruction", count, f"{name} {split} ")
            write_json(path / "llm_adapters" / name / f"{split}.json", rows)
    questions = [(f"{i}, {first}", *rest) for i in range(20) for first, *rest in QUESTIONS]
    write_csv(path / "mmlu" / "dev" / "anatomy_dev.csv", questions[:55])
    write_csv(path / "mmlu" / "test" / "anatomy_test.csv", questions[55:])
    fields = {"CB": "premise", "COPA": "premise", "RTE": "hypothesis", "WSC": "text"}
    for task, field in fields.items():
        for split, count in (("train", 40), ("val", 2)):
            rows = _numbered(SUPERGLUE[task], field, count, "" if task == "WSC" else split)
            write_lines(path / "superglue" / task / f"{split}.jsonl", rows)
    more = _numbered(SUPERGLUE["RTE"], "hypothesis", 60)
    write_lines(path / "superglue_more" / "RTE" / "train.jsonl", more)
    passages = [SUPERGLUE["BoolQ"] | {"passage": text} for text in ("One.", "Two.", "One.")]
    write_lines(path / "superglue" / "BoolQ" / "train.jsonl", passages)
    return path


def _numbered(row, field, count, before=""):
    """Rows that differ in the end of a field."""
    return [row | {field: f"{before}{row[field]} Number {i}."} for i in range(count)]
