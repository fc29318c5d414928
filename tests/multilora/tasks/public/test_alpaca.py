import json

import pytest
from task_files import ALPACA, write, write_json, write_lines

from analysis import UserError
from multilora.tasks.public import alpaca, sources


def test_an_array_and_lines_are_the_same(tmp_path):
    array = alpaca.load(write_json(tmp_path / "a.json", ALPACA), "alpaca")
    lines = alpaca.load(write_lines(tmp_path / "a.jsonl", ALPACA), "alpaca")
    assert array.tables == lines.tables
    (table,) = array.tables
    assert (table.task, table.family, list(table.splits)) == ("alpaca", "instruction", ["train"])
    assert [record.answer for record in table.splits["train"]] == [r["output"] for r in ALPACA]
    assert list(array.files) == [str(tmp_path / "a.json")]


def test_prompts_are_stanfords(tmp_path):
    path = write_json(tmp_path / "a.json", ALPACA[:2])
    prompts = {e.answer: e for es in sources.load(f"alpaca:{path}").examples.values() for e in es}
    assert prompts["The Vorn."].prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a river.\n\n### Response:"
    )
    assert prompts["5"].prompt == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd the numbers.\n\n### Input:\n2, 3\n\n### Response:"
    )
    assert {e.options for e in prompts.values()} == {None}


def test_an_answer_is_stripped_and_blank_input_is_none():
    record = alpaca.record({"instruction": "Do.", "input": " \n", "output": "\n Done.\n"})
    assert (record.template, record.answer) == ("alpaca_no_input", "Done.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "a", "output": "b"},
            "field 'input' is missing; the fields are instruction, output",
        ),
        ({"instruction": "a", "input": None, "output": "b"}, "'input' is null; expected a string"),
        ({"instruction": "a", "input": "", "output": 3}, "'output' is a number; expected a string"),
        ("text", "a string; expected an object"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, row, message):
    path = write_lines(tmp_path / "bad.jsonl", [ALPACA[0], row])
    with pytest.raises(ValueError, match=f"bad.jsonl, line 2: {message}"):
        alpaca.load(path, "alpaca")


def test_an_object_instead_of_an_array_is_refused(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"data": ALPACA}))
    with pytest.raises(ValueError, match="line 1: field 'output' is missing; the fields are data"):
        alpaca.load(path, "alpaca")
    with pytest.raises(ValueError, match=r"a.json has no records"):
        alpaca.load(write(path, "[]"), "alpaca")


def test_a_sample(samples):
    path = samples / "alpaca" / "alpaca_data_400.json"
    (table,) = alpaca.load(path, "alpaca").tables
    rows = json.loads(path.read_text(encoding="utf-8"))
    records = table.splits["train"]
    assert len(records) == len(rows) == 400
    assert sum(record.template == "alpaca" for record in records) == sum(
        bool(r["input"]) for r in rows
    )
    source = sources.load(f"alpaca:{path}")
    assert sum(map(len, source.examples.values())) == 399
    assert "1 records without an answer left out (alpaca 1)" in source.notes


@pytest.mark.parametrize(("name", "split"), [("test", "test"), ("val", "validation")])
def test_a_file_called_after_a_split_is_that_split(name, split, tmp_path):
    rows = [ALPACA[0] | {"instruction": f"Do {i}."} for i in range(40)]
    source = sources.load(f"alpaca:{write_json(tmp_path / f'{name}.json', rows)}")
    assert {s: len(of) for s, of in source.examples.items() if of} == {split: 40}


def test_a_directory_has_a_file_for_each_split(tmp_path):
    write_json(tmp_path / "alpaca" / "train.json", ALPACA[:2])
    write_lines(tmp_path / "alpaca" / "val.jsonl", ALPACA[2:])
    write(tmp_path / "alpaca" / "LICENSE", "for all")
    loaded = alpaca.load(tmp_path / "alpaca", "alpaca")
    (table,) = loaded.tables
    assert {split: len(records) for split, records in table.splits.items()} == {
        "train": 2,
        "validation": 1,
    }
    assert table.carve  # the test split
    assert [path.rsplit("/", 1)[1] for path in loaded.files] == ["train.json", "val.jsonl"]
    assert loaded.notes == [f"{tmp_path / 'alpaca' / 'LICENSE'}: not read; expected .json, .jsonl"]


def test_two_files_of_one_split_and_none_at_all_are_refused(tmp_path):
    write_json(tmp_path / "two" / "a.json", ALPACA)
    write_json(tmp_path / "two" / "train.json", ALPACA)
    with pytest.raises(UserError, match="two files hold the train split; expected one"):
        alpaca.load(tmp_path / "two", "alpaca")
    write(tmp_path / "none" / "LICENSE", "for all")
    with pytest.raises(UserError, match=r"none has no file of records; expected \.json or \.jsonl"):
        alpaca.load(tmp_path / "none", "alpaca")
