"""Compute the tables of spectra by method: bands and histograms of singular values."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from analysis.numerics import statistics
from analysis.results import Row, Spectra
from multilora.reproduction.trained import MAIN

BINS = 79
BANDS = ("low", "median", "high", "energy_low", "energy_median", "energy_high")
MOST = 5  # the number of methods that can be told apart in one figure


def shown(methods: Iterable[str]) -> list[str]:
    """Return the distinct methods, or of more than MOST those of MAIN alone."""
    distinct = list(dict.fromkeys(methods))
    return distinct if len(distinct) <= MOST else [m for m in distinct if m in MAIN]


def bands_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """Return spectra_by_method.csv: bands over layers and seeds, one row per index i.

    For each projection (kind) and method: low, median and high are the 10 %, 50 % and 90 %
    quantiles of s_i/‖s‖; energy_low, energy_median and energy_high those of the cumulative energy
    Σ_{j≤i} s_j² / Σ s_j², in [0, 1]. Updates with ΔW = 0 count as zeros. method_of: run -> method.
    """
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in spectra.rows):
        for method in dict.fromkeys(method_of.values()):
            of_method = _rows(spectra, method_of, method)
            values = [spectra.s[row["key"]] for row in of_method if row["kind"] == kind]
            if not values:
                continue
            # AdaLoRA gives each module a rank of its own; the band ends at the smallest.
            k = min(s.size for s in values)
            bands = [*statistics.band(values, k=k), *_energy_band(values, k)]
            rows += [
                {"kind": kind, "method": method, "index": i} | dict(zip(BANDS, of_i, strict=True))
                for i, of_i in enumerate(zip(*bands, strict=True), start=1)
            ]
    return rows


def _energy_band(spectra: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Quantiles of the cumulative energy of the first k values over modules, (3, k)."""
    energies = []
    for s in spectra:
        cumulative = np.cumsum(statistics.normalised(s) ** 2)
        # Compared with its own last entry: another order of summation would exceed 1.
        energies.append(cumulative[:k] / (cumulative[-1] or 1.0))
    return np.quantile(energies, (0.1, 0.5, 0.9), axis=0)


def histogram_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """Return spectra_histogram.csv: histograms of all singular values, one row per bin.

    axis is "linear" or "logarithmic", and left and right are the edges of the bin. share is that of
    all min(d_out, d_in) values of every module. The rows of axis "zero" give the share of values
    that a low-rank parametrisation keeps at zero. Only the methods of `shown` have rows, so that
    the values of another do not widen the bins. method_of: run -> method.
    """
    methods = shown(method_of[row["run"]] for row in spectra.rows)
    values = {m: _values(spectra, _rows(spectra, method_of, m)) for m in methods}
    every = np.concatenate([s for s, _ in values.values()])
    top, least = every.max(), every[every > 0].min()
    axes = {
        "linear": np.linspace(0, top, BINS + 1),
        "logarithmic": np.geomspace(least, top, BINS + 1),
    }
    rows: list[Row] = []
    for method, (s, total) in values.items():
        zero: Row = {"axis": "zero", "method": method, "left": 0.0, "right": 0.0}
        rows.append(zero | {"share": 1 - s.size / total})
        for axis, edges in axes.items():
            counts, _ = np.histogram(s, edges)
            rows += [
                {
                    "axis": axis,
                    "method": method,
                    "left": float(left),
                    "right": float(right),
                    "share": float(count / total),
                }
                for left, right, count in zip(edges, edges[1:], counts, strict=False)
            ]
    return rows


def by_projection_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """Return histogram_by_projection.csv: singular values on one linear axis per projection.

    Columns kind, method, left, right (the edges of a bin) and count, the number of values of a
    module in the bin, a mean over layers and seeds. Values at zero of a low-rank update are not
    counted. Only the methods of `shown` have rows. method_of: run -> method.
    """
    methods = shown(method_of[row["run"]] for row in spectra.rows)
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in spectra.rows):
        values = {
            method: [spectra.s[row["key"]] for row in _rows(spectra, method_of, method)
                     if row["kind"] == kind]
            for method in methods
        }  # fmt: skip
        top = max((float(s[0]) for of_method in values.values() for s in of_method), default=0.0)
        edges = np.linspace(0, top or 1.0, BINS + 1)
        for method, of_method in values.items():
            if not of_method:
                continue
            histograms = [np.histogram(s[s > 0], edges)[0] for s in of_method]
            counts = np.mean(histograms, axis=0)
            rows += [
                {"kind": kind, "method": method, "left": float(left), "right": float(right),
                 "count": float(count)}
                for left, right, count in zip(edges, edges[1:], counts, strict=False)
            ]  # fmt: skip
    return rows


def _rows(spectra: Spectra, method_of: Mapping[str, str], method: str) -> list[Row]:
    return [row for row in spectra.rows if method_of[row["run"]] == method]


def _values(spectra: Spectra, rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """Return (all singular values of the rows, the number of values including those at zero)."""
    s = np.concatenate([spectra.s[row["key"]] for row in rows])
    return s, sum(min(row["d_out"], row["d_in"]) for row in rows)
