"""Spectra by method, and the directions that methods share."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure

from analysis.figures.plots import plot_band, plot_matrix, plot_zeros
from analysis.figures.spectrum import Style
from analysis.numerics import statistics
from analysis.results import Row, Spectra, grouped
from multilora.reproduction.pictures.styles import styles
from multilora.reproduction.trained import MAIN

Band = tuple[np.ndarray, np.ndarray, np.ndarray]

PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj")
BINS = 79
MOST = 5  # methods that one picture can tell apart


def bands_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """The bands of every projection, a row an index: what the upper half of the figure shows."""
    return [
        {"kind": kind, "method": method, "index": i + 1, "low": lo, "median": mid, "high": hi}
        for kind in dict.fromkeys(row["kind"] for row in spectra.rows)
        for method, band in _bands(spectra, method_of, kind).items()
        for i, (lo, mid, hi) in enumerate(zip(*band, strict=True))
    ]


def histogram_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """The histograms of all singular values, a row a bin: what the lower half of the figure shows.

    axis: "linear" or "logarithmic", from left to right; share: of all min(d_out, d_in) values of
    every module. Under axis "zero" the share that a low-rank parametrisation keeps at 0. The bins
    span the methods that the figure shows, so that no other one's values make them coarse.
    """
    methods = [
        row["method"] for row in _few([{"method": m} for m in dict.fromkeys(method_of.values())])
    ]
    values = {m: _values(spectra, _rows(spectra, method_of, m)) for m in methods}
    everything = np.concatenate([s for s, _ in values.values()])
    top, least = everything.max(), everything[everything > 0].min()
    axes = {
        "linear": np.linspace(0, top, BINS + 1),
        "logarithmic": np.geomspace(least, top, BINS + 1),
    }
    rows: list[Row] = []
    for method, (s, total) in values.items():
        row: Row = {"axis": "zero", "method": method, "left": 0.0, "right": 0.0}
        rows.append(row | {"share": 1 - s.size / total})
        for axis, edges in axes.items():
            row = {"axis": axis, "method": method}
            counts, _ = np.histogram(s, edges)
            rows += [
                row | {"left": float(left), "right": float(right), "share": float(count / total)}
                for left, right, count in zip(edges, edges[1:], counts, strict=False)
            ]
    return rows


def spectra_by_method(
    bands: Sequence[Row], histograms: Sequence[Row], projections: Sequence[str] = PROJECTIONS
) -> Figure:
    """Above, spectra of four projections, a band a method; below, histograms of all values.

    bands: of `bands_table`; histograms: of `histogram_table`. The share that a low-rank
    parametrisation keeps at zero stands in bars beside them. Of more methods than can be told
    apart the three that the claims compare are shown.
    """
    bands, histograms = _few(bands), _few(histograms)
    look = styles(row["method"] for row in histograms)
    figure = Figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _draw_bands(above, bands, projections, look)
    _draw_histograms(below, histograms, look)
    return figure


def _few(rows: Sequence[Row], *columns: str) -> Sequence[Row]:
    """All rows, or of more than MOST methods those of MAIN; columns: where the methods stand."""
    columns = columns or ("method",)
    if len({row[column] for row in rows for column in columns}) <= MOST:
        return rows
    return [row for row in rows if {row[column] for column in columns} <= set(MAIN)]


def _bands(spectra: Spectra, method_of: Mapping[str, str], kind: str) -> dict[str, Band]:
    """By method: the band of the normalised spectra of one projection over layers and seeds."""
    bands = {}
    for method in dict.fromkeys(method_of.values()):
        rows = [row for row in _rows(spectra, method_of, method) if row["kind"] == kind]
        if rows:
            values = [spectra.s[row["key"]] for row in rows]
            # AdaLoRA prunes each module to a rank of its own: as far as all of them go.
            bands[method] = statistics.band(values, k=min(s.size for s in values))
    return bands


def _draw_bands(
    figure: SubFigure, bands: Sequence[Row], projections: Sequence[str], look: Mapping[str, Style]
) -> None:
    axes = figure.subplots(1, len(projections), sharex=True, sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, projections, strict=True):
        of_kind = [row for row in bands if row["kind"] == kind]
        for (method,), rows in grouped(of_kind, "method").items():
            low, middle, high = (np.array([r[c] for r in rows]) for c in ("low", "median", "high"))
            plot_band(low, middle, high, ax, label=method, **look[method])
        ax.set_title(kind)
        ax.label_outer()
    axes[0].legend(title="median and\n10–90 % of modules", loc="lower left")


def _draw_histograms(
    figure: SubFigure, histograms: Sequence[Row], look: Mapping[str, Style]
) -> None:
    zeros, linear, log = figure.subplots(1, 3, width_ratios=(1, 2.4, 2.4))
    shares = {row["method"]: row["share"] for row in histograms if row["axis"] == "zero"}
    plot_zeros(shares, [look[method]["color"] for method in shares], zeros)
    zeros.set_title("beyond the capacity")
    for ax, axis in ((linear, "linear"), (log, "logarithmic")):
        of_axis = [row for row in histograms if row["axis"] == axis]
        for (method,), rows in grouped(of_axis, "method").items():
            edges = [row["left"] for row in rows] + [rows[-1]["right"]]
            heights = [row["share"] for row in rows]
            ax.stairs(heights, edges, label=method, linewidth=1.5, **look[method])
        ax.set(xlabel="singular value", ylabel="share of values a bin")
    linear.set(yscale="log", title="all other singular values, linear axis")
    log.set(xscale="log", title="the same, logarithmic axis")
    linear.legend()


def _rows(spectra: Spectra, method_of: Mapping[str, str], method: str) -> list[Row]:
    return [row for row in spectra.rows if method_of[row["run"]] == method]


def _values(spectra: Spectra, rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """All singular values of the rows, and how many the matrices have with those kept at zero."""
    s = np.concatenate([spectra.s[row["key"]] for row in rows])
    return s, sum(min(row["d_out"], row["d_in"]) for row in rows)


def subspace_similarity(rows: Sequence[Row]) -> Figure:
    """φ(k, k) between methods, left and right; on the diagonal between the seeds of one method.

    rows: of similarity_by_method.csv, over pairs of different seeds. Chance is in the titles. Of
    more methods than can be told apart the three that the claims compare are shown.
    """
    rows = _few(rows, "method_a", "method_b")
    names = list(dict.fromkeys(row[f"method_{end}"] for end in "ab" for row in rows))
    figure = Figure(figsize=(1.7 * len(names) + 4.5, 0.6 * len(names) + 2.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, side, what in zip(axes, ("left", "right"), ("written", "read"), strict=True):
        values = np.full((len(names), len(names)), np.nan)
        for row in rows:
            i, j = names.index(row["method_a"]), names.index(row["method_b"])
            values[i, j] = values[j, i] = row[f"{side}_phi_k"]
        plot_matrix(values, names, names, ax, vmin=0, vmax=1)
        chance = "–".join(dict.fromkeys(f"{row[f'{side}_chance_k']:.2f}" for row in rows))
        ax.set_title(f"{side}: directions that are {what} (chance {chance})", fontsize=10)
        ax.tick_params("x", rotation=30)
    counts = sorted({row["k"] for row in rows})
    k = f"k = {'–'.join(map(str, counts))}"
    label = f"φ(k, k), {k},\npairs of different seeds"
    figure.colorbar(axes[0].images[0], ax=list(axes), label=label)
    return figure
