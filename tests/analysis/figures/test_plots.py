"""Figures are tested by reading their artists back."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis.figures import plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_spectrum_starts_at_index_one_and_leaves_zeros_out(ax):
    assert plots.plot_spectrum(np.array([4.0, 2.0, 0.0]), ax) is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [4, 2, np.nan])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel() == "index"
    assert ax.get_ylabel()


def test_band_surrounds_its_line_in_its_colour(ax):
    low, middle, high = np.array([1.0, 0.5]), np.array([2.0, 1.0]), np.array([3.0, 1.5])
    plots.plot_band(low, middle, high, ax, label="lora", color="#D55E00")
    (line,), (area,) = ax.lines, ax.collections
    np.testing.assert_array_equal(line.get_ydata(), middle)
    assert line.get_label() == "lora"
    corners = area.get_paths()[0].vertices
    assert {tuple(v) for v in corners} >= {(1.0, 1.0), (2.0, 0.5), (2.0, 1.5), (1.0, 3.0)}
    np.testing.assert_allclose(area.get_facecolor()[0, :3], mpl.colors.to_rgb("#D55E00"))


def test_histogram_counts_shares_of_the_total(ax):
    plots.plot_histogram(np.array([0.5, 1.5, 1.6]), 12, np.array([0.0, 1.0, 2.0]), ax)
    values = ax.patches[0].get_data().values
    np.testing.assert_allclose(values, [1 / 12, 2 / 12])


def test_zeros_are_bars_with_their_share_written_on_them(ax):
    plots.plot_zeros({"full": 0.0, "lora": 0.8125}, ["k", "r"], ax)
    assert [bar.get_height() for bar in ax.patches] == [0, 0.8125]
    assert [text.get_text() for text in ax.texts] == ["0%", "81%"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["full", "lora"]


def test_without_axes_the_current_ones_are_drawn_on(ax):
    plt.sca(ax)
    assert plots.plot_spectrum(np.ones(3)) is ax


def test_phi_lies_at_its_indices(ax):
    grid = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]])
    assert plots.plot_phi(grid, ax) is ax
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array().filled(np.nan), grid)
    # The middle of the first cell is (1, 1), and i runs downwards.
    assert image.get_extent() == [0.5, 3.5, 2.5, 0.5]
    assert image.get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("top j directions", "top i directions")


def test_a_matrix_has_its_numbers_written_in(ax):
    values = np.array([[0.0, 1.0], [0.25, np.nan]])
    plots.plot_matrix(values, ["a", "b"], ["x", "y"], ax, vmin=0, vmax=1)
    texts = {text.get_position(): text for text in ax.texts}
    assert {at: text.get_text() for at, text in texts.items()} == {
        (0, 0): "0.00",
        (1, 0): "1.00",
        (0, 1): "0.25",
    }
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert texts[0, 0].get_color() == "white"  # on the dark end of the scale
    assert texts[1, 0].get_color() == "black"


def test_steps_have_a_band(ax):
    low, middle, high = np.array([1.0, 2.0]), np.array([2.0, 3.0]), np.array([3.0, 4.0])
    plots.plot_steps([5, 50], low, middle, high, ax, label="top-1")
    (line,), (area,) = ax.lines, ax.collections
    np.testing.assert_array_equal(line.get_xydata(), [[5, 2], [50, 3]])
    assert {tuple(v) for v in area.get_paths()[0].vertices} >= {(5.0, 1.0), (50.0, 4.0)}
    assert ax.get_xlabel() == "step"


def test_angles_start_at_index_one(ax):
    plots.plot_angles(np.array([0.1, 1.5]), ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.1], [2, 1.5]])
    assert ax.get_ylim()[1] > np.pi / 2
    assert "radians" in ax.get_ylabel()


def test_ecdf_rises_by_one_share_at_each_value(ax):
    values = np.array([0.3, 0.1, 0.3, 0.2])
    assert plots.plot_ecdf(values, ax, color="#0072B2", label="lora") is ax
    (line,) = ax.lines
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    for at in (0.05, 0.1, 0.2, 0.25, 0.3, 0.5):
        drawn = y[np.searchsorted(x, at, side="right") - 1] if at >= x[0] else 0
        assert drawn == np.mean(values <= at)
    assert line.get_label() == "lora"
    assert ax.get_xlabel() == "singular value"
    assert ax.get_ylabel() == "share of values at most this"


def test_ecdf_of_one_value_is_one_step(ax):
    plots.plot_ecdf(np.array([2.0]), ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 1])
    assert set(ax.lines[0].get_xdata()) == {2.0}


def test_numbers_of_a_matrix_can_be_left_out(ax):
    plots.plot_matrix(np.eye(2), ["a", "b"], ["c", "d"], ax, form="")
    assert len(ax.texts) == 0
    assert ax.images[0].get_array().shape == (2, 2)


def test_every_label_is_kept_where_there_is_room():
    labels = [str(i) for i in range(9)]
    assert plots.thinned(labels, room=0.2) == labels
    assert [i for i, label in enumerate(plots.thinned(labels, room=0.05)) if label] == [0, 4, 8]


def test_directions_and_angles_have_whole_indices(ax):
    plots.plot_phi(np.eye(3), ax)
    ax.figure.draw_without_rendering()
    assert [tick for tick in ax.get_yticks() if 0 < tick < 4] == [1, 2, 3]
    figure, other = plt.subplots()
    plots.plot_angles(np.array([0.1, 0.2, 0.3]), other)
    assert all(tick == int(tick) for tick in other.get_xticks())
    plt.close(figure)


def test_a_forest_has_a_row_per_group_and_shades_a_side(ax):
    groups = [[0.1, 0.3], [], [-0.2]]
    assert plots.plot_forest(groups, [0.2, np.nan, -0.2], 1, ax, color="C1") is ax
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == groups
    assert [round(float(np.mean(line.get_ydata()))) for line in (dots[0], dots[2])] == [0, -2]
    middles = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "D"]
    np.testing.assert_array_equal(middles, [[0.2, 0], [np.nan, -1], [-0.2, -2]])
    (shade,) = ax.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (0, ax.get_xlim()[1])
    low, high = ax.get_ylim()
    assert low < -2 < 0 < high


def test_a_forest_without_a_side_has_no_shade(ax):
    plots.plot_forest([[1.0]], [1.0], ax=ax)
    assert len(ax.patches) == 0
