"""Numbers by seed → Axes: dots and intervals, lines and ranges. Axes in, Axes out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.numerics import statistics


def plot_seeds(values: Sequence[float], y: float, ax: Axes, **kw: Any) -> Axes:
    """A dot a seed at height y, below it their mean and its Student interval; returns the Axes.

    values (seeds,). One seed has no interval.
    """
    dots = np.array(values, float)
    ax.plot(dots, np.full(dots.size, y + 0.16), "o", markersize=4, alpha=0.55, mew=0, **kw)
    mean, (low, high) = dots.mean(), statistics.interval(dots)
    if dots.size > 1:
        ax.plot([low, high], [y - 0.12, y - 0.12], linewidth=1.6, **kw)
    ax.plot(mean, y - 0.12, "D", markersize=5.5, **kw)
    return ax


def plot_over_seeds(
    x: Sequence[float], by_seed: Sequence[Sequence[float]], ax: Axes, **kw: Any
) -> Axes:
    """The mean over seeds as a line, their range as a band; returns the Axes.

    by_seed: for each x its values; nothing is drawn where there is none.
    """
    filled = [(at, values) for at, values in zip(x, by_seed, strict=True) if len(values)]
    at = [at for at, _ in filled]
    (line,) = ax.plot(at, [float(np.mean(values)) for _, values in filled], **kw)
    low, high = ([float(f(values)) for _, values in filled] for f in (np.min, np.max))
    ax.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    return ax
