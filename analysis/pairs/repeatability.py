"""Runs of several seeds → how alike two methods are, beside how alike the seeds of one are."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import UserError, checkpoint
from analysis.checkpoint import Run
from analysis.names import run_key
from analysis.numerics import statistics
from analysis.numerics.subspaces import SIDES, above_chance
from analysis.results import Row


@dataclass(frozen=True)
class Label:
    """What a run is one of: a method, and which of its seeds; None where nothing says it."""

    method: str
    seed: int | None


def labels(runs: Sequence[Run], groups: Sequence[Sequence[str]] = ()) -> dict[str, Label]:
    """Run key → its label, for the runs of which a group or their run.json says it.

    groups: name, path, path, …: the runs of one method. A seed is what run.json says, else the
    place in the group. Raises ValueError for a path that stands for several runs, which are no
    seeds of one method.
    """
    found = {run.key: label for run in runs if (label := _from_file(run.path))}
    places = {os.path.abspath(run.path): run for run in runs}
    for name, *paths in groups:
        for seed, path in enumerate(paths):
            of_path = checkpoint.runs([path])
            run = places.get(os.path.abspath(of_path[0].path))
            if len(of_path) > 1 or run is None:
                raise UserError(f"--group {name}: {path}: {len(of_path)} checkpoints; expected one")
            known = found.get(run.key)
            found[run.key] = Label(name, known.seed if known else seed)
    return found


def _from_file(directory: Path) -> Label | None:
    """What the run.json of a training run says; None where there is none, or another's."""
    try:
        facts = json.loads((directory / "run.json").read_bytes())
        method, seed = facts["method"], facts["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(method, str) or not isinstance(seed, int):
        return None
    return Label(method, seed)


def between(
    rows: Sequence[Row],
    arrays: Mapping[str, np.ndarray],
    labels: Mapping[str, Label],
    k: int | None = None,
) -> list[Row]:
    """One row a pair of methods: φ over pairs of different seeds, so that all have one footing.

    rows, arrays: of `similarity.analyse`. A method against itself is its repeatability: a
    reference for the others, not a bound. k, the number of directions, is by default the smallest
    of all rows; where it is given, and two methods have fewer, their row has the k that they have.
    Means over modules, then over pairs of runs. Empty where no method has two seeds.
    """
    order = list(dict.fromkeys(label.method for label in labels.values()))
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        a, b = labels.get(_run_key(row, "a")), labels.get(_run_key(row, "b"))
        if a and b and a.seed != b.seed:
            one, other = sorted((a.method, b.method), key=order.index)
            pairs.setdefault((one, other), []).append(row)
    if not any(one == other for one, other in pairs):
        return []
    if k is None:
        k = min(_directions(of_pair, arrays) for of_pair in pairs.values())
    return [
        {
            "method_a": one,
            "method_b": other,
            **_at_most(k, pairs[one, other], arrays, ("cosine",)),
        }
        for one, other in itertools.combinations_with_replacement(order, 2)
        if (one, other) in pairs
    ]


def by_seed(
    rows: Sequence[Row], arrays: Mapping[str, np.ndarray], labels: Mapping[str, Label], k: int
) -> list[Row]:
    """One row a run and method: how near the run is to that method's runs of other seeds.

    rows: of `similarity.analyse`, with `log_distance` beside; k as in `between`. The run's own
    method is among the references: its repeatability. Means over modules, then over the
    reference's runs.
    """
    order = list(dict.fromkeys(labels.values()))
    references = list(dict.fromkeys(label.method for label in order))
    groups: dict[tuple[Label, str], list[Row]] = {}
    for row in rows:
        a, b = labels[_run_key(row, "a")], labels[_run_key(row, "b")]
        if a.seed != b.seed:
            groups.setdefault((a, b.method), []).append(row)
            groups.setdefault((b, a.method), []).append(row)
    return [
        {
            "method": label.method,
            "seed": label.seed,
            "reference": reference,
            **_at_most(k, groups[label, reference], arrays, ("cosine", "log_distance")),
        }
        for label in order
        for reference in references
        if (label, reference) in groups
    ]


def _directions(rows: Sequence[Row], arrays: Mapping[str, np.ndarray]) -> int:
    """How many directions all of the rows have."""
    return min(len(arrays[f"{row['key']}#left"]) for row in rows)


def _at_most(
    k: int, rows: Sequence[Row], arrays: Mapping[str, np.ndarray], columns: Sequence[str]
) -> Row:
    """Means of φ at k, or at what the rows have, and of some of their columns."""
    k = min(k, _directions(rows, arrays))
    return {"k": k, **_mean_over_runs(rows, arrays, k, columns)}


def _run_key(row: Row, side: str) -> str:
    return run_key(row[f"run_{side}"], row[f"step_{side}"])


def _mean_over_runs(
    rows: Sequence[Row], arrays: Mapping[str, np.ndarray], k: int, columns: Sequence[str]
) -> Row:
    """Means over the modules of each pair of runs, then over the pairs."""
    by_runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        at_k = {column: row[column] for column in columns}
        for side, d in zip(SIDES, (row["d_out"], row["d_in"]), strict=True):
            grid = arrays[f"{row['key']}#{side}"][:k, :k]
            at_k |= {
                f"{side}_phi_k": float(grid[-1, -1]),
                f"{side}_chance_k": k / d,
                f"{side}_above_chance": above_chance(grid, d),
            }
        known = {name: None if v is None or np.isnan(v) else v for name, v in at_k.items()}
        by_runs.setdefault((_run_key(row, "a"), _run_key(row, "b")), []).append(known)
    means = [_means(of_pair) for of_pair in by_runs.values()]
    return {"run_pairs": len(means), "modules": len(rows) // len(means), **_means(means)}


def _means(rows: Sequence[Row]) -> Row:
    """Column by column, over the rows where it is defined; None where it is in none."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
