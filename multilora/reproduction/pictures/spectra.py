"""Draw spectra by method, and the directions that methods share."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure, SubFigure

from analysis.figures.plots import plot_band, plot_matrix, plot_zeros
from analysis.figures.spectrum import Style
from analysis.results import Row, grouped
from multilora.reproduction import bands as tables
from multilora.reproduction.pictures.styles import styles

PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj")


def spectra_by_method(
    bands: Sequence[Row], histograms: Sequence[Row], projections: Sequence[str] = PROJECTIONS
) -> Figure:
    """Draw spectra of some projections above, one band per method, and histograms below.

    bands: of `bands.bands_table`.
    histograms: of `bands.histogram_table`.
    projections: the projections whose spectra are drawn.

    Bars show the share of values that a low-rank parametrisation keeps at zero. If there are more
    methods than can be told apart, only the three main ones are drawn.
    """
    bands, histograms = _shown(bands, "method"), _shown(histograms, "method")
    look = styles(row["method"] for row in histograms)
    figure = Figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _draw_bands(above, bands, projections, look)
    _draw_histograms(below, histograms, look)
    return figure


def _shown(rows: Sequence[Row], *columns: str) -> Sequence[Row]:
    """Return the rows whose methods are drawn; columns: those that name methods."""
    methods = tables.shown(row[column] for row in rows for column in columns)
    return [row for row in rows if all(row[column] in methods for column in columns)]


def _draw_bands(
    figure: SubFigure, bands: Sequence[Row], projections: Sequence[str], look: Mapping[str, Style]
) -> None:
    """Draw the spectra of each projection; look: colour and line of each method."""
    axes = figure.subplots(1, len(projections), sharex=True, sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, projections, strict=True):
        of_kind = [row for row in bands if row["kind"] == kind]
        for (method,), rows in grouped(of_kind, "method").items():
            low, median, high = (np.array([r[c] for r in rows]) for c in ("low", "median", "high"))
            plot_band(low, median, high, ax, label=method, **look[method])
        ax.set_title(kind)
        ax.label_outer()
    axes[0].legend(title="median and\n10–90 % of modules", loc="lower left")


def _draw_histograms(
    figure: SubFigure, histograms: Sequence[Row], look: Mapping[str, Style]
) -> None:
    """Draw the share of values at zero, and histograms on both axes."""
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
        ax.set(xlabel="singular value", ylabel="share of values per bin")
    linear.set(yscale="log", title="all other singular values, linear axis")
    log.set(xscale="log", title="the same, logarithmic axis")
    linear.legend()


def subspace_similarity(rows: Sequence[Row]) -> Figure:
    """Draw φ(k, k) between methods, left and right; the diagonal is between seeds of one method.

    rows: of similarity_by_method.csv, over pairs of different seeds. Chance is in the titles. If
    there are more methods than can be told apart, only the three main ones are drawn.
    """
    rows = _shown(rows, "method_a", "method_b")
    names = list(dict.fromkeys(row[f"method_{end}"] for end in "ab" for row in rows))
    figure = Figure(figsize=(1.7 * len(names) + 4.5, 0.6 * len(names) + 2.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, side, name in zip(axes, ("left", "right"), ("output", "input"), strict=True):
        values = np.full((len(names), len(names)), np.nan)
        for row in rows:
            i, j = names.index(row["method_a"]), names.index(row["method_b"])
            values[i, j] = values[j, i] = row[f"{side}_phi_k"]
        plot_matrix(values, names, names, ax, vmin=0, vmax=1)
        chance = "–".join(dict.fromkeys(f"{row[f'{side}_chance_k']:.2f}" for row in rows))
        ax.set_title(f"{side}: {name} directions (chance {chance})", fontsize=10)
        ax.tick_params("x", rotation=30)
    counts = sorted({row["k"] for row in rows})
    k = f"k = {'–'.join(map(str, counts))}"
    label = f"φ(k, k), {k},\npairs of different seeds"
    figure.colorbar(axes[0].images[0], ax=list(axes), label=label)
    return figure
