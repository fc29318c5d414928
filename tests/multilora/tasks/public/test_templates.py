import re

import pytest

from multilora.tasks.public import superglue, templates

FIELDS = {
    "alpaca": ["instruction", "input"],
    "alpaca_no_input": ["instruction"],
    "mmlu": ["subject", "question", *"ABCD"],
    "mmlu_auxiliary_train": ["question", *"ABCD"],
    "boolq": ["passage", "question"],
    "cb": ["premise", "hypothesis"],
    "copa": ["premise", "question", "choice1", "choice2"],
    "multirc": ["passage", "question", "candidate"],
    "rte": ["premise", "hypothesis"],
    "wic": ["sentence1", "sentence2", "word"],
    "wsc": ["text", "pronoun", "noun"],
}


def test_every_template_on_disk_is_known_and_every_task_has_one():
    assert {path.name for path in templates.DIRECTORY.iterdir()} == {f"{n}.txt" for n in FIELDS}
    assert set(superglue.TASKS) <= set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_in_the_prompt_once_and_in_order(name):
    filled = templates.fill(name, {field: f"<{field}>" for field in FIELDS[name]})
    assert re.findall(r"<(\w+)>", filled) == FIELDS[name]
    assert "{" not in filled
    assert not filled.startswith("#")
    assert filled.endswith(":")  # an answer follows after one space


def test_the_comment_says_the_slots():
    for name, fields in FIELDS.items():
        head = (templates.DIRECTORY / f"{name}.txt").read_text().splitlines()[0]
        slots = re.search(r"Slots: ([^.]*)\.", head)[1]
        assert set(re.sub(r"\([^)]*\)", "", slots).replace(" ", "").split(",")) == set(fields)


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Write a template into a directory of its own."""
    monkeypatch.setattr(templates, "DIRECTORY", tmp_path)
    templates._parts.cache_clear()
    yield lambda text: (tmp_path / "t.txt").write_text(text)
    templates._parts.cache_clear()


def test_comments_at_the_head_and_the_last_line_break_are_no_prompt(template):
    template("# one\n# two\n\n### {a}:\n# {b}\n\n")
    assert templates.fill("t", {"a": "x", "b": "y"}) == "\n### x:\n# y\n"


def test_what_a_field_holds_is_no_slot(template):
    template("{a}{b} {}{ a } {a}\n")
    assert templates.fill("t", {"a": "{b}\\1", "b": "{a}", "c": "unused"}) == (
        "{b}\\1{a} {}{ a } {b}\\1"
    )


def test_a_slot_without_a_field_is_an_error(template):
    template("{a} {pasage}\n")
    with pytest.raises(ValueError, match=r"t.txt: no field for the slot \{pasage\}; .* a, passage"):
        templates.fill("t", {"a": "x", "passage": "y"})
