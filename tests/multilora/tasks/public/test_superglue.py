import copy
import json

import pytest
from task_files import SUPERGLUE, write, write_lines

from multilora.tasks.public import sources, superglue

PROMPTS = {
    "boolq": ("Tin is a metal.\n\nQuestion: is tin a metal?\nAnswer:", "yes", ("yes", "no")),
    "cb": (
        "It rained.\n\nQuestion: it was wet. True, false or neither?\nAnswer:",
        "true",
        ("true", "false", "neither"),
    ),
    "copa": (
        "The cup fell.\n\nQuestion: What was the effect of this?\n- It broke.\n- It sang.\nAnswer:",
        "It broke.",
        ("It broke.", "It sang."),
    ),
    "multirc": (
        "Ann met Bob. Bob met Cid.\n\nQuestion: Who met?\nIs this a correct answer: Eve\nAnswer:",
        "no",
        ("yes", "no"),
    ),
    "rte": (
        "It is 5 pm.\n\nQuestion: It is noon. True or false?\nAnswer:",
        "false",
        ("true", "false"),
    ),
    "wic": (
        'They run.\nA run of luck.\n\nQuestion: Does the word "run" mean the same in both '
        "sentences?\nAnswer:",
        "no",
        ("yes", "no"),
    ),
    "wsc": (
        "Pete saw Mark, who knew *him*, and he left.\n\n"
        'Question: Does the pronoun "him" refer to "Pete"?\nAnswer:',
        "yes",
        ("yes", "no"),
    ),
}
LABELS = {
    "BoolQ": {True: "yes", False: "no"},
    "CB": {"entailment": "true", "contradiction": "false", "neutral": "neither"},
    "COPA": {0: "It broke.", 1: "It sang."},
    "RTE": {"entailment": "true", "not_entailment": "false"},
    "WiC": {True: "yes", False: "no"},
    "WSC": {True: "yes", False: "no"},
}


@pytest.fixture
def directory(tmp_path):
    """Every task with one row, for the test."""
    for name, row in SUPERGLUE.items():
        write_lines(tmp_path / name / "val.jsonl", [row])
    return tmp_path


