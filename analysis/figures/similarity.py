"""Comparisons → figures: what two updates share, what many do, how one moves over its steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plots import plot_angles, plot_matrix, plot_phi
from analysis.figures.spectrum import style
from analysis.numerics import null
from analysis.numerics.subspaces import SIDES, above_chance, chance
from analysis.results import Row, Similarity, grouped
from analysis.tables.similarity import RUNS, pair_name, run_name

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
