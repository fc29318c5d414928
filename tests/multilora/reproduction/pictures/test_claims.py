"""Figures of dominance, overlap and grid, read back from their artists."""

import numpy as np
import picture_tables
import pytest
from matplotlib.colors import to_hex
from picture_tables import line, read

from analysis import store
from multilora.reproduction.pictures import claims
from multilora.reproduction.pictures.styles import MULTILORA, ordered


def test_the_ablation_has_a_row_a_method(rng):
    methods_rows = picture_tables.methods_rows(rng)
    for row in methods_rows:
        if row["method"] == "peft:DORA":
            row["gini_k"] = None  # of a lower capacity than k
    figure = claims.dominance_ablation(methods_rows)
    first, _, last = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["full", "lora", "multilora (n = 3, B random, s = 0)", "peft:DORA"]
    dots = [line for line in first.lines if len(line.get_xdata()) == 3]
    for method, drawn in zip(ordered(methods_rows), dots, strict=True):
        want = [row["top_share_1"] for row in methods_rows if row["method"] == method]
        np.testing.assert_array_equal(drawn.get_xdata(), want)
    assert sum(len(line.get_xdata()) == 3 for line in last.lines) == 3
    assert "energy" in first.get_xlabel()


def test_module_overlap_is_by_projection_and_by_n(rng):
    overlap_rows = picture_tables.overlap_rows(rng)
    figure = claims.module_overlap(overlap_rows)
    left, right, by_n, _ = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["q", "up"]
    plain = [row for row in overlap_rows if row["method"] == "multilora"]
    for ax, side in ((left, "left"), (right, "right")):
        dots, chance = ax.lines[:2]
        want = [
            np.mean([r[f"{side}_phi"] for r in plain if (r["kind"], r["seed"]) == ("q_proj", s)])
            for s in (0, 1)
        ]
        np.testing.assert_allclose(dots.get_ydata(), want)
        assert set(chance.get_ydata()) == {plain[0][f"{side}_chance"]}
    assert [label.get_text() for label in by_n.get_xticklabels()] == ["2", "3"]


def test_grid_differences_are_by_seed(rng):
    grid_rows = picture_tables.grid_rows(rng)
    found = claims.grid_differences(grid_rows)
    assert {row["measure"] for row in found} == {"top_share_1", "effective_rank_k", "score"}
    assert len(found) == 5 * 2 * 3 * 2
    value = {
        tuple(row[c] for c in ("setting", "value", "seed", "method")): row for row in grid_rows
    }
    for row in found:
        a, b = (value[row["setting"], row["value"], row["seed"], row[m]] for m in "ab")
        assert row["difference"] == a[row["measure"]] - b[row["measure"]]


def test_a_grid_without_a_method_has_no_difference_with_it(rng):
    grid_rows = picture_tables.grid_rows(rng)
    left = [row for row in grid_rows if row["method"] != "full"]
    assert {(r["a"], r["b"]) for r in claims.grid_differences(left)} == {("multilora", "lora")}


def test_the_grid_has_a_column_a_setting_and_ordered_values(rng):
    grid_rows = picture_tables.grid_rows(rng)
    overlaps = [{**row, "overlap_above_chance": 0.1} for row in grid_rows]
    figure = claims.scale_grid(overlaps)
    assert len(figure.axes) == 4 * 2
    last = figure.axes[-2:]
    assert [ax.get_xlabel() for ax in last] == [claims.SETTINGS["n·r"], claims.SETTINGS["rate"]]
    assert [label.get_text() for label in last[0].get_xticklabels()] == ["4", "8", "16"]
    first = figure.axes[0]
    new = line(first, "MultiLoRA − LoRA")
    assert to_hex(new.get_color()) == MULTILORA.lower()
    want = sorted(
        row["difference"]
        for row in claims.grid_differences(grid_rows)
        if (row["setting"], row["measure"], row["b"]) == ("n·r", "top_share_1", "lora")
    )
    assert sorted(new.get_ydata()) == want
    assert any(list(drawn.get_ydata()) == [0, 0] for drawn in first.lines)
    (overlap,) = [ax for ax in figure.axes if ax.get_ylabel().startswith("overlap")]
    assert set(line(overlap, "MultiLoRA").get_ydata()) == {0.1}


def test_the_grid_shows_what_is_found_where_nothing_is_changed(rng):
    grid_rows = picture_tables.grid_rows(rng)
    usual = [
        row | {"value": 1} for row in grid_rows if (row["setting"], row["value"]) == ("rate", 2)
    ]
    figure = claims.scale_grid([*grid_rows, *usual])
    differences = [
        row["difference"]
        for row in claims.grid_differences(usual)
        if (row["measure"], row["b"]) == ("top_share_1", "lora")
    ]
    for ax in figure.axes[:2]:
        dotted = [drawn for drawn in ax.lines if drawn.get_label() == "mean without a change"]
        (new,) = [drawn for drawn in dotted if to_hex(drawn.get_color()) == MULTILORA.lower()]
        assert new.get_ydata() == pytest.approx([np.mean(differences)] * 2)


def test_values_of_a_setting_are_numbers_in_their_order(tmp_path, rng):
    """Also from a file, where 16 stands before 4 as a word."""
    grid_rows = picture_tables.grid_rows(rng)
    store.write_text(tmp_path / "grid.csv", store.csv_text(grid_rows, list(grid_rows[0])))
    figure = claims.scale_grid(read(tmp_path / "grid.csv"))
    (ranks,) = [ax for ax in figure.axes if ax.get_xlabel() == claims.SETTINGS["n·r"]]
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["4", "8", "16"]
