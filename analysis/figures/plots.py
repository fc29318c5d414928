"""Arrays, tables → Axes. A function here draws; it computes no statistics and saves nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes


def plot_spectrum(s: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Singular values against their index from 1, log scales; returns the Axes.

    Zeros have no place on a log axis and are left out.
    """
    ax = _axes(ax)
    ax.plot(np.arange(1, s.size + 1), np.where(s > 0, s, np.nan), **line_kw)
    return _label_spectrum(ax, "singular value")


def plot_band(
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    ax: Axes | None = None,
    **line_kw: Any,
) -> Axes:
    """A line with a band around it, normalised singular values against index, log scales.

    low, middle, high (k,), as `statistics.band` gives them; returns the Axes.
    """
    ax = _axes(ax)
    index = np.arange(1, middle.size + 1)
    (line,) = ax.plot(index, middle, **line_kw)
    ax.fill_between(index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return _label_spectrum(ax, r"singular value / $\|\Delta W\|_F$")


def plot_histogram(
    s: np.ndarray, total: int, bins: np.ndarray, ax: Axes | None = None, **stairs_kw: Any
) -> Axes:
    """Share of `total` values that lie in each of `bins`, as steps; returns the Axes.

    s (k,) holds the values that are not zero by construction, total counts those too, so that
    capacities can be compared. The scale of the axis is the caller's, as its bins are.
    """
    ax = _axes(ax)
    counts, _ = np.histogram(s, bins)
    ax.stairs(counts / total, bins, **stairs_kw)
    ax.set(xlabel="singular value", ylabel="share of values a bin")
    return ax


def plot_zeros(shares: Mapping[str, float], colors: Sequence[str], ax: Axes | None = None) -> Axes:
    """A bar a method: the share of values that its parametrisation keeps at zero, in [0, 1]."""
    ax = _axes(ax)
    bars = ax.bar(list(shares), list(shares.values()), color=list(colors))
    ax.bar_label(bars, fmt="{:.0%}")
    ax.set(ylim=(0, 1), ylabel="share of values that are exactly 0")
    ax.tick_params("x", rotation=30)
    return ax


def plot_phi(grid: np.ndarray, ax: Axes | None = None, **image_kw: Any) -> Axes:
    """φ(i, j), or its chance level, as a heat map from 0 to 1; returns the Axes.

    grid (k₁, k₂), φ(i, j) at [i − 1, j − 1], nan left blank. The image is ax.images[-1], from
    which the caller's figure makes the colour bar.
    """
    ax = _axes(ax)
    k1, k2 = grid.shape
    usual: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "cividis"}
    ax.imshow(grid, extent=(0.5, k2 + 0.5, k1 + 0.5, 0.5), **usual | image_kw)
    ax.set(xlabel="top j directions", ylabel="top i directions")
    return ax


def plot_matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    ax: Axes | None = None,
    form: str = "{:.2f}",
    **image_kw: Any,
) -> Axes:
    """A heat map with its numbers written in; returns the Axes, whose caller names them.

    values (len(rows), len(columns)), nan left blank: a metric by layer and projection, or what
    pairs of runs share.
    """
    ax = _axes(ax)
    usual: dict[str, Any] = {"cmap": "cividis", "aspect": "auto"}
    image = ax.imshow(values, **usual | image_kw)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    low, high = image.get_clim()
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value < low + 0.6 * (high - low) else "black"
            ax.text(j, i, form.format(value), ha="center", va="center", color=color, fontsize=8)
    return ax


def plot_steps(
    steps: Sequence[int],
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    ax: Axes | None = None,
    **line_kw: Any,
) -> Axes:
    """How a number moves over the steps of a run, a line with a band; returns the Axes.

    low, middle, high (len(steps),), nan where it is undefined.
    """
    ax = _axes(ax)
    (line,) = ax.plot(steps, middle, marker=".", **line_kw)
    ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xlabel="step")
    return ax


def plot_angles(angles: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Principal angles (k,), radians, ascending, against their index; returns the Axes."""
    ax = _axes(ax)
    ax.plot(np.arange(1, angles.size + 1), angles, **line_kw)
    ax.set(xlabel="index", ylabel="principal angle, radians", ylim=(0, 0.53 * np.pi))
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def _label_spectrum(ax: Axes, ylabel: str) -> Axes:
    ax.set(xscale="log", yscale="log", xlabel="index", ylabel=ylabel)
    return ax


def plot_ecdf(values: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Share of the values that are at most x, against x, as steps; returns the Axes.

    values (n,), in any order. The scale of the axis is the caller's.
    """
    ax = _axes(ax)
    ax.ecdf(values, **line_kw)
    ax.set(xlabel="singular value", ylabel="share of values at most this")
    return ax
