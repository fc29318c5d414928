"""Dots with intervals and lines with ranges, read back from their artists."""

import matplotlib as mpl
import numpy as np
import pytest

from analysis.numerics import statistics
from multilora.reproduction.pictures import axes


def test_seeds_are_dots_with_the_interval_of_their_mean():
    ax = mpl.figure.Figure().subplots()
    values = [1.0, 2.0, 4.0]
    axes.plot_seeds(values, 0, ax)
    dots, interval, mean = ax.lines
    np.testing.assert_array_equal(dots.get_xdata(), values)
    np.testing.assert_allclose(interval.get_xdata(), statistics.interval(np.array(values)))
    assert mean.get_xdata()[0] == pytest.approx(7 / 3)


def test_one_seed_has_no_interval():
    ax = mpl.figure.Figure().subplots()
    axes.plot_seeds([1.0], 0, ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 1]


def test_seeds_range_around_their_mean_and_leave_gaps_out():
    ax = mpl.figure.Figure().subplots()
    axes.plot_over_seeds([1, 2, 4], [[1.0, 3.0], [], [5.0, 5.0]], ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2], [4, 5]])
    corners = {tuple(v) for v in ax.collections[0].get_paths()[0].vertices}
    assert corners == {(1.0, 1.0), (1.0, 3.0), (4.0, 5.0)}
