import pytest

from multilora.tasks.public.records import Record, checked


def test_options_are_distinct_and_hold_the_answer():
    good = Record("rte", {}, "true", ("true", "false"))
    assert checked(good) is good
    free = Record("alpaca_no_input", {"instruction": "a"}, "a")
    assert checked(free) is free
    assert free.options is None
    with pytest.raises(ValueError, match="the answer is 'maybe'; expected one of 'true', 'false'"):
        checked(Record("rte", {}, "maybe", ("true", "false")))
    with pytest.raises(ValueError, match="two options are the same: 'true', 'true'"):
        checked(Record("rte", {}, "true", ("true", "true")))
    with pytest.raises(ValueError, match="two options are the same: 'true', 'true '"):
        checked(Record("rte", {}, "true", ("true", "true ")))
    for empty in ("", " "):
        with pytest.raises(ValueError, match=f"an option is empty: 'true', '{empty}'"):
            checked(Record("rte", {}, "true", ("true", empty)))


def test_an_item_is_recognised_by_its_text_or_else_by_all_fields():
    fields = {"question": "q", "A": "x"}
    assert Record("mmlu", fields, "A").content == "q\nx"
    assert Record("mmlu", fields, "A", text="own").content == "own"
