"""Draw what two updates share, and what each pair of several runs shares."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.figures.plots import plot_angles, plot_matrix, plot_phi, thinned
from analysis.figures.spectrum import lean, style
from analysis.names import drawable
from analysis.numerics import null
from analysis.numerics.subspaces import SIDES, above_chance, chance
from analysis.results import RUNS, Row, Similarity, grouped, pair_name, run_name

SHAPES = {"left": "d_out", "right": "d_in"}  # the dimension of either side's directions
MOST_LINES = 300  # of single modules
READABLE = 0.42  # inches of a cell in which a number can be read
TITLES = {"left": "left: what is written", "right": "right: what is read"}


def shared_by_two(similarity: Similarity) -> Figure:
    """Return a figure of φ and principal angles of the first pair of runs, with chance.

    φ is the mean over the modules that have the first k directions, k the median rank.
    """
    (runs, rows), *_ = grouped(similarity.rows, *RUNS).items()
    sizes = [_directions(similarity, row) for row in rows]
    k = int(np.quantile(sizes, 0.5, method="lower"))
    rows = [row for row, size in zip(rows, sizes, strict=True) if size >= k]
    shared, random = {}, {}
    for side in SIDES:
        shared[side] = _mean([similarity.phi[f"{row['key']}#{side}"][:k, :k] for row in rows])
        random[side] = _mean([chance(k, k, row[SHAPES[side]]) for row in rows])
    line = dict(zip(RUNS, runs, strict=True))
    figure = Figure(figsize=(13, 7), layout="constrained")
    maps, curves = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.3, 1))[0]
    _draw_maps(maps, shared, random, line)
    for ax, side in zip(curves.subplots(2, 1, squeeze=False)[:, 0], SIDES, strict=True):
        _draw_angles(ax, similarity, rows, side)
    figure.suptitle(f"{drawable(pair_name(line), 130)}: mean over {len(rows)} modules")
    return figure


def _directions(similarity: Similarity, row: Row) -> int:
    """The number of directions for which φ of a pair is known: its smaller rank."""
    return len(similarity.phi[f"{row['key']}#left"])


def _mean(grids: Sequence[np.ndarray] | Sequence[float]) -> np.ndarray:
    """Mean of each entry over the grids in which it is defined; nan if it is defined in none."""
    stacked = np.array(grids)
    defined = np.isfinite(stacked)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    count = defined.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _draw_maps(
    figure: SubFigure, shared: Mapping[str, np.ndarray], random: Mapping[str, np.ndarray], runs: Row
) -> None:
    """Draw φ per side, with chance to its right, all on one colour scale.

    shared, random: side -> φ (k, k) of the two updates, and of random subspaces.
    runs: the two runs, by RUNS.
    """
    axes = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    greatest = np.nan_to_num([*shared.values(), *random.values()]).max()
    for of_side, side in zip(axes, SIDES, strict=True):
        for ax, grid, title in zip(of_side, (shared, random), ("", ", by chance"), strict=True):
            plot_phi(grid[side], ax, vmin=0, vmax=_round_up(greatest))
            ax.set(title=TITLES[side] + title, xlabel=f"top j of {drawable(run_name(runs, 'b'))}")
            ax.set_ylabel(f"top i of {drawable(run_name(runs, 'a'))}")
            ax.label_outer()
    figure.colorbar(axes[0, 0].images[0], ax=list(axes.flat), label="φ(i, j)")


def _round_up(share: float) -> float:
    """The end of a colour scale: the next tenth, at least 0.1 and at most 1."""
    return float(np.clip(np.ceil(10 * share) / 10, 0.1, 1.0))


def _draw_angles(ax: Axes, similarity: Similarity, rows: Sequence[Row], side: str) -> None:
    """Draw the principal angles of every module, their median, and the mean by chance.

    Of more than MOST_LINES modules some are left out of the lines, not of the median.
    """
    angles = [similarity.phi.get(f"{row['key']}#{side}_angles") for row in rows]
    known = [(row, a) for row, a in zip(rows, angles, strict=True) if a is not None]
    for _, of_module in known[:: max(1, math.ceil(len(known) / MOST_LINES))]:
        plot_angles(of_module, ax, color="0.8", linewidth=0.5)
    k = min((a.size for _, a in known), default=0)
    if k:
        plot_angles(np.median([a[:k] for _, a in known], axis=0), ax, label="median", **style(0))
        random = [null.null_angles(row[SHAPES[side]], a.size)[:k] for row, a in known]
        plot_angles(np.mean(random, axis=0), ax, label="by chance", **style(1))
        ax.legend(loc="lower right")
    ax.set_title(f"{side}: angles between the top k")


def shared_by_many(similarity: Similarity) -> Figure:
    """Return a figure of what each pair of runs shares: mean of φ(i, i) − i/d over i = 1…k.

    Both sides, means over modules. k is the smallest rank of any pair. The colours start at chance
    and span at least 0.1. Numbers are written into the cells and all runs are labelled as far as
    there is room.
    """
    rows = similarity.rows
    names = list(dict.fromkeys(run_name(row, side) for side in "ab" for row in rows))
    k = min(_directions(similarity, row) for row in rows)
    shared = {side: _shared(similarity, names, side, k) for side in SIDES}
    greatest = max(float(np.nan_to_num(values).max()) for values in shared.values())
    room = min(1.0, 6 / min(len(names), 120)) * min(1.0, 500 / len(names))  # inches of a cell
    shown = list(map(drawable, names))
    width = 0.085 * max(map(len, shown))  # inches of the longest name
    size = (2 * room * len(names) + width + 2.5, 0.8 * (room * len(names) + width) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = thinned(shown, 0.8 * room)
    for ax, side in zip(axes, SIDES, strict=True):
        form = "{:z.2f}" if room >= READABLE else ""
        plot_matrix(shared[side], labels, labels, ax, form, vmin=0, vmax=_round_up(greatest))
        ax.set_title(TITLES[side])
        lean(ax)
    label = f"φ(i, i) − chance, mean over i = 1…{k}"
    figure.colorbar(axes[0].images[0], ax=list(axes), label=label)
    return figure


def _shared(similarity: Similarity, names: Sequence[str], side: str, k: int) -> np.ndarray:
    """Mean φ above chance of each pair of runs, (len(names), len(names)); nan on the diagonal."""
    values = np.full((len(names), len(names)), np.nan)
    for rows in grouped(similarity.rows, *RUNS).values():
        i, j = (names.index(run_name(rows[0], of)) for of in "ab")
        of_pair = [
            above_chance(similarity.phi[f"{row['key']}#{side}"][:k, :k], row[SHAPES[side]])
            for row in rows
        ]
        values[i, j] = values[j, i] = _mean(of_pair)
    return values
