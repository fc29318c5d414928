"""Comparisons → figures: what two updates share, what many do, how one moves over its steps."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import null
from analysis.checkpoint import run_key, update_key
from analysis.dynamics import OTHERS, Dynamics
from analysis.figures import style
from analysis.plots import plot_angles, plot_matrix, plot_phi, plot_steps
from analysis.similarity import Similarity
from analysis.similarity_table import RUNS, pair_name, run_name
from analysis.store import Row
from analysis.subspaces import SIDES, above_chance, chance
from analysis.table import grouped

BAND = (0.1, 0.5, 0.9)  # quantiles over modules
SHAPES = {"left": "d_out", "right": "d_in"}
WHAT = {"left": "left: what is written", "right": "right: what is read"}


def shared_by_two(found: Similarity) -> Figure:
    """φ of the first pair of runs on both sides, chance beside it, and the principal angles.

    φ is the mean over the modules that have the first k directions, k the median rank.
    """
    (runs, rows), *_ = grouped(found.rows, *RUNS).items()
    k = int(
        np.quantile([len(found.phi[f"{row['key']}#left"]) for row in rows], 0.5, method="lower")
    )
    rows = [row for row in rows if len(found.phi[f"{row['key']}#left"]) >= k]
    line = dict(zip(RUNS, runs, strict=True))
    shared, random = {}, {}
    for side in SIDES:
        shared[side] = _mean([found.phi[f"{row['key']}#{side}"][:k, :k] for row in rows])
        random[side] = _mean([chance(k, k, row[SHAPES[side]]) for row in rows])
    greatest = np.nan_to_num([*shared.values(), *random.values()]).max()
    scale = {"vmin": 0, "vmax": _round_up(greatest)}
    figure = Figure(figsize=(13, 7), layout="constrained")
    maps, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.3, 1))[0]
    axes = maps.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    for of_side, side in zip(axes, SIDES, strict=True):
        for ax, grid, title in zip(of_side, (shared, random), ("", ", by chance"), strict=True):
            plot_phi(grid[side], ax, **scale)
            ax.set(title=WHAT[side] + title, xlabel=f"top j of {run_name(line, 'b')}")
            ax.set_ylabel(f"top i of {run_name(line, 'a')}")
            ax.label_outer()
    maps.colorbar(axes[0, 0].images[0], ax=list(axes.flat), label="φ(i, j)")
    for ax, side in zip(curves.subplots(2, 1, squeeze=False)[:, 0], SIDES, strict=True):
        _draw_angles(ax, found, rows, side)
    figure.suptitle(f"{pair_name(line)}: mean over {len(rows)} modules")
    return figure


def _round_up(share: float) -> float:
    """The end of a colour scale: the next tenth, at least 0.1 and at most 1."""
    return float(np.clip(np.ceil(10 * share) / 10, 0.1, 1.0))


def _mean(grids: Sequence[np.ndarray] | Sequence[float]) -> np.ndarray:
    """Entry by entry, over the grids in which it is defined; nan where it is in none."""
    stacked = np.array(grids)
    defined = np.isfinite(stacked)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    count = defined.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _draw_angles(ax: Axes, found: Similarity, rows: Sequence[Row], side: str) -> None:
    """The principal angles of every module, their median, and the mean of random subspaces."""
    angles = [found.phi.get(f"{row['key']}#{side}_angles") for row in rows]
    known = [(row, a) for row, a in zip(rows, angles, strict=True) if a is not None]
    for _, of_module in known:
        plot_angles(of_module, ax, color="0.8", linewidth=0.5)
    k = min((a.size for _, a in known), default=0)
    if k:
        plot_angles(np.median([a[:k] for _, a in known], axis=0), ax, label="median", **style(0))
        random = [null.null_angles(row[SHAPES[side]], a.size)[:k] for row, a in known]
        plot_angles(np.mean(random, axis=0), ax, label="by chance", **style(1))
        ax.legend(loc="lower right")
    ax.set_title(f"{side}: angles between the top k")


def shared_by_many(found: Similarity) -> Figure:
    """What every pair of several runs shares, both sides: mean of φ(i, i) − i/d over i = 1…k.

    k is one for all, the smallest rank of any pair; means over modules.
    """
    names = list(dict.fromkeys(run_name(row, side) for side in "ab" for row in found.rows))
    k = min(len(found.phi[f"{row['key']}#left"]) for row in found.rows)
    figure = Figure(figsize=(1.5 * len(names) + 5, 0.45 * len(names) + 2.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shared = {side: np.full((len(names), len(names)), np.nan) for side in SIDES}
    for side, values in shared.items():
        for rows in grouped(found.rows, *RUNS).values():
            i, j = (names.index(run_name(rows[0], of)) for of in "ab")
            of_pair = [
                above_chance(found.phi[f"{row['key']}#{side}"][:k, :k], row[SHAPES[side]])
                for row in rows
            ]
            values[i, j] = values[j, i] = _mean(of_pair)
    greatest = max(float(np.nan_to_num(values).max()) for values in shared.values())
    for ax, side in zip(axes, SIDES, strict=True):
        plot_matrix(shared[side], names, names, ax, vmin=0, vmax=_round_up(greatest))
        ax.set_title(WHAT[side])
        ax.tick_params("x", rotation=30)
    label = f"φ(i, i) − chance,\nmean over i = 1…{k}"
    figure.colorbar(axes[0].images[0], ax=list(axes), label=label)
    return figure


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
