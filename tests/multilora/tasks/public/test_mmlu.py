import pytest
from task_files import HEADER, QUESTIONS, write, write_csv

from multilora.tasks.public import mmlu, sources

ROW = ("q", "a", "b", "c", "d", "A")


@pytest.fixture(params=[False, True], ids=["letters", "header"])
def directory(request, tmp_path):
    """Two subjects in either form: dev and test of both, val of one."""
    for subject in ("us_history", "anatomy"):
        for split in ("dev", "test"):
            rows = [(f"{split} {q}", *rest) for q, *rest in QUESTIONS]
            write_csv(tmp_path / split / f"{subject}_{split}.csv", rows, request.param)
    write_csv(tmp_path / "val" / "anatomy_val.csv", [ROW], request.param)
    return tmp_path


def test_every_subject_is_a_task_with_its_splits(directory):
    loaded = mmlu.load(directory)
    assert [table.task for table in loaded.tables] == ["mmlu_anatomy", "mmlu_us_history"]
    counts = [{s: len(r) for s, r in table.splits.items()} for table in loaded.tables]
    assert counts == [{"train": 3, "test": 3, "validation": 1}, {"train": 3, "test": 3}]
    assert len(loaded.files) == 5
    assert not loaded.notes


def test_the_prompt_is_the_harnesss(directory):
    test = sources.load(f"mmlu:{directory}").examples["test"]
    first, second, third = [e for e in test if e.task == "mmlu_us_history"]
    assert first.prompt == (
        "The following are multiple choice questions (with answers) about us history.\n\n"
        'test Which is a "metal", if any?\nA. tin\nB. oak\nC. NA\nD. 007\nAnswer:'
    )
    assert "\ntest What is 3 * 4?\nSay it.\nA. 7\n" in second.prompt
    assert "\nC. \nD. None\n" in third.prompt  # every cell is text
    assert [e.answer for e in (first, second, third)] == ["A", "B", "D"]
    assert {(e.options, e.family) for e in test} == {(("A", "B", "C", "D"), "knowledge")}


def test_the_question_is_stripped_and_the_choices_are_not():
    fields = mmlu.record((" q \n", " a", "b ", "c", "d", "C"), "x").fields
    assert (fields["question"], fields["A"], fields["B"]) == ("q", " a", "b ")


def test_auxiliary_questions_are_one_task_for_training(directory):
    write_csv(directory / "auxiliary_train" / "race.csv", [ROW])
    write_csv(directory / "auxiliary_train" / "obqa.csv", [("q2", *ROW[1:])])
    source = sources.load(f"mmlu:{directory}")
    assert source.tasks[-1] == "mmlu_auxiliary_train"
    here = [(s, e) for s, es in source.examples.items() for e in es if e.task == source.tasks[-1]]
    # `q` is anatomy's validation question.
    assert [(split, e.prompt) for split, e in here] == [
        (
            "train",
            "The following are multiple choice questions (with answers).\n\n"
            "q2\nA. a\nB. b\nC. c\nD. d\nAnswer:",
        )
    ]
    assert (
        "1 training items left out, also in validation or test (mmlu_auxiliary_train 1)"
        in source.notes
    )


def test_no_auxiliary_question_is_held_out(tmp_path):
    """The same questions of a subject would be carved."""
    rows = [(f"q{i}", *ROW[1:]) for i in range(60)]
    write_csv(tmp_path / "auxiliary_train" / "race.csv", rows)
    assert [len(es) for es in sources.load(f"mmlu:{tmp_path}").examples.values()] == [60, 0, 0]
    write_csv(tmp_path / "dev" / "anatomy_dev.csv", [(f"p{i}", *ROW[1:]) for i in range(60)])
    assert all(es for es in sources.load(f"mmlu:{tmp_path}").examples.values())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW[:5], "5 cells; expected 6: question, four choices and answer"),
        ((*ROW, "x"), "7 cells; expected 6"),
        ((*ROW[:5], "E"), "the answer is 'E'; expected one of A, B, C, D"),
        ((*ROW[:5], "0"), "the answer is '0'; expected one of A, B, C, D"),
        ((*ROW[:5], ""), "the answer is ''; expected one of A, B, C, D"),
        ((*ROW[:5], "AB"), "the answer is 'AB'; expected one of A, B, C, D"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    write_csv(tmp_path / "dev" / "anatomy_dev.csv", [QUESTIONS[1], row])
    with pytest.raises(ValueError, match=f"anatomy_dev.csv, line 3: {message}"):
        mmlu.load(tmp_path)


def test_with_a_header_the_answer_is_a_number(tmp_path):
    path = tmp_path / "dev" / "anatomy_dev.csv"
    write_csv(path, [HEADER, ROW])
    with pytest.raises(ValueError, match="line 2: the answer is 'A'; expected one of 0, 1, 2, 3"):
        mmlu.load(tmp_path)
    write_csv(path, [HEADER])
    with pytest.raises(ValueError, match=r"anatomy_dev.csv has no records"):
        mmlu.load(tmp_path)


def test_a_byte_order_mark_does_not_hide_the_header(tmp_path):
    path = write_csv(tmp_path / "dev" / "anatomy_dev.csv", [ROW], header=True)
    write(path, b"\xef\xbb\xbf" + path.read_bytes())
    (table,) = mmlu.load(tmp_path).tables
    assert [record.answer for record in table.splits["train"]] == ["A"]


def test_what_is_not_read_is_told(directory):
    write(directory / "README", "x")
    write(directory / "dev" / "anatomy_test.csv", "x")
    notes = mmlu.load(directory).notes
    assert [note.rpartition("/")[2] for note in notes] == [
        "README: not read; expected one of dev, val, test, auxiliary_train",
        "anatomy_test.csv: not read; expected SUBJECT_dev.csv",
    ]


def test_a_directory_of_something_else_is_refused(tmp_path):
    write(tmp_path / "a", "x")
    with pytest.raises(
        ValueError, match="no folder of MMLU; expected some of dev, val, test, auxiliary_train"
    ):
        mmlu.load(tmp_path)
    write(tmp_path / "dev" / "a.txt", "x")
    with pytest.raises(ValueError, match=r"no questions; expected SUBJECT_dev.csv"):
        mmlu.load(tmp_path)


def test_both_forms_give_the_same_examples(samples):
    header, letters = samples / "mmlu", samples / "mmlu_hendrycks_format"
    tables = mmlu.load(header).tables
    assert len(tables) == 57
    assert sum(len(table.splits["train"]) for table in tables) == 285
    assert sum(len(table.splits["test"]) for table in tables) == 399
    assert tables == mmlu.load(letters).tables
    sourced = [sources.load(f"mmlu:{path}") for path in (header, letters)]
    assert sourced[0].examples == sourced[1].examples
    assert sourced[0].files != sourced[1].files
    assert len(sourced[0].examples["test"]) == 399
    assert sum(len(sourced[0].examples[s]) for s in ("train", "validation")) == 285
