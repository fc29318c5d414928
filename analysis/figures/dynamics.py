"""Draw how the update of a run changes over its steps."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plots import plot_steps
from analysis.figures.spectrum import style
from analysis.names import drawable, run_key, update_key
from analysis.numerics.subspaces import SIDES
from analysis.results import Dynamics, Row, grouped

BAND = (0.1, 0.5, 0.9)  # quantiles over modules: lower edge, line, upper edge
LARGEST = (1, 2, 4, 8, 16, 32)  # indices of the singular values that are drawn
Steps = Mapping[int, Sequence[Row]]  # step -> its rows, by ascending step


def over_steps(dynamics: Dynamics, run: str) -> Figure:
    """Return a figure of one run: its values, energy shares and ranks, and shared directions.

    Lines are medians over modules, bands their 10–90 % range.
    """
    rows = [row for row in dynamics.rows if row["run"] == run]
    by_step = {step: of_step for (step,), of_step in sorted(grouped(rows, "step").items())}
    figure = Figure(figsize=(13, 7), layout="constrained")
    values, shares, ranks, democracy, previous, last = figure.subplots(2, 3, sharex=True).flat
    _draw_values(values, dynamics.s, by_step)
    for i, k in enumerate((1, 4)):
        _draw_column(shares, by_step, f"top_share_{k}", label=f"top-{k}", i=i)
    shares.set(title="largest values", ylabel="share of the energy", ylim=(0, 1.02))
    shares.legend(loc="lower right")
    _draw_column(ranks, by_step, "effective_rank", label="effective rank", i=0)
    ranks.set(title="evenness", ylabel="effective rank", ylim=(0, None))
    _draw_column(democracy, by_step, "democracy", label="democracy", i=0)
    democracy.set(title="1 is as even as chance", ylabel="democracy", ylim=(0, 1.1))
    _draw_shared(previous, by_step, "previous")
    previous.set_title("directions shared with the previous step")
    _draw_shared(last, by_step, "last")
    last.set_title("directions shared with the last step")
    last.legend(loc="lower right")
    for ax in (values, shares, ranks):
        ax.set_xlabel("")
    figure.suptitle(
        f"{drawable(run, 100)}: median and 10–90 % of {len(next(iter(by_step.values())))} modules"
    )
    return figure


def _draw_values(ax: Axes, s: Mapping[str, np.ndarray], by_step: Steps) -> None:
    """Draw the 1st, 2nd, 4th, … singular value, up to the smallest capacity of any module."""
    spectra = [[s[_key(row)] for row in rows] for rows in by_step.values()]
    k = min(of_module.size for of_step in spectra for of_module in of_step)
    for i, n in enumerate(n for n in LARGEST if n <= k):
        values = _bands([v[n - 1] for v in of_step] for of_step in spectra)
        # Zeros, as for ΔW = 0, cannot be shown on a log axis.
        low, median, high = np.where(values > 0, values, np.nan)
        plot_steps(list(by_step), low, median, high, ax, label=f"s{n}", **style(i))
    ax.set(yscale="log", title="singular values", ylabel="singular value")
    ax.set_ylim(bottom=ax.get_ylim()[0] / 3)  # room for the legend
    ax.legend(loc="lower center", ncols=6, columnspacing=1, handlelength=1.8)


def _draw_shared(ax: Axes, by_step: Steps, other: str) -> None:
    """Draw φ(1) and φ(k) of both sides with the "previous" or the "last" step."""
    for i, side in enumerate(SIDES):
        _draw_column(ax, by_step, f"{side}_phi_1_{other}", label=f"φ(1) {side}", i=i)
        _draw_column(ax, by_step, f"{side}_phi_k_{other}", label=f"φ(k) {side}", i=i + len(SIDES))
    ax.set(ylabel="φ", ylim=(0, 1.02))


def _draw_column(ax: Axes, by_step: Steps, column: str, label: str, i: int) -> None:
    """Draw one column of the rows as a line with a band, in the i-th style."""
    values = ([row[column] for row in rows if row[column] is not None] for rows in by_step.values())
    low, median, high = _bands(values)
    plot_steps(list(by_step), low, median, high, ax, label=label, **style(i))


def _bands(of_steps: Iterable[Sequence[float]]) -> np.ndarray:
    """The quantiles BAND of each step's values, (3, steps); nan for a step without values."""
    undefined = np.full(len(BAND), np.nan)
    return np.array([np.quantile(v, BAND) if len(v) else undefined for v in of_steps]).T


def _key(row: Row) -> str:
    return update_key(run_key(row["run"], row["step"]), row["module"], row["part"])
