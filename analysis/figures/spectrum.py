"""Results of an analysis → figures: colours, arrangement, files. Each function returns a Figure."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from analysis import UserError, store
from analysis.figures.plots import plot_band, plot_ecdf, plot_histogram, plot_matrix
from analysis.numerics import statistics
from analysis.pairs import dominance
from analysis.pairs.dominance import Checkpoint
from analysis.results import Row, Spectra, grouped

Style = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers tell apart, but for the yellow, which is too
# light for a line; and a line style each, for print.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = (
    *("-", "--", "-.", ":"),
    *((0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (5, 1, 1, 1))),
)
LEGEND = 140  # letters that fit below a figure


def style(i: int) -> Style:
    """Colour and line style of the i-th of several things; 49 of them are different."""
    n = len(COLORS)
    return {"color": COLORS[i % n], "linestyle": LINES[(i + i // n) % n]}


def save(figure: Figure, stem: Path) -> None:
    """Write stem.png and stem.pdf, renamed into place; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        draw = functools.partial(figure.savefig, dpi=150, format=kind, metadata=metadata)
        store.replace(stem.parent / f"{stem.name}.{kind}", draw)


def compare_spectra(spectra: Spectra, labels: Mapping[Checkpoint, str] | None = None) -> Figure:
    """The normalised spectra of several checkpoints: bands over modules, ECDF and histogram.

    labels: (run, step) -> what the legend calls it; else run@step, or the steps of a single run.
    The bands are over the modules that have the first k values, k the median capacity. The ECDF is
    of all values that the capacities allow, and starts at the share of zeros; the histogram counts
    values by module, so that capacities can be compared. What lies below the rank cutoff counts as
    0. ΔW without a value above it is left out; ValueError where nothing else is there.
    """
    values = _normalised(spectra)
    if not values:
        raise UserError("no update has a value above its rank cutoff; nothing to draw")
    runs = dict.fromkeys(run for run, _ in values)
    one_run = len(values) > len(runs) == 1
    labels = labels or {c: _step(c) if one_run else dominance.name(c) for c in values}
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    bins = _bins([np.concatenate(of_run) for of_run in values.values()])
    for i, (checkpoint, of_run) in enumerate(values.items()):
        _draw(axes, of_run, bins, len(values), style(i) | {"label": labels[checkpoint]})
    axes[0].set_title("median and 10–90 % of modules")
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].set(xscale="log", title="distribution, each within its own capacity")
    axes[2].set(xscale="log", title="histogram", ylabel="values a module in each bin")
    for ax in axes[1:]:
        ax.set_xlabel(axes[0].get_ylabel())
    if one_run:
        figure.suptitle(*runs)
    widest = max(map(len, labels.values()))
    handles, names = axes[0].get_legend_handles_labels()
    columns = max(1, LEGEND // (widest + 7))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=3)
    return figure


def by_layer(rows: Sequence[Row], column: str) -> Figure:
    """A number of every module, layer by projection, a panel a checkpoint on one scale.

    rows: of `spectrum.analyse`. The mean where a module has parts; modules without a layer in
    their name are left out, ValueError where none has one.
    """
    rows = [row for row in rows if row["layer"] is not None and row[column] is not None]
    if not rows:
        raise UserError(f"{column}: no module with a layer in its name has it; nothing to draw")
    layers = sorted({row["layer"] for row in rows})
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    panels = grouped(rows, "run", "step")
    size = ((0.7 * len(kinds) + 0.8) * len(panels) + 2, 0.28 * len(layers) + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    values = [row[column] for row in rows]
    scale = {"vmin": min(values), "vmax": max(values)}
    for ax, (checkpoint, of_panel) in zip(axes, panels.items(), strict=True):
        matrix = np.full((len(layers), len(kinds)), np.nan)
        for (layer, kind), of_module in grouped(of_panel, "layer", "kind").items():
            mean = np.mean([row[column] for row in of_module])
            matrix[layers.index(layer), kinds.index(kind)] = mean
        plot_matrix(matrix, [str(layer) for layer in layers], kinds, ax, "{:.3g}", **scale)
        run, step = checkpoint
        ax.set_title(dominance.name((run, step)))
        ax.tick_params("x", rotation=60)
    axes[0].set_ylabel("layer")
    figure.colorbar(axes[0].images[0], ax=list(axes), label=column.replace("_", " "))
    return figure


def _step(checkpoint: Checkpoint) -> str:
    return "end" if checkpoint[1] is None else f"step {checkpoint[1]}"


def _normalised(spectra: Spectra) -> dict[Checkpoint, list[np.ndarray]]:
    """By checkpoint: s / ‖s‖_F of every module, zero below the rank cutoff."""
    values: dict[Checkpoint, list[np.ndarray]] = {}
    for row in spectra.rows:
        if row["rank"] > 0:
            s = statistics.normalised(spectra.s[row["key"]])
            s = np.where(np.arange(s.size) < row["rank"], s, 0)
            values.setdefault((row["run"], row["step"]), []).append(s)
    return values


def _bins(values: Sequence[np.ndarray]) -> np.ndarray:
    """Edges on a log scale around all positive values, 10 to 40 bins: √n of the fewest values."""
    positive = [s[s > 0] for s in values]
    least, top = (f(f(s) for s in positive) for f in (min, max))
    n = int(np.clip(np.sqrt(min(s.size for s in positive)), 10, 40))
    return np.geomspace(least / (1 + 1e-9), top * (1 + 1e-9), n + 1)


def _draw(
    axes: np.ndarray, values: Sequence[np.ndarray], bins: np.ndarray, of: int, kw: Style
) -> None:
    """One of several checkpoints on the three axes; values are its normalised spectra."""
    k = int(np.quantile([s.size for s in values], 0.5, method="lower"))
    band = statistics.band([s for s in values if s.size >= k], k=k)
    low, median, high = (np.where(s > 0, s, np.nan) for s in band)
    # One value has no line; and many bands upon one another would be one grey without their edges.
    bands = plot_band(low, median, high, axes[0], marker="o" if k == 1 else None, **kw)
    face, edge = (kw["color"], min(0.2, 0.3 / of)), (kw["color"], 0.7)
    area = bands.collections[-1]
    area.set(alpha=None, facecolor=face, edgecolor=edge, linestyle=kw["linestyle"], linewidth=0.7)
    together = np.concatenate(values)
    plot_ecdf(together, axes[1], **kw)
    plot_histogram(together, len(values), bins, axes[2], linewidth=1.5, **kw)
