"""Draw numbers by seed into Axes: dots with intervals, lines with ranges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.numerics import statistics


def plot_seeds(values: Sequence[float], y: float, ax: Axes, **line_kw: Any) -> Axes:
    """Draw one dot per seed, and below the dots their mean and its Student interval.

    values: (seeds,); one seed has no interval.
    y: the height in `ax`.
    ax: the Axes, which are returned.
    line_kw: the look of dots and lines.
    """
    dots = np.array(values, float)
    ax.plot(dots, np.full(dots.size, y + 0.16), "o", markersize=4, alpha=0.55, mew=0, **line_kw)
    mean, (low, high) = dots.mean(), statistics.interval(dots)
    if dots.size > 1:
        ax.plot([low, high], [y - 0.12, y - 0.12], linewidth=1.6, **line_kw)
    ax.plot(mean, y - 0.12, "D", markersize=5.5, **line_kw)
    return ax


def plot_over_seeds(
    x: Sequence[float], by_seed: Sequence[Sequence[float]], ax: Axes, **line_kw: Any
) -> Axes:
    """Draw the mean over seeds as a line and their range as a band.

    x: the places.
    by_seed: the values at each x; a place without values is left out.
    ax: the Axes, which are returned.
    line_kw: the look of the line.
    """
    filled = [(at, values) for at, values in zip(x, by_seed, strict=True) if len(values)]
    at = [at for at, _ in filled]
    (line,) = ax.plot(at, [float(np.mean(values)) for _, values in filled], **line_kw)
    low, high = ([float(f(values)) for _, values in filled] for f in (np.min, np.max))
    ax.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    return ax
