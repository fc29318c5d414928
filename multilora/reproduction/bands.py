"""Compute the tables of the figure spectra_by_method: bands and histograms of singular values."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from analysis.numerics import statistics
from analysis.results import Row, Spectra
from multilora.reproduction.trained import MAIN

BINS = 79
MOST = 5  # the number of methods that can be told apart in one figure


def shown(methods: Iterable[str]) -> list[str]:
    """Return the distinct methods, or of more than MOST those of MAIN alone."""
    distinct = list(dict.fromkeys(methods))
    return distinct if len(distinct) <= MOST else [m for m in distinct if m in MAIN]


def bands_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """Return spectra_by_method.csv: median and 10–90 % range of s_i/‖s‖, one row per index i.

    Over layers and seeds, for each projection (kind) and method. method_of: run -> method.
    """
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in spectra.rows):
        for method in dict.fromkeys(method_of.values()):
            of_method = _rows(spectra, method_of, method)
            values = [spectra.s[row["key"]] for row in of_method if row["kind"] == kind]
            if not values:
                continue
            # AdaLoRA gives each module a rank of its own; the band ends at the smallest.
            band = statistics.band(values, k=min(s.size for s in values))
            rows += [
                {"kind": kind, "method": method, "index": i, "low": lo, "median": mid, "high": hi}
                for i, (lo, mid, hi) in enumerate(zip(*band, strict=True), start=1)
            ]
    return rows


def histogram_table(spectra: Spectra, method_of: Mapping[str, str]) -> list[Row]:
    """Return spectra_histogram.csv: histograms of all singular values, one row per bin.

    axis is "linear" or "logarithmic", and left and right are the edges of the bin. share is that of
    all min(d_out, d_in) values of every module. The rows of axis "zero" give the share of values
    that a low-rank parametrisation keeps at zero. Only methods that the figure shows have rows, so
    that the values of another do not widen the bins. method_of: run -> method.
    """
    values = {m: _values(spectra, _rows(spectra, method_of, m)) for m in shown(method_of.values())}
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


def _rows(spectra: Spectra, method_of: Mapping[str, str], method: str) -> list[Row]:
    return [row for row in spectra.rows if method_of[row["run"]] == method]


def _values(spectra: Spectra, rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """Return (all singular values of the rows, the number of values including those at zero)."""
    s = np.concatenate([spectra.s[row["key"]] for row in rows])
    return s, sum(min(row["d_out"], row["d_in"]) for row in rows)