def test_every_task_has_its_prompt_answer_and_options(directory):
    source = sources.load(f"superglue:{directory}")
    assert source.tasks == list(PROMPTS)
    assert set(source.family_of.values()) == {"understanding"}
    for e in source.examples["test"]:
        assert e.answer in e.options
        if e.task != "multirc" or "Eve" in e.prompt:
            assert (e.prompt, e.answer, e.options) == PROMPTS[e.task]
    assert [(e.answer, e.task) for e in source.examples["test"] if e.task == "multirc"] == [
        ("yes", "multirc"), ("no", "multirc"), ("yes", "multirc"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_every_label_has_its_word(name):
    answers = {
        label: superglue.TASKS[name.lower()](SUPERGLUE[name] | {"label": label})[0].answer
        for label in LABELS[name]
    }
    assert answers == LABELS[name]


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("label", ["maybe", 2, -1, None, [], 1.0])
def test_another_label_is_refused(tmp_path, name, label):
    good = SUPERGLUE[name]
    write_lines(tmp_path / name / "train.jsonl", [good, good | {"label": label}])
    with pytest.raises(ValueError, match=f"{name}/train.jsonl, line 2: 'label' is .*; expected"):
        superglue.load(tmp_path)


def test_a_label_within_multirc_is_checked():
    row = copy.deepcopy(SUPERGLUE["MultiRC"])
    row["passage"]["questions"][1]["answers"][0]["label"] = "1"
    with pytest.raises(ValueError, match="'label' is '1'; expected one of True, False"):
        superglue.multirc(row)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_a_missing_field_is_told(name):
    needed = [key for key in SUPERGLUE[name] if key not in ("idx", "version")]
    for key in needed:
        row = {k: v for k, v in SUPERGLUE[name].items() if k != key}
        with pytest.raises(ValueError, match=f"field '{key}' is missing; the fields are"):
            superglue.TASKS[name.lower()](row)


def test_copas_question_and_choices_are_checked():
    row = SUPERGLUE["COPA"]
    with pytest.raises(ValueError, match="'question' is 'why'; expected 'cause' or 'effect'"):
        superglue.copa(row | {"question": "why"})
    with pytest.raises(ValueError, match=r"two options are the same: 'It broke.', 'It broke.'"):
        superglue.copa(row | {"choice2": "It broke."})


@pytest.mark.parametrize(
    ("index", "pronoun", "marked"),
    [
        (7, "he", "Pete saw Mark, who knew him, and *he* left."),
        (0, "Pete saw", "*Pete saw* Mark, who knew him, and he left."),
        (6, "he", None), (99, "he", None), (-2, "he", None), (7, "", None),
        (8, "le", None), (1, "saw", "Pete *saw* Mark, who knew him, and he left."),
    ],
)  # fmt: skip
def test_the_pronoun_is_marked_where_it_stands(index, pronoun, marked):
    row = copy.deepcopy(SUPERGLUE["WSC"])
    row["target"] |= {"span2_index": index, "span2_text": pronoun}
    assert superglue.wsc(row)[0].fields["text"] == (marked or row["text"])


def test_a_pronoun_that_is_elsewhere_is_counted(tmp_path):
    row = copy.deepcopy(SUPERGLUE["WSC"])
    row["target"]["span2_index"] = 1
    write_lines(tmp_path / "WSC" / "val.jsonl", [SUPERGLUE["WSC"], row])
    assert superglue.load(tmp_path).notes == [
        "wsc: 1 pronouns are not at span2_index; kept without asterisks"
    ]


def test_what_is_not_read_is_told(directory):
    write(directory / "README.md", "x")
    write_lines(directory / "ReCoRD" / "val.jsonl", [{}])
    write_lines(directory / "CB" / "test.jsonl", [{}])
    loaded = superglue.load(directory)
    assert [note.removeprefix(str(directory)) for note in loaded.notes] == [
        "/CB/test.jsonl: not read; official test files have no labels",
        "/README.md: not read; expected one of boolq, cb, copa, multirc, rte, wic, wsc",
        "/ReCoRD: not read; expected one of boolq, cb, copa, multirc, rte, wic, wsc",
    ]
    assert len(loaded.files) == 7


def test_a_directory_without_tasks_is_refused(tmp_path):
    write(tmp_path / "a", "x")
    with pytest.raises(ValueError, match="has no task; expected some of boolq, cb"):
        superglue.load(tmp_path)
    write(tmp_path / "CB" / "test.jsonl", "{}")
    with pytest.raises(
        ValueError, match=r"CB has no labelled file; expected train.jsonl or val.jsonl"
    ):
        superglue.load(tmp_path)
    write(tmp_path / "CB" / "val.jsonl", "[]")
    with pytest.raises(ValueError, match=r"val.jsonl has no records"):
        superglue.load(tmp_path)


def test_items_of_one_passage_come_into_one_split(tmp_path):
    rows = []
    for i in range(60):
        row = copy.deepcopy(SUPERGLUE["MultiRC"])
        row["passage"]["text"] += f" That was day {i}."
        rows.append(row)
    write_lines(tmp_path / "MultiRC" / "train.jsonl", rows)
    examples = sources.load(f"superglue:{tmp_path}").examples
    passages = {s: [e.prompt.split("\n")[0] for e in es] for s, es in examples.items()}
    assert sum(map(len, passages.values())) == 180
    assert sum(len(set(here)) for here in passages.values()) == 60
    assert all(passages.values())


def test_samples_of_every_task(samples):
    directory = samples / "superglue"
    tables = {table.task: table for table in superglue.load(directory).tables}
    counts = {task: {s: len(r) for s, r in t.splits.items()} for task, t in tables.items()}
    multirc = counts.pop("multirc")
    assert counts == {
        "boolq": {"train": 32},
        "cb": {"train": 250, "test": 56},
        "copa": {"train": 368, "test": 100},
        "rte": {"train": 300, "test": 100},
        "wic": {"train": 32},
        "wsc": {"train": 300, "test": 104},
    }
    lines = (directory / "MultiRC" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["passage"] for line in lines]
    answers = [a for p in passages for q in p["questions"] for a in q["answers"]]
    assert multirc == {"train": len(answers)}
    assert len({record.group for record in tables["multirc"].splits["train"]}) == 32
    assert [r.answer for r in tables["multirc"].splits["train"]] == [
        "yes" if answer["label"] else "no" for answer in answers
    ]
    examples = sources.load(f"superglue:{directory}").examples
    assert sum(map(len, examples.values())) == len(answers) + 1642


def test_the_folder_of_one_task_is_read_alone(tmp_path):
    for task in ("CB", "WiC"):
        write_lines(tmp_path / task / "train.jsonl", [SUPERGLUE[task]])
    both, one = superglue.load(tmp_path), superglue.load(tmp_path / "CB")
    assert [table.task for table in both.tables] == ["cb", "wic"]
    assert one.tables == both.tables[:1]
    assert list(one.files) == [str(tmp_path / "CB" / "train.jsonl")]


def test_a_directory_of_tasks_may_have_the_name_of_one(tmp_path):
    write_lines(tmp_path / "CB" / "WiC" / "train.jsonl", [SUPERGLUE["WiC"]])
    assert [table.task for table in superglue.load(tmp_path / "CB").tables] == ["wic"]
