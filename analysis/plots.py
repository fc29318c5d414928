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
