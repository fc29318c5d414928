"""Rows as the hub's copies have them, through a library that needs no network."""

import json
import sys
import types

import pytest
from task_files import ALPACA, QUESTIONS, SUPERGLUE, write_csv, write_lines

from multilora.tasks.public import sources, superglue

NUMBERS = {
    "cb": ["entailment", "contradiction", "neutral"],
    "rte": ["entailment", "not_entailment"],
}


@pytest.fixture
def hub(monkeypatch):
    """Data sets by (name, configuration), each {split: rows}, in place of the hub's."""
    data = {}
    library = types.ModuleType("datasets")
    library.load_dataset = lambda name, config=None: data[name, config]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return data


def flat(task, row):
    """The rows of the hub for one row of a file."""
    row = json.loads(json.dumps(row))
    if task in NUMBERS:
        return [row | {"label": NUMBERS[task].index(row["label"])}]
    if task == "wsc":
        return [row | row.pop("target") | {"label": int(row["label"])}]
    if task == "multirc":
        return [
            {"paragraph": row["passage"]["text"], "question": question["question"],
             "answer": answer["text"], "label": answer["label"], "idx": {"paragraph": 0}}
            for question in row["passage"]["questions"]
            for answer in question["answers"]
        ]  # fmt: skip
    return [row | {"label": int(row["label"])}]


def test_superglue_is_the_same_from_the_hub(hub, tmp_path):
    for name, row in SUPERGLUE.items():
        task = name.lower()
        write_lines(tmp_path / name / "val.jsonl", [row])
        config = "wsc.fixed" if task == "wsc" else task
        unlabelled = [flat(task, row)[0] | {"label": -1}]
        hub["x/glue", config] = {"test": unlabelled, "validation": flat(task, row)}
    source = sources.load("superglue:hub:x/glue")
    assert source.examples == sources.load(f"superglue:{tmp_path}").examples
    assert len(source.files) == 7
    assert "hub:x/glue wsc.fixed test: not read" in source.notes


@pytest.mark.parametrize("task", NUMBERS)
@pytest.mark.parametrize("label", [-1, 3])
def test_a_number_that_is_no_label_is_refused(task, label):
    row = {"premise": "a", "hypothesis": "b", "label": label}
    with pytest.raises(ValueError, match=f"'label' is {label}; expected 0 to"):
        superglue.hub_records(task, row)


def test_mmlu_is_the_same_from_the_hub(hub, tmp_path):
    rows = [
        {"question": q, "subject": "anatomy", "choices": choices, "answer": "ABCD".index(answer)}
        for q, *choices, answer in QUESTIONS
    ]
    auxiliary = [{**rows[0], "question": "Which?", "subject": ""}]
    hub["x/mmlu", "all"] = {"dev": rows[:1], "test": rows[1:], "auxiliary_train": auxiliary}
    write_csv(tmp_path / "dev" / "anatomy_dev.csv", QUESTIONS[:1])
    write_csv(tmp_path / "test" / "anatomy_test.csv", QUESTIONS[1:])
    write_csv(tmp_path / "auxiliary_train" / "race.csv", [("Which?", *QUESTIONS[0][1:])])
    assert sources.load("mmlu:hub:x/mmlu").examples == sources.load(f"mmlu:{tmp_path}").examples


def test_mmlus_choices_are_strings(hub):
    row = {"question": "q", "subject": "a", "choices": ["1", "2", "3", 4], "answer": 0}
    hub["x/mmlu", "all"] = {"dev": [row]}
    with pytest.raises(ValueError, match=r"mmlu all dev, row 1: 'choices' is .* four strings"):
        sources.load("mmlu:hub:x/mmlu")


@pytest.mark.parametrize("kind", ["alpaca", "llm-adapters"])
def test_instructions_keep_the_splits_that_are_there(hub, kind):
    rows = [row | {"answer": row["output"]} for row in ALPACA]
    hub["x/a", None] = {"train": rows[:1], "validation": rows[1:2], "test": rows[2:], "more": rows}
    source = sources.load(f"mine={kind}:hub:x/a")
    assert [len(source.examples[s]) for s in ("train", "validation", "test")] == [1, 1, 1]
    assert source.tasks == ["mine"]
    assert source.notes == ["hub:x/a more: not read"]
    assert list(source.files) == ["hub:x/a train", "hub:x/a validation", "hub:x/a test"]
    again = sources.load(f"mine={kind}:hub:x/a")
    assert again.files == source.files
    rows[0]["output"] = "Another."
    assert sources.load(f"mine={kind}:hub:x/a").files != source.files


def test_a_bad_row_is_named_by_split_and_number(hub):
    hub["x/a", None] = {"train": [ALPACA[0], {"instruction": "a", "input": ""}]}
    with pytest.raises(ValueError, match="hub:x/a train, row 2: field 'output' is missing"):
        sources.load("alpaca:hub:x/a")


def test_a_data_set_without_the_splits_is_refused(hub):
    hub["x/a", None] = {"all": ALPACA}
    with pytest.raises(ValueError, match="hub:x/a has the splits all; expected train or valid"):
        sources.load("alpaca:hub:x/a")


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"hub:x/a needs the package datasets, .*pip install datasets"
    ):
        sources.load("alpaca:hub:x/a")
