"""The figure of the grid, read back from its artists."""

import numpy as np
import picture_tables
import pytest
from picture_tables import read

from analysis import store
from multilora.reproduction.pictures import grid


def test_differences_are_by_seed(rng):
    grid_rows = picture_tables.grid_rows(rng)
    got = grid.grid_differences(grid_rows)
    measured = {grid.COMPARED[row["compared"]].measure for row in got}
    assert measured == {"top_share_1", "effective_rank_k", "score"}
    assert len(got) == 5 * 2 * 3
    value = {
        tuple(row[c] for c in ("setting", "value", "seed", "method")): row for row in grid_rows
    }
    for row in got:
        compared = grid.COMPARED[row["compared"]]
        place = (row["setting"], row["value"], row["seed"])
        a, b = (value[*place, method][compared.measure] for method in (compared.a, compared.b))
        assert row["difference"] == a - b


def test_without_a_method_there_is_no_difference_with_it(rng):
    grid_rows = [r | {"top_share_1_above_null": 0.1} for r in picture_tables.grid_rows(rng)]
    everything = {grid.COMPARED[row["compared"]].claim for row in grid.grid_differences(grid_rows)}
    left = [row for row in grid_rows if row["method"] != "full"]
    rest = {grid.COMPARED[row["compared"]].claim for row in grid.grid_differences(left)}
    assert everything - rest == {"1a"}


def test_rows_are_settings_in_order_below_the_usual_one(rng):
    grid_rows = picture_tables.grid_rows(rng)
    usual = [r | {"value": 1} for r in grid_rows if (r["setting"], r["value"]) == ("rate", 2)]
    figure = grid.scale_grid([*grid_rows, *usual])
    first = figure.axes[0]
    labels = ["usual setting", "rate × 0.5", "rate × 2", "n·r = 4", "n·r = 8", "n·r = 16"]
    assert [label.get_text() for label in first.get_yticklabels()] == labels
    dots = [line for line in first.lines if line.get_marker() == "o" and len(line.get_xdata())]
    drawn = {round(float(np.mean(line.get_ydata()))): sorted(line.get_xdata()) for line in dots}
    compared = grid.grid_differences(grid_rows)
    of_column = min(row["compared"] for row in compared)
    for y, (setting, value) in ((-1, ("rate", 0.5)), (-5, ("n·r", 16))):
        place = (of_column, setting, value)
        of = [r for r in compared if (r["compared"], r["setting"], r["value"]) == place]
        assert drawn[y] == pytest.approx(sorted(row["difference"] for row in of))


def test_the_side_that_the_claim_names_is_shaded(rng):
    rows = [row | {"log_distance": rng.random()} for row in picture_tables.grid_rows(rng)]
    figure = grid.scale_grid(rows)
    ends = {}
    for ax in figure.axes:
        spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
        ends[ax.get_title()] = [np.sign(span.x0 + span.x1) for span in spans]
    assert ends == {
        "claim 3a\nMultiLoRA − LoRA": [-1],
        "claim 3b\nMultiLoRA − LoRA": [1],
        "claim 4d\nMultiLoRA − LoRA": [-1],
        "claim 6a\nMultiLoRA − LoRA": [1],
    }


def test_scores_are_in_percentage_points(rng):
    rows = picture_tables.grid_rows(rng)
    score = grid.scale_grid(rows).axes[-1]
    assert "percentage points" in score.get_xlabel()
    compared = [
        r for r in grid.grid_differences(rows) if grid.COMPARED[r["compared"]].claim == "6a"
    ]
    dots = [x for line in score.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert sorted(dots) == pytest.approx(sorted(100 * row["difference"] for row in compared))


def test_values_from_a_file_are_numbers_in_their_order(tmp_path, rng):
    """Where 16 stands before 4 as a word."""
    grid_rows = picture_tables.grid_rows(rng)
    store.write_text(tmp_path / "grid.csv", store.csv_text(grid_rows, list(grid_rows[0])))
    figure = grid.scale_grid(read(tmp_path / "grid.csv"))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["rate × 0.5", "rate × 2", "n·r = 4", "n·r = 8", "n·r = 16"]
