"""The results of an analysis: rows of a table, arrays that belong to them, and what is missing.

A row is a dict keyed by the columns of its table; a number that is undefined is None. Each class
below holds the result of one function called `analyse`. They share two lists:

skipped: {run, module, reason} for each update that could not be analysed; module "" stands for a
    whole checkpoint.
other: {run, name, what} for each tensor that is not an update, such as a saved head or a bias.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis import extras
from analysis.names import printable

Row = dict[str, Any]

# Algorithms that compute only the largest values: columns that need all are empty or estimates.
PARTIAL = ("topk", "density")
# Measures of a dense update without its rounding noise (`numerics.denoise`), if it has a floor.
DENOISED = ("effective_rank_denoised", "gini_denoised", "top_share_1_denoised")
# The exponent of the tail of a dense update with its interval (`numerics.tails`).
HILL = ("hill", "hill_low", "hill_high")
# The columns of the table of spectra, spectrum.csv.
COLUMNS = (
    "key", "run", "method", "step", "module", "layer", "kind", "part",
    "d_out", "d_in", "r", "capacity", "rank",
    "spectral_norm", "frobenius_norm", "nuclear_norm",
    "top_share_1", "top_share_4", "top_share_16", "top_share_1pct", "top_share_10pct",
    "effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio", "gini",
    "energy_rank_50", "energy_rank_90", "energy_rank_99",
    "utilisation", "democracy", "outliers", "floor", "above_floor",
    "algorithm", "error_bound", *DENOISED, *HILL,
)  # fmt: skip
# Further columns, with the inputs of the modules at hand (`numerics.function_space`).
FUNCTION = (
    "function_norm", "function_alignment",
    "function_top_share_1", "function_top_share_4", "function_top_share_16",
    "function_effective_rank",
    "function_carried_1", "function_carried_4", "function_carried_16",
    "function_rank_correlation", "function_error_bound",
)  # fmt: skip
# The columns of bounds.csv. holds: "always", "but for 1e-6" (the probability over random starts
# that it does not), or "about 95 %" for an interval of an estimate.
BOUNDS = ("key", "measure", "low", "high", "holds")
TEXT = ("key", "run", "method", "module", "kind", "part", "algorithm")  # the others are numbers
# The columns that a notebook shows of a `Spectra`, and how many of its rows.
SHORT = (
    "run", "step", "module", "part", "capacity", "frobenius_norm", "top_share_1", "effective_rank",
    "democracy",
)  # fmt: skip
SHOWN = 20


def columns(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the columns of a table of spectra: COLUMNS, and FUNCTION if any row has them."""
    return (*COLUMNS, *FUNCTION) if any(FUNCTION[0] in row for row in rows) else COLUMNS


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of the updates in checkpoints, from `spectrum.analyse`.

    rows: one per update, keyed by `results.columns`; s: row key -> singular values, (capacity,), or
    the largest of them if the algorithm is one of PARTIAL, float64, descending, also for ΔW = 0;
    bounds: of the rows whose algorithm is one of PARTIAL, keyed by BOUNDS; skipped, other: see the
    module.
    """

    rows: list[Row] = field(default_factory=list)
    s: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)
    bounds: list[Row] = field(default_factory=list)

    def to_frame(self) -> Any:
        """Return the rows as a pandas.DataFrame with their columns, indexed by key.

        Undefined numbers are nan, undefined text is None. Raises MissingLibraryError without
        pandas.
        """
        with extras.named():
            import pandas as pd
        frame = pd.DataFrame(self.rows, columns=columns(self.rows))
        numbers = [column for column in frame.columns if column not in TEXT]
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
        return frame.set_index("key")

    def _repr_html_(self) -> str:
        """The first rows as an HTML table, for a notebook; names are escaped."""
        heading = "".join(f"<th>{column}</th>" for column in SHORT)
        lines = [
            "".join(f"<td>{_html(row[column])}</td>" for column in SHORT)
            for row in self.rows[:SHOWN]
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        caption = (
            f"{len(lines)} of {len(self.rows)} updates; {len(self.skipped)} skipped."
            " All columns: to_frame()"
        )
        table = f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody>"
        return f"<table><caption>{caption}</caption>{table}</table>"


def _html(value: Any) -> str:
    """A cell of a table in HTML: four digits of a number, a dash for None, text escaped."""
    if value is None:
        return "–"
    return html.escape(printable(value) if isinstance(value, str) else format(value, ".4g"))


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity between the updates of checkpoints, from `similarity.analyse`.

    rows: one per pair of updates from two runs, keyed by `similarity.COLUMNS`.
    inside: the same for pairs of parts of one module in one run.
    phi: row key + "#left" or "#right" -> the grid φ(i, j), (k, k), k at most 128, nan where it is
        undetermined; row key + "#left_angles" or "#right_angles" -> principal angles between the
        spans of the top k directions, (k,), radians.
    skipped, other: see the module.
    zero: the entries of `skipped` that are no fault, because ΔW = 0.
    """

    rows: list[Row] = field(default_factory=list)
    inside: list[Row] = field(default_factory=list)
    phi: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    zero: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Merging:
    """Effect of merging checkpoints, from `merging.report`.

    rows: one per pair of updates, keyed by `pairs.merging.ROW_COLUMNS`; s: row key -> singular
    values of ΔW_a + ΔW_b, descending.
    adapters: one per update, seen beside the others, keyed by `merging.report.ADAPTER`.
    merged: one per module, keyed by `merging.report.MERGED`; merged_s: row key -> singular values
    of the merged update.
    skipped, other: see the module.
    """

    rows: list[Row] = field(default_factory=list)
    s: dict[str, np.ndarray] = field(default_factory=dict)
    adapters: list[Row] = field(default_factory=list)
    merged: list[Row] = field(default_factory=list)
    merged_s: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class AgainstBase:
    """Updates compared with the weights that they change, from `base.landing.analyse`.

    rows: one per update, keyed by `base.landing.ROW_COLUMNS`; None also for a number that was not
    requested; skipped, other: see the module.
    """

    rows: list[Row]
    skipped: list[dict[str, str]]
    other: list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Dynamics:
    """Updates at the steps of runs, from `dynamics.analyse`.

    rows: one per step and update, keyed by `tables.dynamics.COLUMNS`; s: run@step/module[#part] ->
    singular values, descending; verdicts: run -> a sentence that says whether its first or its
    last step is more dominated; skipped, other: see the module.
    """

    rows: list[Row]
    s: dict[str, np.ndarray]
    verdicts: dict[str, str]
    skipped: list[dict[str, str]]
    other: list[dict[str, str]]


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows grouped by their values in `columns`, in order of first appearance.

    >>> grouped([{"kind": "q", "s1": 2}, {"kind": "v", "s1": 1}, {"kind": "q", "s1": 3}], "kind")
    {('q',): [{'kind': 'q', 's1': 2}, {'kind': 'q', 's1': 3}], ('v',): [{'kind': 'v', 's1': 1}]}
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


RUNS = ("run_a", "step_a", "run_b", "step_b")


def run_name(row: Row, side: str) -> str:
    """The run on one side ("a" or "b") of a pair, with its step."""
    run, step = row[f"run_{side}"], row[f"step_{side}"]
    return run if step is None else f"{run} step {step}"


def pair_name(row: Row) -> str:
    """Both runs of a pair; two steps of one run share its name."""
    if row["run_a"] == row["run_b"] and row["step_a"] is not None:
        return f"{row['run_a']} step {row['step_a']} ~ {row['step_b']}"
    return f"{run_name(row, 'a')} ~ {run_name(row, 'b')}"
