"""Compare methods over runs of several seeds, next to the repeatability of each method."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError, checkpoint
from analysis.checkpoint import Run
from analysis.files import tensors
from analysis.names import run_key
from analysis.numerics import statistics
from analysis.numerics.subspaces import SIDES, above_chance
from analysis.results import Row


@dataclass(frozen=True)
class Label:
    """The method and seed of a run; seed is None if unknown."""

    method: str
    seed: int | None


def labels(runs: Sequence[Run], groups: Sequence[Sequence[str]] = ()) -> dict[str, Label]:
    """Return the labels of the runs by run key; a run without run.json or group has none.

    groups: (name, path, path, …) for each method, with the paths of its runs. The seed of a run is
    the one in its run.json, else its place in the group. Raises UserError for a path that holds
    several checkpoints, since the steps of a run are not seeds of a method.
    """
    by_run = {run.key: label for run in runs if (label := _from_file(run.path))}
    by_path = {os.path.abspath(run.path): run for run in runs}
    for name, *paths in groups:
        for place, path in enumerate(paths):
            of_path = checkpoint.runs([path])
            run = by_path.get(os.path.abspath(of_path[0].path))
            if len(of_path) > 1 or run is None:
                raise UserError(f"--group {name}: {path}: {len(of_path)} checkpoints; expected one")
            known = by_run.get(run.key)
            by_run[run.key] = Label(name, known.seed if known else place)
    return by_run


def _from_file(directory: Path) -> Label | None:
    """Return the label in the run.json of a training run; None if it is missing or another's."""
    try:
        facts = tensors.read_json(directory / "run.json")
        method, seed = facts["method"], facts["seed"]
    except (CheckpointError, KeyError):
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
    """Return one row per pair of methods: the mean φ over pairs of runs with different seeds.

    A method paired with itself gives its repeatability, a reference for the other rows and not a
    bound. Pairs of runs with the same seed are left out, so that all rows are means over the same
    kind of pair.

    rows, arrays: `Similarity.rows` and `Similarity.phi`.
    labels: run key -> label; runs without one are left out.
    k: the number of directions; by default the smallest of all rows. If it is given and two
        methods have fewer, their row has the k that they have.

    Values are means over modules, then over pairs of runs. Empty if no method has two seeds.
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
            **_means_at(k, pairs[one, other], arrays, ("cosine",)),
        }
        for one, other in itertools.combinations_with_replacement(order, 2)
        if (one, other) in pairs
    ]


def by_seed(
    rows: Sequence[Row], arrays: Mapping[str, np.ndarray], labels: Mapping[str, Label], k: int
) -> list[Row]:
    """Return one row per run and reference method: the mean φ to its runs with other seeds.

    rows, arrays: `Similarity.rows`, each with a further column log_distance, and `Similarity.phi`.
    labels: run key -> label, for all runs.
    k: the number of directions, as for `between`.

    The run's own method is among the references: that row is its repeatability. Values are means
    over modules, then over the runs of the reference.
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
            **_means_at(k, groups[label, reference], arrays, ("cosine", "log_distance")),
        }
        for label in order
        for reference in references
        if (label, reference) in groups
    ]


def _directions(rows: Sequence[Row], arrays: Mapping[str, np.ndarray]) -> int:
    """Return the number of directions that all of the rows have."""
    return min(len(arrays[f"{row['key']}#left"]) for row in rows)


def _means_at(
    k: int, rows: Sequence[Row], arrays: Mapping[str, np.ndarray], columns: Sequence[str]
) -> Row:
    """Return the means of φ at k and of `columns`; at fewer directions if the rows have fewer."""
    k = min(k, _directions(rows, arrays))
    return {"k": k, **_mean_over_runs(rows, arrays, k, columns)}


def _run_key(row: Row, side: str) -> str:
    return run_key(row[f"run_{side}"], row[f"step_{side}"])


def _mean_over_runs(
    rows: Sequence[Row], arrays: Mapping[str, np.ndarray], k: int, columns: Sequence[str]
) -> Row:
    """Return means over the modules of each pair of runs, then over the pairs."""
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
    """Return the mean of each column over the rows in which it is not None; None if in none."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
