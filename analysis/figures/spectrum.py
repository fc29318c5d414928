"""Draw the spectra of several checkpoints, and one number of every module."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from analysis import UserError
from analysis.figures.plots import plot_band, plot_ecdf, plot_histogram, plot_matrix, thinned
from analysis.names import drawable, run_key
from analysis.numerics import statistics
from analysis.results import Row, Spectra, grouped

Checkpoint = tuple[str, int | None]  # run and step
Key = TypeVar("Key")
Value = TypeVar("Value")
Style = dict[str, Any]

# The colours of Okabe and Ito, which colour-blind readers can tell apart, without yellow, which is
# too light for a line; and as many line styles, for print.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (5, 1, 1, 1)),
)
LEAST = 0.1  # least range of a colour scale, as a share of its largest value
WIDEST, TALLEST = 18, 16  # inches of a figure of many panels
WRITTEN = 0.16  # inches of a row in which numbers can be read
MOST_CHECKPOINTS = 49  # as many lines as differ, and panels
MOST_DOWN = 16  # panels below one another
MOST_KINDS = 60  # columns of a panel
MOST_NUMBERS = 1500  # numbers that are written into the cells of a figure
LEGEND = 140  # characters that fit into one line of a legend below the figure


def style(i: int) -> Style:
    """Return the colour and line style of the i-th line; 49 of them differ."""
    n = len(COLORS)
    return {"color": COLORS[i % n], "linestyle": LINES[(i + i // n) % n]}


def compare_spectra(spectra: Spectra, labels: Mapping[Checkpoint, str] | None = None) -> Figure:
    """Return a figure of the normalised spectra of all checkpoints: bands, ECDF and histogram.

    spectra: values below the rank cutoff count as 0, and updates without a value above it are
        left out.
    labels: (run, step) -> name in the legend; by default run@step, or the steps of a single run.

    Of more than MOST_CHECKPOINTS some between the first and the last are left out. The bands are
    over the modules that have the first k values, k the median capacity. The ECDF is
    of all values that the capacities allow, so it starts at the share of zeros; the histogram
    counts values per module, so that capacities can be compared. Raises UserError if every update
    is left out.
    """
    values = _spread(_normalised(spectra))
    if not values:
        raise UserError("no update has a value above its rank cutoff; nothing to draw")
    runs = dict.fromkeys(run for run, _ in values)
    one_run = len(values) > len(runs) == 1
    labels = labels or {c: _step(c) if one_run else drawable(run_key(*c)) for c in values}
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    bands, ecdf, histogram = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    bins = _bins([np.concatenate(of_run) for of_run in values.values()])
    for i, (checkpoint, of_run) in enumerate(values.items()):
        line_kw = style(i) | {"label": labels[checkpoint]}
        together = np.concatenate(of_run)
        _draw_band(bands, of_run, len(values), line_kw)
        plot_ecdf(together, ecdf, **line_kw)
        plot_histogram(together, len(of_run), bins, histogram, linewidth=1.5, **line_kw)
    bands.set_title("median and 10–90 % of modules")
    bands.set_xscale("log", base=2)
    bands.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ecdf.set(xscale="log", title="distribution, each within its own capacity")
    histogram.set(xscale="log", title="histogram", ylabel="values per module in each bin")
    for ax in (ecdf, histogram):
        ax.set_xlabel(bands.get_ylabel())
    if one_run:
        figure.suptitle(drawable(next(iter(runs)), longest=120))
    widest = max(map(len, labels.values()))
    handles, names = bands.get_legend_handles_labels()
    columns = max(1, LEGEND // (widest + 7))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=3)
    return figure


def by_layer(rows: Sequence[Row], column: str) -> Figure:
    """Return a figure of one number by layer and kind of module, one panel per checkpoint.

    rows: of `spectrum.analyse`; a module with parts is drawn by their mean.
    column: the number; all panels share one colour scale, which spans at least a tenth of the
        largest value (`colour_range`).

    Modules without a layer in their name, or without the number, are left out; of more than
    MOST_KINDS kinds the rarest are, and of more than MOST_CHECKPOINTS checkpoints some between the
    first and the last. Numbers are written into the cells and all layers are labelled as far as
    there is room. Raises UserError if no module is left.
    """
    rows = [row for row in rows if row["layer"] is not None and row[column] is not None]
    if not rows:
        raise UserError(f"{column}: no module with a layer in its name has it; nothing to draw")
    layers = sorted({row["layer"] for row in rows})
    kinds, shown = list(dict.fromkeys(row["kind"] for row in rows)), grouped(rows, "run", "step")
    frequent = {kind for kind, _ in Counter(row["kind"] for row in rows).most_common(MOST_KINDS)}
    left_out = len(kinds) - len(frequent)
    kinds = [kind for kind in kinds if kind in frequent]
    width = float(np.clip(0.7 * len(kinds), 1.6, WIDEST - 2))  # inches of a panel
    panels = _spread(shown, min(MOST_CHECKPOINTS, MOST_DOWN * int((WIDEST - 2) / width)))
    across = int(np.clip((WIDEST - 2) / width, 1, len(panels)))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)  # rows of about equal length
    room = min(0.28, max(2.0, TALLEST / down) / len(layers))  # inches of a layer
    labels = thinned(list(map(drawable, kinds)), width / len(kinds))
    below = 0.5 + 0.08 * max(map(len, labels))
    size = (across * (width + 0.2) + 2, down * (room * len(layers) + 0.7) + below)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    low, high, widened = colour_range([row[column] for row in rows])
    names = thinned([str(layer) for layer in layers], room)
    numbers = len(layers) * len(kinds) * len(panels)
    row_of, column_of = ({x: i for i, x in enumerate(of)} for of in (layers, kinds))
    for ax, ((run, step), of_panel) in zip(axes.flat, panels.items(), strict=False):
        matrix = np.full((len(layers), len(kinds)), np.nan)
        for (layer, kind), of_module in grouped(of_panel, "layer", "kind").items():
            if kind in frequent:
                mean = np.mean([row[column] for row in of_module])
                matrix[row_of[layer], column_of[kind]] = mean
        form = "{:.3g}" if room >= WRITTEN and numbers <= MOST_NUMBERS else ""
        plot_matrix(matrix, names, labels, ax, form, vmin=low, vmax=high)
        title = textwrap.fill(drawable(run_key(run, step), 120), int(12 * width))
        ax.set_title(title, fontsize=9)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax in axes.flat[max(0, len(panels) - across) : len(panels)]:
        ax.xaxis.set_tick_params(labelbottom=True)  # also above a place that stays empty
        lean(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("layer")
    note = "\n(colours span a tenth of the largest value)" if widened else ""
    if left_out:
        note += f"\n({left_out} rarer kinds are not shown)"
    if len(panels) < len(shown):
        note += f"\n({len(panels)} of {len(shown)} checkpoints are shown)"
    label = f"{column.replace('_', ' ')}{note}"
    drawn = list(axes.flat[: len(panels)])
    figure.colorbar(drawn[0].images[0], ax=drawn, label=label, aspect=30)
    return figure


def colour_range(values: Sequence[float]) -> tuple[float, float, bool]:
    """Return (low, high, widened) of a colour scale for the values.

    From the least to the largest, but at least a tenth of the largest magnitude wide, so that
    differences without a meaning have no colours; widened says whether that was needed. The upper
    end is the largest value. Of zeros alone, (0, 1, True).

    >>> colour_range([0.2, 0.6])
    (0.2, 0.6, False)
    >>> colour_range([0.5, 0.50001])[2]
    True
    """
    low, high = min(values), max(values)
    least = LEAST * max(abs(low), abs(high))
    if least == 0:
        return 0.0, 1.0, True
    return min(low, high - least), high, high - low < least


def lean(ax: Axes, degrees: float = 60) -> None:
    """Turn the labels of the x axis, so that each ends at its tick."""
    for label in ax.get_xticklabels():
        label.set(rotation=degrees, ha="right", rotation_mode="anchor")


def _spread(checkpoints: Mapping[Key, Value], most: int = MOST_CHECKPOINTS) -> dict[Key, Value]:
    """Return at most `most` of the items, evenly spaced, with the first and the last."""
    keys = list(checkpoints)
    if len(keys) > most:
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, most).round().astype(int)]
    return {key: checkpoints[key] for key in keys}


def _step(checkpoint: Checkpoint) -> str:
    return "end" if checkpoint[1] is None else f"step {checkpoint[1]}"


def _normalised(spectra: Spectra) -> dict[Checkpoint, list[np.ndarray]]:
    """s / ‖s‖_F of every module by checkpoint, with zeros below the rank cutoff."""
    values: dict[Checkpoint, list[np.ndarray]] = {}
    for row in spectra.rows:
        if row["rank"] > 0:
            s = statistics.normalised(spectra.s[row["key"]])
            s = np.where(np.arange(s.size) < row["rank"], s, 0)
            values.setdefault((row["run"], row["step"]), []).append(s)
    return values


def _bins(values: Sequence[np.ndarray]) -> np.ndarray:
    """Edges of bins on a log scale around all positive values: √n bins, from 10 to 40.

    n: the number of positive values of the checkpoint that has fewest.
    """
    positive = [s[s > 0] for s in values]
    least, top = (f(f(s) for s in positive) for f in (min, max))
    n = int(np.clip(np.sqrt(min(s.size for s in positive)), 10, 40))
    return np.geomspace(least / (1 + 1e-9), top * (1 + 1e-9), n + 1)


def _draw_band(ax: Axes, values: Sequence[np.ndarray], checkpoints: int, line_kw: Style) -> None:
    """Draw the normalised spectra of a checkpoint as a median with a band.

    ax: the Axes.
    values: the spectra.
    checkpoints: how many bands share the Axes; the more, the paler each.
    line_kw: colour, line style and label.
    """
    k = int(np.quantile([s.size for s in values], 0.5, method="lower"))
    band = statistics.band([s for s in values if s.size >= k], k=k)
    low, median, high = (np.where(s > 0, s, np.nan) for s in band)
    marker = "o" if k == 1 else None  # one value does not make a line
    plot_band(low, median, high, ax, marker=marker, **line_kw)
    # Without edges, many bands on top of one another would be one grey area.
    ax.collections[-1].set(
        alpha=None,
        facecolor=(line_kw["color"], min(0.2, 0.3 / checkpoints)),
        edgecolor=(line_kw["color"], 0.7),
        linestyle=line_kw["linestyle"],
        linewidth=0.7,
    )
