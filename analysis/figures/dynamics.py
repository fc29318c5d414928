"""The figure of a run: how its update moves over the steps."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plots import plot_steps
from analysis.figures.spectrum import style
from analysis.names import run_key, update_key
from analysis.numerics.subspaces import SIDES
from analysis.results import Dynamics, Row, grouped
from analysis.tables.dynamics import OTHERS

BAND = (0.1, 0.5, 0.9)  # quantiles over modules


def over_steps(found: Dynamics, run: str) -> Figure:
    """How the update of one run moves: values, shares, ranks, and directions on both sides.

    Lines are medians over modules, bands their 10–90 % range.
    """
    rows = [row for row in found.rows if row["run"] == run]
    by_step = {step: of_step for (step,), of_step in sorted(grouped(rows, "step").items())}
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    _draw_values(axes[0, 0], found.s, by_step)
    for i, k in enumerate((1, 4)):
        _draw(axes[0, 1], by_step, f"top_share_{k}", f"top-{k}", i)
    axes[0, 1].set(title="largest values", ylabel="share of the energy", ylim=(0, 1.02))
    _draw(axes[0, 2], by_step, "effective_rank", "effective rank", 0)
    axes[0, 2].set(title="evenness", ylabel="effective rank", ylim=(0, None))
    _draw(axes[1, 0], by_step, "democracy", "democracy", 0)
    axes[1, 0].set(title="1 is as even as chance", ylabel="democracy", ylim=(0, 1.1))
    titles = ("directions shared with the step before", "directions shared with the last step")
    for ax, other, title in zip(axes[1, 1:], OTHERS, titles, strict=True):
        for i, side in enumerate(SIDES):
            _draw(ax, by_step, f"{side}_phi_1_{other}", f"φ(1) {side}", i)
            _draw(ax, by_step, f"{side}_phi_k_{other}", f"φ(k) {side}", i + len(SIDES))
        ax.set(title=title, ylabel="φ", ylim=(0, 1.02))
    axes[0, 0].legend(loc="lower center", ncols=6, columnspacing=1, handlelength=1.8)
    axes[0, 1].legend(loc="lower right")
    axes[1, 2].legend(loc="lower right")
    for ax in axes[0]:
        ax.set_xlabel("")
    figure.suptitle(f"{run}: median and 10–90 % of {len(next(iter(by_step.values())))} modules")
    return figure


def _draw(ax: Axes, by_step: Mapping[int, Sequence[Row]], column: str, label: str, i: int) -> None:
    """One column as a line with a band."""
    values = ([row[column] for row in rows if row[column] is not None] for rows in by_step.values())
    low, median, high = np.array(list(_bands(values))).T
    plot_steps(list(by_step), low, median, high, ax, label=label, **style(i))


def _bands(values: Iterator[Sequence[float]]) -> Iterator[np.ndarray]:
    for of_step in values:
        yield np.quantile(of_step, BAND) if len(of_step) else np.full(len(BAND), np.nan)


def _draw_values(
    ax: Axes, s: Mapping[str, np.ndarray], by_step: Mapping[int, Sequence[Row]]
) -> None:
    """The 1st, 2nd, 4th, … singular value over the steps."""
    spectra = [[s[_key(row)] for row in rows] for rows in by_step.values()]
    k = min(of_module.size for of_step in spectra for of_module in of_step)
    for i, n in enumerate(2**exponent for exponent in range(6) if 2**exponent <= k):
        values = np.array(list(_bands([v[n - 1] for v in of_step] for of_step in spectra)))
        values[values <= 0] = np.nan  # ΔW = 0 has no place on a log axis
        low, median, high = values.T
        plot_steps(list(by_step), low, median, high, ax, label=f"s{n}", **style(i))
    ax.set(yscale="log", title="singular values", ylabel="singular value")
    ax.set_ylim(bottom=ax.get_ylim()[0] / 3)  # for the legend


def _key(row: Row) -> str:
    return update_key(run_key(row["run"], row["step"]), row["module"], row["part"])
