"""Cells and aligned columns."""

import pytest

from analysis.tables.text import aligned, cell, counted, run_heading


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
