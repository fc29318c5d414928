"""Cells, aligned columns, and how both fit a terminal."""

import re

import pytest

from analysis.tables.text import (
    SPARKS,
    Statement,
    Table,
    aligned,
    cell,
    coloured,
    counted,
    fit,
    percent,
    plain,
    run_heading,
    shortened,
    sparkline,
)


def test_a_cell_is_formatted_or_a_dash():
    assert cell(0.12345, ".3f") == "0.123"
    assert cell(0, "d") == "0"
    assert cell(None, ".3f") == "–"


def test_a_count_has_its_plural():
    assert [counted(n, "module") for n in (0, 1, 2)] == ["0 modules", "1 module", "2 modules"]


def test_columns_are_aligned_the_first_to_the_left():
    got = list(aligned([["kind", "n", "‖ΔW‖"], ["q", "10", "1"], ["up_proj", "2", ""]]))
    assert got == [
        "kind      n  ‖ΔW‖",
        "q        10     1",
        "up_proj   2",
    ]


def test_rows_of_different_length_are_our_mistake():
    with pytest.raises(ValueError, match="zip"):
        list(aligned([["a", "b"], ["c"]]))


def test_a_checkpoint_is_named_with_its_step_if_it_has_one():
    assert run_heading("run", None) == "run"
    assert run_heading("run", 0) == "run  step 0"


def test_shares_have_the_precision_of_a_sentence():
    got = [percent(share) for share in (0.0004, 0.004, 0.026, 0.903, 1.0)]
    assert got == ["under 0.1 %", "0.4 %", "3 %", "90 %", "100 %"]


def test_a_sparkline_has_one_block_per_value():
    assert sparkline(i / 8 for i in range(1, 9)) == SPARKS
    assert sparkline([0.0, 1e-9, 1.0]) == "▁▁█"
    assert sparkline([]) == ""


def test_names_are_shortened_as_long_as_they_differ():
    assert shortened(["runs/first", "b"], 6) == ["…first", "b"]
    assert shortened(["x/lora", "y/lora"], 4) == ["x/lora", "y/lora"]
    assert shortened(["long/x/lora", "long/y/lora"], 4) == ["…x/lora", "…y/lora"]
    assert shortened(["", "", "abc"], 2) == ["", "", "…c"]  # the same name twice stays the same
    assert shortened([], 3) == []


CELLS = [["kind", "a", "bbbb", "c"], ["q_proj", "1", "22", "3"], ["v", "4", "5", "6"]]


def widths(blocks):
    return [len(line) for line in plain(blocks)]


def test_a_table_that_fits_is_whole():
    for width in (18, 80):
        blocks, left_out = fit([Table(CELLS, ["c", "bbbb"])], width)
        assert list(plain(blocks)) == list(aligned(CELLS))
        assert left_out == []


def test_columns_leave_in_their_order():
    blocks, left_out = fit([Table(CELLS, ["bbbb", "c"])], 17)
    assert left_out == ["bbbb"]
    assert next(plain(blocks)).split() == ["kind", "a", "c"]
    blocks, left_out = fit([Table(CELLS, ["bbbb", "c"]), Table(CELLS, ["bbbb"])], 9)
    assert left_out == ["bbbb", "c"]


def test_columns_that_must_stay_continue_below():
    blocks, left_out = fit([Table(CELLS)], 13)
    assert left_out == []
    assert list(plain(blocks)) == [
        "kind    a",
        "q_proj  1",
        "v       4",
        "",
        "kind    bbbb",
        "q_proj    22",
        "v          5",
        "",
        "kind    c",
        "q_proj  3",
        "v       6",
    ]


def test_every_width_holds_if_a_short_label_and_a_column_do():
    cells = [["kind", *(f"column {i}" for i in range(12))], ["x" * 70, *("0.123",) * 12]]
    leaving = [f"column {i}" for i in range(5)]
    for width in range(30, 130):
        blocks, left_out = fit([Table(cells, leaving)], width)
        assert max(widths(blocks)) <= width
        shown = {name for name in cells[0][1:] if any(name in line for line in plain(blocks))}
        assert len(shown) + len(left_out) >= 12
        assert set(left_out) <= set(leaving)


def test_long_lines_are_wrapped_and_paragraphs_and_statements_stay():
    text = "run  step 5  (lora)"
    assert fit([text, "", ""], 19) == ([text, ""], [])
    assert fit([text], 18)[0] == ["run  step 5", "(lora)"]
    assert fit(["one two\nthree\n\nfour"], 7)[0] == ["one two", "three", "", "four"]
    assert fit(["one two\nthree\n\nfour"], 6)[0] == ["one", "two", "three", "", "four"]
    first, second = fit([Statement("found this")], 5)[0]
    assert (type(first), type(second)) == (Statement, Statement)
    assert fit(["unbreakable"], 5)[0] == ["unbreakable"]


def test_control_characters_are_escaped_before_widths_are_counted():
    blocks, _ = fit([Table([["kind", "n"], ["\x1b[2J", "1"]]), "\x1b[2J"], 80)
    assert list(plain(blocks)) == ["kind     n", "\\x1b[2J  1", "\\x1b[2J"]


def test_coloured_text_is_the_plain_text_with_colours(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    cells = [["kind", "spectrum", "n"], ["[red]q[/red]", "█▁", "1"], ["all", "▁█", "22"]]
    blocks, _ = fit([Statement("Found [bold]it[/bold]."), Table(cells), "", "word " * 30], 40)
    got = coloured(blocks, 40)
    assert "\x1b[1mFound [bold]it[/bold].\x1b[0m" in got
    assert "\x1b[36m" in got
    bare = re.sub("\x1b\\[[0-9;]*m", "", got)
    assert [line.rstrip() for line in bare.splitlines()] == list(plain(blocks))
