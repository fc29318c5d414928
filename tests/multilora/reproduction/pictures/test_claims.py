"""Figures of dominance and overlap, read back from their artists."""

import numpy as np
import picture_tables
import pytest
from matplotlib.colors import to_hex
from picture_tables import line

from multilora.reproduction.pictures import claims
from multilora.reproduction.pictures.styles import MULTILORA, ordered


def test_the_ablation_has_a_row_per_method(rng):
    methods_rows = picture_tables.methods_rows(rng)
    figure = claims.dominance_ablation(methods_rows)
    first, _, last = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    want = ["full fine-tuning", "LoRA", "MultiLoRA (n = 3, B random, s = 0)", "DORA (PEFT)"]
    assert names == want
    for ax, measure in ((first, "top_share_1"), (last, "gini_k")):
        dots = [drawn for drawn in ax.lines if len(drawn.get_xdata()) == 3]
        for method, drawn in zip(ordered(methods_rows), dots, strict=True):
            values = [row[measure] for row in methods_rows if row["method"] == method]
            np.testing.assert_array_equal(drawn.get_xdata(), values)
    assert "energy" in first.get_xlabel()


def test_a_method_of_lower_capacity_is_not_applicable_in_its_row(rng):
    methods_rows = picture_tables.methods_rows(rng)
    assert not any(ax.texts for ax in claims.dominance_ablation(methods_rows).axes)
    for row in methods_rows:
        if row["method"] == "peft:DORA":
            row["gini_k"] = None
    figure = claims.dominance_ablation(methods_rows)
    assert [len(ax.texts) for ax in figure.axes] == [0, 0, 1]
    (empty,) = figure.axes[2].texts
    assert (empty.get_text(), empty.get_position()[1]) == ("n/a", -3)
    assert "n/a: capacity below 24" in figure.get_suptitle()


def test_chance_is_a_tick_where_the_table_has_it(rng):
    methods_rows = picture_tables.methods_rows(rng)
    assert ticks(claims.dominance_ablation(methods_rows).axes[0]) == {}
    for row in methods_rows:
        row["null_top_share_1"] = 0.1 * row["seed"]
        row["null_gini_k"] = None
    figure = claims.dominance_ablation(methods_rows)
    assert ticks(figure.axes[0]) == pytest.approx({-y: 0.1 for y in range(4)})
    assert ticks(figure.axes[1]) == ticks(figure.axes[2]) == {}
    assert "by chance" in figure.get_suptitle()


def ticks(ax):
    """Return {height: value} of the ticks of chance."""
    drawn = [line for line in ax.lines if line.get_marker() == "|"]
    return {line.get_ydata()[0]: line.get_xdata()[0] for line in drawn}


def test_module_overlap_is_by_projection_and_variant(rng):
    overlap_rows = picture_tables.overlap_rows(rng)
    overlap_rows[0]["left_phi"] = None  # undetermined
    figure = claims.module_overlap(overlap_rows)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["q", "up"]
    plain = [row for row in overlap_rows if row["method"] == "multilora"]
    for ax, side in ((left, "left"), (right, "right")):
        drawn = line(ax, "MultiLoRA (n = 3)")
        assert to_hex(drawn.get_color()) == MULTILORA.lower()
        want = [
            np.mean([r[f"{side}_phi"] for r in of if r[f"{side}_phi"] is not None])
            for kind in ("up_proj", "q_proj")
            for seed in (0, 1)
            if (of := [r for r in plain if (r["kind"], r["seed"]) == (kind, seed)])
        ]
        np.testing.assert_allclose(sorted(drawn.get_ydata()), sorted(want))
        chance = [other for other in ax.lines if other.get_label() == "chance, r/d"]
        assert len(chance) == 3 * 2
        assert {y for other in chance for y in other.get_ydata()} == {plain[0][f"{side}_chance"]}
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        *("MultiLoRA (n = 3)", "MultiLoRA, zero start (n = 3)", "multilora n=2 (n = 2)"),
        "chance, r/d",
    ]


def test_overlap_of_different_seeds_is_drawn_where_the_table_has_it(rng):
    overlap_rows = picture_tables.overlap_rows(rng)
    nulls = [row | {"left_null": 0.07, "right_null": None} for row in overlap_rows]
    left, right = claims.module_overlap(nulls).axes
    drawn = [line for line in left.lines if line.get_label() == "modules of different seeds"]
    assert [list(line.get_ydata()) for line in drawn] == [[0.07, 0.07]] * 6
    assert "modules of different seeds" not in [line.get_label() for line in right.lines]


def test_markers_of_the_variants_differ(rng):
    left, _ = claims.module_overlap(picture_tables.overlap_rows(rng)).axes
    markers = [line.get_marker() for line in left.lines if line.get_marker() != "None"]
    assert len(set(markers)) == len(markers) == 3
