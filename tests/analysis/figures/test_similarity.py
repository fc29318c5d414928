"""The figures of comparisons, read back from their artists."""

import numpy as np
import pytest

from analysis import similarity
from analysis.figures import similarity as similarity_figures
from analysis.numerics import null, subspaces
from analysis.results import Similarity


@pytest.fixture
def three(write_adapter, lora_tensors):
    return similarity.analyse(
        [write_adapter(lora_tensors("l.0.q", "l.0.v", "l.1.q"), name) for name in "abc"]
    )


@pytest.fixture
def two(write_adapter, lora_tensors):
    return similarity.analyse(
        [write_adapter(lora_tensors("l.0.q", "l.1.q", "l.2.q"), name) for name in "ab"]
    )


def maps(figure):
    return [ax for ax in figure.findobj(lambda x: hasattr(x, "images")) if ax.images]


def test_two_updates_beside_chance(two):
    figure = similarity_figures.shared_by_two(two)
    left, of_chance, *_ = maps(figure)
    grids = [two.phi[f"{row['key']}#left"] for row in two.rows]
    np.testing.assert_allclose(left.images[0].get_array(), np.mean(grids, axis=0))
    np.testing.assert_allclose(of_chance.images[0].get_array(), subspaces.chance(4, 4, 12))
    assert left.images[0].get_clim() == of_chance.images[0].get_clim()
    assert left.get_title() == "left: what is written"
    curves = [ax for ax in figure.findobj(lambda x: hasattr(x, "lines")) if len(ax.lines) > 1]
    assert len(curves) == 2
    for ax, side, d in zip(curves, subspaces.SIDES, (12, 10), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        angles = [two.phi[f"{row['key']}#{side}_angles"] for row in two.rows]
        np.testing.assert_allclose(lines["median"], np.median(angles, axis=0))
        np.testing.assert_allclose(lines["by chance"], null.null_angles(d, 4))
    assert figure.get_suptitle() == "a ~ b: mean over 3 modules"


def test_what_is_undetermined_is_left_out_of_the_mean(two):
    keys = [row["key"] for row in two.rows]
    two.phi[f"{keys[0]}#left"][1, :] = np.nan
    for key in keys:
        two.phi[f"{key}#left"][3, :] = np.nan
        del two.phi[f"{key}#right_angles"]
    shown = maps(similarity_figures.shared_by_two(two))[0].images[0].get_array().filled(np.nan)
    others = [two.phi[f"{key}#left"][1, 2] for key in keys[1:]]
    assert shown[1, 2] == pytest.approx(np.mean(others))
    assert np.isnan(shown[3]).all()


def test_every_pair_of_many_is_a_cell(three):
    figure = similarity_figures.shared_by_many(three)
    for ax, side, d in zip(maps(figure), subspaces.SIDES, (12, 10), strict=True):
        values = ax.images[0].get_array().filled(np.nan)
        assert np.isnan(np.diagonal(values)).all()
        np.testing.assert_array_equal(values, values.T)
        of_pair = [
            subspaces.above_chance(three.phi[f"{row['key']}#{side}"], d)
            for row in three.rows
            if (row["run_a"], row["run_b"]) == ("a", "c")
        ]
        assert values[0, 2] == pytest.approx(np.mean(of_pair))
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_many_runs_with_long_names_do_not_collide(write_adapter, lora_tensors):
    names = [f"a-run-with-a-long-name-seed-{i}" for i in range(10)]
    many = similarity.analyse([write_adapter(lora_tensors("l.0.q"), name) for name in names])
    figure = similarity_figures.shared_by_many(many)
    figure.draw_without_rendering()
    assert max(figure.get_size_inches()) < 25
    for ax in maps(figure):
        low, high = ax.images[0].get_clim()
        assert (low, high >= 0.1) == (0, True)
        numbers = [text.get_window_extent() for text in ax.texts]
        assert len(numbers) == 10 * 9
        assert not any(box.count_overlaps(numbers[:i]) for i, box in enumerate(numbers))
        assert not any(text.get_text() == "-0.00" for text in ax.texts)
        ends = [label.get_window_extent().x1 for label in ax.get_xticklabels()]
        assert (np.diff(ends) / figure.dpi * np.sin(np.pi / 3) > 0.15).all()


def test_of_a_hundred_runs_some_are_labelled_and_no_numbers_written():
    names = [f"r{i}" for i in range(100)]
    rows = [
        {"run_a": a, "step_a": None, "run_b": b, "step_b": None, "key": "k", "d_out": 9, "d_in": 9}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    phi = {f"k#{side}": np.eye(2) for side in subspaces.SIDES}
    ax = maps(similarity_figures.shared_by_many(Similarity(rows=rows, phi=phi)))[0]
    assert len(ax.texts) == 0
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown[:5] == ["r0", "", "", "", "r4"]
