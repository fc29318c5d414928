"""Tables → figures. Each function takes the results of an analysis and returns a Figure."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure, SubFigure

from analysis import statistics
from analysis.figures import Style, style
from analysis.plots import plot_band, plot_histogram, plot_zeros
from analysis.store import Row, Spectra

Band = tuple[np.ndarray, np.ndarray, np.ndarray]

STYLES = {method: style(i) for i, method in enumerate(("full", "lora", "multilora"))}
PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj")


def spectra_by_method(
    spectra: Spectra, method_of: Mapping[str, str], projections: Sequence[str] = PROJECTIONS
) -> Figure:
    """Above, spectra of four projections, a band a method; below, histograms of all values.

    method_of: run -> method. The histograms count all min(d_out, d_in) values of every module;
    the share that a low-rank parametrisation keeps at zero stands in bars beside them.
    """
    methods = list(dict.fromkeys(method_of.values()))
    styles = _styles(methods)
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _draw_bands(above, spectra, method_of, projections, styles)
    _draw_histograms(below, spectra, method_of, styles)
    return figure


def bands_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """The bands of every projection, a row an index: what the upper half of the figure shows."""
    return [
        {"kind": kind, "method": method, "index": i + 1, "low": lo, "median": mid, "high": hi}
        for kind in dict.fromkeys(row["kind"] for row in spectra.rows)
        for method, band in _bands(spectra, method_of, kind).items()
        for i, (lo, mid, hi) in enumerate(zip(*band, strict=True))
    ]


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
    figure: SubFigure,
    spectra: Spectra,
    method_of: Mapping[str, str],
    projections: Sequence[str],
    styles: Mapping[str, Style],
) -> None:
    axes = figure.subplots(1, len(projections), sharex=True, sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, projections, strict=True):
        for method, band in _bands(spectra, method_of, kind).items():
            plot_band(*band, ax=ax, label=method, **styles[method])
        ax.set_title(kind)
        ax.label_outer()
    axes[0].legend(title="median and\n10–90 % of modules", loc="lower left")


def _draw_histograms(
    figure: SubFigure,
    spectra: Spectra,
    method_of: Mapping[str, str],
    styles: Mapping[str, Style],
) -> None:
    zeros, linear, log = figure.subplots(1, 3, width_ratios=(1, 2.4, 2.4))
    values = {m: _values(spectra, _rows(spectra, method_of, m)) for m in styles}
    shares = {m: 1 - s.size / total for m, (s, total) in values.items()}
    plot_zeros(shares, [style["color"] for style in styles.values()], zeros)
    zeros.set_title("beyond the capacity")
    everything = np.concatenate([s for s, _ in values.values()])
    top, least = everything.max(), everything[everything > 0].min()
    for ax, bins in ((linear, np.linspace(0, top, 80)), (log, np.geomspace(least, top, 80))):
        for method, (s, total) in values.items():
            plot_histogram(s, total, bins, ax, label=method, linewidth=1.5, **styles[method])
    linear.set(yscale="log", title="all other singular values, linear axis")
    log.set(xscale="log", title="the same, logarithmic axis")
    linear.legend()


def _rows(spectra: Spectra, method_of: Mapping[str, str], method: str) -> list[Row]:
    return [row for row in spectra.rows if method_of[row["run"]] == method]


def _values(spectra: Spectra, rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """All singular values of the rows, and how many the matrices have with those kept at zero."""
    s = np.concatenate([spectra.s[row["key"]] for row in rows])
    return s, sum(min(row["d_out"], row["d_in"]) for row in rows)


def _styles(methods: Sequence[str]) -> dict[str, Style]:
    spare = map(style, itertools.count(len(STYLES)))
    return {method: STYLES.get(method) or next(spare) for method in methods}
