"""Figures of the studies, read back from their artists."""

import itertools

import numpy as np
import picture_tables
import pytest
from picture_tables import line, rounding_rows

from multilora.reproduction.pictures import experiments


def test_cut_curves_have_a_panel_a_kind_and_family(rng):
    cut_rows = picture_tables.cut_rows(rng)
    figure = experiments.cut_curves(cut_rows)
    assert len(figure.axes) == 4
    assert [ax.get_title() for ax in figure.axes[:2]] == ["mean of the families", "knowledge"]
    for ax, kind in ((figure.axes[1], "keep"), (figure.axes[3], "remove")):
        lora = line(ax, "lora")
        assert list(lora.get_xdata()) == [0, 1, 2, 4]
        chosen = [r for r in cut_rows if (r["method"], r["kind"], r["k"]) == ("lora", kind, 2)]
        want = 100 * np.mean([row["score_knowledge"] for row in chosen])
        assert lora.get_ydata()[2] == pytest.approx(want)
    assert list(line(figure.axes[1], "full").get_xdata()) == [0, 1, 2, 4, 8]


def test_rounding_is_beside_the_truth(rng):
    rows = rounding_rows(rng)
    figure = experiments.rounding_floor(rows)
    for ax, (measure, title) in zip(figure.axes, experiments.ROUNDED.items(), strict=True):
        after = line(ax, "ΔW of rounded weights")
        assert list(after.get_xdata()) == [0.01, 0.3]
        want = [np.mean([r[measure] for r in rows if r["ratio"] == at]) for at in (0.01, 0.3)]
        np.testing.assert_allclose(after.get_ydata(), want)
        assert ax.get_title() == title
        assert ax.get_xscale() == "log"
    truth = line(figure.axes[0], "ΔW itself").get_ydata()
    want = np.mean([r["effective_rank_true"] for r in rows if r["ratio"] == 0.01])
    assert truth[0] == pytest.approx(want)


def test_wild_adapters_are_by_rank_at_their_last_step(rng):
    wild_rows = picture_tables.wild_rows(rng)
    figure = experiments.wild_adapters(wild_rows)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a, r = 2", "b, r = 8"]
    modules, medians = left.lines[3], left.lines[4]  # of the second adapter
    last = [row["top_share_1"] for row in wild_rows if row["step"] == 20]
    np.testing.assert_array_equal(modules.get_xdata(), last)
    assert medians.get_xdata()[0] == np.median(last)
    assert left.lines[5].get_xdata()[0] == 1 / 8
    over = line(right, "b")
    first = [row["top_share_1"] for row in wild_rows if row["step"] == 10]
    np.testing.assert_allclose(over.get_xydata(), [[10, np.median(first)], [20, np.median(last)]])


def test_dynamics_are_lines_over_steps(rng):
    measures = ("top_share_1", "effective_rank_k", "gini_k", "frobenius_norm")
    rows = [
        {"method": m, "seed": seed, "step": step, "k": 8, **{c: rng.random() for c in measures}}
        for m, seed, step in itertools.product(("lora", "full"), (0, 1), (20, 10))
    ]
    figure = experiments.dynamics(rows)
    drawn = line(figure.axes[0], "lora")
    want = [
        np.mean([r["top_share_1"] for r in rows if (r["method"], r["step"]) == ("lora", step)])
        for step in (10, 20)
    ]
    np.testing.assert_allclose(drawn.get_xydata(), list(zip((10, 20), want, strict=True)))
    assert {ax.get_xlabel() for ax in figure.axes} == {"step of training"}
