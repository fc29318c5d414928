import json
import math

import pytest
from task_files import write_json

from multilora.tasks.public import llm_adapters, sources

TRUE = "Please answer with true or false, question: is tin soft?\n\nAnswer format: true/false"
ARC = "Choose.\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2/answer3/answer4"
AQUA = "What is 2 + 2? Answer Choices: (A) 4 (B) (C) or 3 (C) 5 "


def row(instruction, answer, **changes):
    return {"instruction": instruction, "input": "", "output": "x", "answer": answer} | changes


@pytest.mark.parametrize(
    ("instruction", "options"),
    [
        (TRUE, ("true", "false")),
        (ARC, ("answer1", "answer2", "answer3", "answer4")),
        ("Which?\n\nAnswer format: solution1/solution2 \n", ("solution1", "solution2")),
        (
            "Answer format: ending1/ending2/ending3/ending4",
            tuple(f"ending{i}" for i in range(1, 5)),
        ),
        ("She _.\nOption1: x Option2: y Answer format: option1/option2", ("option1", "option2")),
        (AQUA, ("A", "B", "C")),
        ("Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5", tuple("ABCDE")),
        ("What is 2 + 2?", ()),
        ("Answer format: a number", ()),
        ("Answer format: one", ()),
        ("Answer format: yes/yes", ()),
        ("Answer format: km/h or m/s", ()),
        ("Answer Choices: (B) 1 (C) 2", ()),
        ("Answer Choices: none", ()),
    ],
)
def test_options_are_the_set_that_the_instruction_states(instruction, options):
    assert llm_adapters.stated_options(instruction) == options


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (" 43 ", "43"),
        (68.0, "68"),
        (7, "7"),
        (0.5, "0.5"),
        ([1430.0], "1430"),
        (["C"], "C"),
        (10**400, "1" + "0" * 400),
    ],
)
def test_an_answer_is_a_string_a_number_or_a_list_of_one(answer, text):
    assert llm_adapters.record(row("How many?", answer)).answer == text


@pytest.mark.parametrize("answer", [True, None, [], ["a", "b"], {}, math.nan, math.inf, [["a"]]])
def test_another_answer_is_refused(answer):
    with pytest.raises(ValueError, match=r"'answer' is .*; expected a string, a number or a list"):
        llm_adapters.record(row("How many?", answer))


def test_a_file_becomes_one_task(tmp_path):
    rows = [
        row(TRUE, "true"), row(ARC, "answer4"), row(AQUA, ["A"]),
        row("What is 2 + 2?", "4", input="Think."), row(ARC + " ", "answer5"),
    ]  # fmt: skip
    loaded = llm_adapters.load(write_json(tmp_path / "a.json", rows), "math")
    (table,) = loaded.tables
    assert (table.task, table.family) == ("math", "instruction")
    records = table.splits["train"]
    assert [r.answer for r in records] == ["true", "answer4", "A", "4", "answer5"]
    four = ("answer1", "answer2", "answer3", "answer4")
    assert [r.options for r in records] == [("true", "false"), four, ("A", "B", "C"), None, None]
    assert [r.template for r in records] == [*["alpaca_no_input"] * 3, "alpaca", "alpaca_no_input"]
    assert loaded.notes == [
        "math: 1 answers are not among the options that the instruction states; kept as free text"
    ]


def test_the_gold_is_needed_and_the_sentence_beside_it_is_not(tmp_path):
    given = row(TRUE, "false")
    del given["output"]
    assert llm_adapters.record(given).answer == "false"
    del given["answer"]
    with pytest.raises(ValueError, match=r"a.json, line 2: field 'answer' is missing"):
        llm_adapters.load(write_json(tmp_path / "a.json", [given]), "math")


def test_an_empty_answer_is_left_out_and_counted(tmp_path):
    path = write_json(tmp_path / "a.json", [row("Say a.", "a"), row("Say b.", "")])
    source = sources.load(f"llm-adapters:{path}")
    assert sum(map(len, source.examples.values())) == 1
    assert "1 records without an answer left out (llm-adapters 1)" in source.notes


def test_a_sample(samples):
    directory = samples / "llm_adapters" / "ARC-Easy"
    loaded = llm_adapters.load(directory / "train.json", "arc")
    (table,) = loaded.tables
    rows = json.loads((directory / "train.json").read_text(encoding="utf-8"))
    assert [r.answer for r in table.splits["train"]] == [row["answer"] for row in rows]
    assert {len(r.options or ()) for r in table.splits["train"]} <= {3, 4, 5}
    assert table.carve
    assert not loaded.notes
    (test,) = llm_adapters.load(directory / "test.json", "arc").tables
    assert list(test.splits) == ["test"]
    assert not test.carve
