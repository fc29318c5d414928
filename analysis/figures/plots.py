"""Draw arrays on Axes: one plot per function, without statistics, style or files.

Every function takes the Axes to draw on (by default the current ones), labels them and returns
them; further keyword arguments go to matplotlib.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

MOST_TICKS = 200  # on an axis; of more, only those with a label


def plot_spectrum(s: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Draw singular values against their index from 1, on log scales.

    s (k,), descending. Zeros, which a log axis cannot show, are left out.
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
    """Draw normalised singular values against their index as a line with a band, on log scales.

    low, middle, high: (k,) each, as `statistics.band` returns them.
    ax: the Axes.
    line_kw: for the line, whose colour the band takes.
    """
    ax = _axes(ax)
    index = np.arange(1, middle.size + 1)
    (line,) = ax.plot(index, middle, **line_kw)
    ax.fill_between(index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return _label_spectrum(ax, r"singular value / $\|\Delta W\|_F$")


def plot_histogram(
    s: np.ndarray, total: int, bins: np.ndarray, ax: Axes | None = None, **stairs_kw: Any
) -> Axes:
    """Draw as steps the share of `total` values that lies in each bin.

    s: (k,), the values that are not zero by construction.
    total: the number of all values, including those zeros, so that capacities can be compared.
    bins: (bins + 1,), ascending edges; the scale of the axis is left to the caller.
    ax: the Axes.
    stairs_kw: for `Axes.stairs`.
    """
    ax = _axes(ax)
    counts, _ = np.histogram(s, bins)
    ax.stairs(counts / total, bins, **stairs_kw)
    ax.set(xlabel="singular value", ylabel="share of values per bin")
    return ax


def plot_ecdf(values: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Draw as steps the share of values that are at most x, against x.

    values (n,), in any order. The scale of the axis is left to the caller.
    """
    ax = _axes(ax)
    ax.ecdf(values, **line_kw)
    ax.set(xlabel="singular value", ylabel="share of values at most this")
    return ax


def plot_zeros(shares: Mapping[str, float], colors: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw one bar per method: the share of singular values that are zero by its parametrisation.

    shares: method -> share in [0, 1].
    colors: one per bar.
    ax: the Axes.
    """
    ax = _axes(ax)
    bars = ax.bar(list(shares), list(shares.values()), color=list(colors))
    ax.bar_label(bars, fmt="{:.0%}")
    ax.set(ylim=(0, 1), ylabel="share of values that are exactly 0")
    ax.tick_params("x", rotation=30)
    return ax


def plot_phi(grid: np.ndarray, ax: Axes | None = None, **image_kw: Any) -> Axes:
    """Draw φ(i, j), or its chance level, as a heat map from 0 to 1.

    grid (k₁, k₂) has φ(i, j) at [i − 1, j − 1]; nan is left blank. The image is ax.images[-1], for
    a colour bar of the caller's figure.
    """
    ax = _axes(ax)
    k1, k2 = grid.shape
    usual: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "cividis"}
    ax.imshow(grid, extent=(0.5, k2 + 0.5, k1 + 0.5, 0.5), **usual | image_kw)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
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
    """Draw a heat map with its numbers written in; the caller labels the axes.

    values: (len(rows), len(columns)), such as a metric by layer and kind; nan is left blank.
    rows, columns: tick labels; "" for none.
    ax: the Axes.
    form: format of the numbers; empty to write none.
    image_kw: for `Axes.imshow`.
    """
    ax = _axes(ax)
    usual: dict[str, Any] = {"cmap": "cividis", "aspect": "auto"}
    image = ax.imshow(values, **usual | image_kw)
    for axis, labels in ((ax.xaxis, columns), (ax.yaxis, rows)):
        # Thousands of ticks, most of them without a label, would take minutes to draw.
        at = [i for i, label in enumerate(labels) if label or len(labels) <= MOST_TICKS]
        axis.set_ticks(at, [labels[i] for i in at])
    low, high = image.get_clim()
    for (i, j), value in np.ndenumerate(values):
        if form and np.isfinite(value):
            color = "white" if value < low + 0.6 * (high - low) else "black"
            ax.text(j, i, form.format(value), ha="center", va="center", color=color, fontsize=8)
    return ax


def plot_forest(
    values: Sequence[Sequence[float]],
    middles: Sequence[float],
    side: int = 0,
    ax: Axes | None = None,
    **line_kw: Any,
) -> Axes:
    """Draw one row per group, the first on top: its values as dots, a diamond at its middle.

    values: of each group, in any number; middles: one per group, such as their means.
    side: 1 or −1 to shade what is above or below zero, such as the side that a claim names; 0 for
        no shade.
    ax: the Axes; rows are at y = 0, −1, … and are labelled by the caller, as is the x axis.
    line_kw: for dots and diamonds, such as their colour.
    """
    ax = _axes(ax)
    for i, (of_group, middle) in enumerate(zip(values, middles, strict=True)):
        n = len(of_group)
        shifts = np.linspace(-0.13, 0.13, n) if n > 1 else np.zeros(n)
        ax.plot(of_group, shifts - i, "o", markersize=5, alpha=0.6, mew=0, **line_kw)
        ax.plot(middle, -i, "D", markersize=4, **line_kw)
    ax.axvline(0, color="black", linewidth=0.8)
    low, high = ax.get_xlim()
    if side:
        ax.axvspan(0, high if side > 0 else low, alpha=0.08, linewidth=0, **line_kw)
        ax.set_xlim(low, high)
    ax.set_ylim(0.3 - len(values), 0.7)
    ax.grid(axis="x", alpha=0.3)
    return ax


def thinned(labels: Sequence[str], room: float, height: float = 0.17) -> list[str]:
    """Return tick labels with blanks in place of those that would run into one another.

    labels: one per position; room: inches from one position to the next.
    height: inches that a label takes along the axis; every n-th label is kept, n ≥ 1.

    >>> thinned(["0", "1", "2", "3"], room=0.1)
    ['0', '', '2', '']
    """
    every = max(1, math.ceil(height / room))
    return [label if i % every == 0 else "" for i, label in enumerate(labels)]


def plot_steps(
    steps: Sequence[int],
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    ax: Axes | None = None,
    **line_kw: Any,
) -> Axes:
    """Draw a number over the steps of a run as a line with a band.

    steps: ascending.
    low, middle, high: (len(steps),) each; nan if undefined.
    ax: the Axes.
    line_kw: for the line, whose colour the band takes.
    """
    ax = _axes(ax)
    (line,) = ax.plot(steps, middle, marker=".", **line_kw)
    ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xlabel="step")
    return ax


def plot_angles(angles: np.ndarray, ax: Axes | None = None, **line_kw: Any) -> Axes:
    """Draw principal angles (k,), in radians, ascending, against their index from 1."""
    ax = _axes(ax)
    ax.plot(np.arange(1, angles.size + 1), angles, **line_kw)
    ax.set(xlabel="index", ylabel="principal angle, radians", ylim=(0, 0.53 * np.pi))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.gca()


def _label_spectrum(ax: Axes, ylabel: str) -> Axes:
    ax.set(xscale="log", yscale="log", xlabel="index", ylabel=ylabel)
    return ax
