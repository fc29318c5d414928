"""What an analysis found: rows of a table, arrays beside them, and what was left out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLUMNS = (
    *("key", "run", "method", "step", "module", "layer", "kind", "part"),
    *("d_out", "d_in", "capacity", "rank"),
    *("spectral_norm", "frobenius_norm", "nuclear_norm"),
    *("top_share_1", "top_share_4", "top_share_16", "top_share_1pct", "top_share_10pct"),
    *("effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio", "gini"),
    *("energy_rank_50", "energy_rank_90", "energy_rank_99"),
    *("utilisation", "democracy", "outliers", "floor", "above_floor"),
    *("algorithm", "error_bound"),
)


Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Spectra:
    """What an analysis found.

    rows: one a module, keyed by COLUMNS, None where a number is undefined; s: the singular values
    by row key, (capacity,), float64, descending, also for ΔW = 0; skipped: {run, module, reason}
    of updates that could not be analysed; other: {run, name, what} of tensors that are none.
    """

    rows: list[Row] = field(default_factory=list)
    s: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Similarity:
    """What a comparison found.

    rows: one a pair of updates, keyed by COLUMNS, None where a number is undefined; phi: key +
    "#left" and "#right" -> the grid φ(i, j), (k, k), up to k = 128, nan where it is undetermined,
    and "#left_angles", "#right_angles" -> principal angles of the top k, radians. inside: the rows
    of two parts of one module in one run. skipped: {run, module, reason}; zero: those of them
    where ΔW = 0; other: {run, name, what}.
    """

    rows: list[Row] = field(default_factory=list)
    inside: list[Row] = field(default_factory=list)
    phi: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    zero: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Merging:
    """What merging two checkpoints means.

    rows: one a pair of updates, keyed by ROW_COLUMNS, None where a number is undefined; s: key ->
    singular values of ΔW_a + ΔW_b. skipped: {run, module, reason}; other: {run, name, what}.
    """

    rows: list[Row] = field(default_factory=list)
    s: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class AgainstBase:
    """Updates beside the base.

    rows: one an update, keyed by ROW_COLUMNS, None where a number is undefined or was not asked
    for; skipped: {run, module, reason}; other: {run, name, what}.
    """

    rows: list[Row]
    skipped: list[dict[str, str]]
    other: list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What the steps of a run, or of several, are like.

    rows: one a step and module, keyed by COLUMNS, None where a number is undefined; s: singular
    values by run@step/module[#part]; verdicts: run -> which of its first and last step is the more
    dominated, in words; skipped: {run, module, reason}; other: {run, name, what}.
    """

    rows: list[Row]
    s: dict[str, np.ndarray]
    verdicts: dict[str, str]
    skipped: list[dict[str, str]]
    other: list[dict[str, str]]


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values in `columns`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for line in rows:
        groups.setdefault(tuple(line[column] for column in columns), []).append(line)
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
