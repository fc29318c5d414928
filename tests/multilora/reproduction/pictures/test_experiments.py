"""Figures of the studies, read back from their artists."""

import itertools

import numpy as np
import picture_tables
import pytest
from picture_tables import line, rounding_rows

from multilora.reproduction.pictures import experiments


def test_cut_curves_are_shares_of_the_gain_and_name_those_of_the_top_8(rng):
    cut_rows = picture_tables.cut_rows(rng)
    figure = experiments.cut_curves(cut_rows)
    assert [ax.get_title() for ax in figure.axes] == list(experiments.CUTS.values())
    for ax, kind in zip(figure.axes, experiments.CUTS, strict=True):
        full, lora = (line(ax, label) for label in labels_of(ax, "full fine-tuning", "LoRA"))
        assert list(lora.get_xdata()) == [0, 1, 2, 4]
        assert list(full.get_xdata()) == [0, 1, 2, 4, 8]
        want = np.mean([share_of(cut_rows, "full", seed, kind, 8) for seed in (0, 1)])
        assert full.get_ydata()[-1] == pytest.approx(100 * want)
        assert full.get_label() == f"full fine-tuning: {100 * want:.0f} %"
        assert lora.get_label() == "LoRA"  # it has no cut at 8
    kept, removed = (line(ax, labels_of(ax, "LoRA")[0]).get_ydata() for ax in figure.axes)
    assert (kept[0], removed[0]) == pytest.approx((0, 100))


def labels_of(ax, *starts):
    """Return the labels of the lines that start with the words."""
    return [
        next(label for line in ax.lines if (label := line.get_label()).startswith(start))
        for start in starts
    ]


def share_of(rows, method, seed, kind, k):
    """Return the share of the gain at a cut, from the scores themselves."""
    scores = {
        (r["kind"], r["k"]): r["score"] for r in rows if (r["method"], r["seed"]) == (method, seed)
    }
    base, whole = scores["keep", 0], scores["remove", 0]
    return (scores[kind, k] - base) / (whole - base)


def test_a_run_that_gains_nothing_has_no_share(rng):
    cut_rows = picture_tables.cut_rows(rng)
    for row in cut_rows:
        if (row["method"], row["seed"], row["kind"], row["k"]) == ("lora", 1, "remove", 0):
            row["score"] = 0.2  # as the base
    runs = {(row["method"], row["seed"]) for row in experiments.gain_shares(cut_rows)}
    assert runs == {("full", 0), ("full", 1), ("lora", 0)}
    unknown = [row for row in cut_rows if (row["kind"], row["k"]) != ("keep", 0)]
    assert experiments.gain_shares(unknown) == []


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


def test_what_rounding_left_is_drawn_without_its_noise_where_that_is_known(rng):
    rows = rounding_rows(rng)
    for row in rows:
        known = row["ratio"] == 0.3
        row |= {f"{m}_denoised": 0.5 if known else None for m in ("gini", "top_share_1")}
        row["effective_rank_denoised"] = 70.0 if known else None
    axes = experiments.rounding_floor(rows).axes
    for ax, want in zip(axes, (70.0, 0.5, 0.5), strict=False):
        estimate = line(ax, "without the noise")
        assert (list(estimate.get_xdata()), list(estimate.get_ydata())) == ([0.3], [want])
    assert "without the noise" not in [drawn.get_label() for drawn in axes[3].lines]


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
    drawn = line(figure.axes[0], "LoRA")
    want = [
        np.mean([r["top_share_1"] for r in rows if (r["method"], r["step"]) == ("lora", step)])
        for step in (10, 20)
    ]
    np.testing.assert_allclose(drawn.get_xydata(), list(zip((10, 20), want, strict=True)))
    assert {ax.get_xlabel() for ax in figure.axes} == {"step of training"}


def test_sizes_against_n_at_one_product_and_r_at_one_n():
    places = [(1, 24), (3, 8), (6, 4), (3, 2), (3, 16)]
    rows = [
        {"n": n, "r": r, "score": 0.5, "nll": 2 - 0.1 * n, "top_share_1": 1 / r,
         "null_top_share_1": 0.1, "democracy": 0.8}
        for n, r in places
    ]  # fmt: skip
    figure = experiments.sizes(rows[::-1], "nll")
    (by_n, by_r), (shares, _) = np.reshape(figure.axes, (3, 2))[:2]
    assert list(by_n.lines[0].get_xdata()) == [1, 3, 6]
    np.testing.assert_allclose(by_n.lines[0].get_ydata(), [1.9, 1.7, 1.4])
    assert list(by_r.lines[0].get_xdata()) == [2, 8, 16]
    np.testing.assert_allclose(shares.lines[0].get_ydata(), [1 / 24, 1 / 8, 1 / 4])
    assert "n·r = 24" in figure.axes[4].get_xlabel()
    assert "n = 3" in figure.axes[5].get_xlabel()
