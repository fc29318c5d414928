"""Compute the rows of methods.csv, nearness.csv and differences.csv from runs and their spectra.

The unit is the run: every value is already a mean over modules.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis import UserError, names, results
from analysis.numerics import null, statistics
from analysis.pairs import dominance, repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity, Spectra
from multilora.reproduction import tables
from multilora.reproduction.trained import MAIN, Trained
from multilora.tasks.example import FAMILIES

FIRST_K = ("effective_rank_k", "gini_k", "held_k")
# The measures by which every two methods are compared in differences.csv.
COMPARED = (
    "top_share_1",
    "top_share_1_above_null",
    "top_share_4",
    "top_share_4_above_null",
    "top_share_16",
    "top_share_16_above_null",
    "effective_rank_k",
    "effective_rank_k_of_null",
    "gini_k",
    "gini_k_above_null",
    "score",
    "nll",
)
# The measures that are compared with those of a random update.
WITH_NULL = ("top_share_1", "top_share_4", "top_share_16", "effective_rank_k", "gini_k")
# The measures whose variation between bases and between seeds of one base is told apart.
VARYING = ("top_share_1", "effective_rank_k", "gini_k", "score", "nll")


def common_k(runs: Sequence[Trained], spectra: Spectra) -> int:
    """Return the smallest capacity of LoRA, MultiLoRA and full fine-tuning.

    The smallest of all runs if there are none of these three.
    """
    main = {run.name for run in runs if run.method in MAIN} or {run.name for run in runs}
    return min(row["capacity"] for row in spectra.rows if row["run"] in main)


def of_runs(runs: Sequence[Trained], spectra: Spectra) -> list[Row]:
    """Return methods.csv: one row per run with its concentration and its scores.

    k is `common_k`. effective_rank_k and gini_k are those of s[:k], held_k is the share of the
    energy in s[:k]; None if the capacity is lower. null_NAME: the measure of a random update of the
    same shape and capacity (`null.chance`); NAME_above_null: the difference, or for the effective
    rank effective_rank_k_of_null, the ratio. above_floor_share: how many of the min(d_out, d_in)
    values are above the noise floor, as a share. All are means over modules; modules with ΔW = 0
    are left out. Raises UserError if every ΔW of a run is zero.
    """
    if not runs:
        return []
    k = common_k(runs, spectra)
    rows = []
    for run in runs:
        of_run = [row for row in spectra.rows if row["run"] == run.name]
        modules = [_of_module(row, spectra, k) for row in of_run if row["spectral_norm"] > 0]
        if not modules:
            raise UserError(f"{run.path}: every ΔW is zero: nothing was trained")
        row: Row = {
            "method": run.method,
            "seed": run.seed,
            "parameters": run.facts["parameters"],
            "learning_rate": run.facts["arguments"]["learning_rate"],
            "k": k,
        }
        row |= {name: statistics.mean(module[name] for module in modules) for name in modules[0]}
        rows.append(row | _scores(run))
    return rows


def _of_module(row: Row, spectra: Spectra, k: int) -> Row:
    """Return the measures of one module; row: of spectrum.csv."""
    s = spectra.s[row["key"]]
    own_k = min(k, s.size)
    measured: Row = statistics.comparable(s, own_k)
    if s.size < k:
        measured |= dict.fromkeys(FIRST_K)
    random = null.of_row(row, own_k)
    for name in WITH_NULL:
        measured |= _beyond_null(name, measured[name], random[name].mean)
    return measured | {
        "democracy": row["democracy"],
        "energy_rank_90": row["energy_rank_90"],
        "above_floor_share": row["above_floor"] / min(row["d_out"], row["d_in"]),
    }


def _beyond_null(name: str, value: float | None, by_chance: float) -> Row:
    """Return the null's value and the measure relative to it; None for an undefined measure."""
    ratio = name == "effective_rank_k"
    relative = f"{name}_of_null" if ratio else f"{name}_above_null"
    if value is None:
        return {f"null_{name}": None, relative: None}
    return {
        f"null_{name}": by_chance,
        relative: value / by_chance if ratio else value - by_chance,
    }


def _scores(run: Trained) -> Row:
    """Return test scores and losses by family, their means, those of validation, and by task.

    A loss, called nll, is the mean −log of the likelihood per token of the right answer, in nats;
    runs of earlier versions have none.
    """
    test, validation = (run.facts["scores"][split] for split in ("test", "validation"))
    row: Row = {}
    for by, of_test, of_validation in (
        (tables.SCORE, test, validation),
        (tables.LOSS, test.get("nll"), validation.get("nll")),
    ):
        if of_test:
            row |= {f"{by}_{family}": of_test["families"].get(family) for family in FAMILIES}
            row |= {by: of_test["mean"], f"{by}_validation": of_validation["mean"]}
    by_task = {"task": test["tasks"], "task_nll": test.get("nll", {}).get("tasks", {})}
    return row | {f"{by}_{task}": n for by, of in by_task.items() for task, n in of.items()}


def nearness(
    similarity: Similarity, labels: Mapping[str, Label], spectra: Spectra, k: int
) -> list[Row]:
    """Return nearness.csv: one row per run and method, φ(k, k) with that method's other seeds.

    Each row also has chance, φ(i, i) above chance as a mean over i = 1…k, the cosine, and
    log_distance of the normalised spectra (`dominance.log_distance`) over the values that both
    updates have.
    """
    rows = [row | {"log_distance": _log_distance(row, spectra)} for row in similarity.rows]
    return repeatability.by_seed(rows, similarity.phi, labels, k)


def _log_distance(row: Row, spectra: Spectra) -> float | None:
    """Log distance of a pair's spectra over the values above the rank cutoff of both."""
    a, b = (
        spectra.s[
            names.update_key(
                names.run_key(row[f"run_{side}"], row[f"step_{side}"]),
                row["module"],
                row[f"part_{side}"],
            )
        ]
        for side in "ab"
    )
    distance = dominance.log_distance(a, b, min(row["k"], a.size, b.size))
    return None if np.isnan(distance) else distance


def of_unit(near: Sequence[Row], seed: int) -> list[Row]:
    """Return rows of nearness.csv with one seed for a base: means over the seeds of each method.

    near: of `nearness`, for the runs of one base; seed: that of the base.
    """
    return averaged([row | {"seed": seed} for row in near], ("method", "seed", "reference"))


def averaged(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Return one row per value of `keys`: the mean of each other column over the rows.

    run_pairs, the number of pairs of runs, is a sum; k and modules are the smallest.
    """
    combined: dict[str, Callable[[list[Any]], Any]] = {"run_pairs": sum, "k": min, "modules": min}
    return [
        dict(zip(keys, values, strict=True))
        | {
            name: combined.get(name, statistics.mean)([row[name] for row in of_key])
            for name in of_key[0]
            if name not in keys
        }
        for values, of_key in results.grouped(rows, *keys).items()
    ]


def spread(rows: Sequence[Row], repeats: Sequence[Row], repeat: int) -> list[Row]:
    """Return spread.csv: the variation between bases and between seeds of one base, by method.

    rows: of methods.csv, one seed per base; repeats: the second seed of each, `repeat` above it.
    between_seeds: the standard deviation of runs of one base; between_bases: that of the bases, the
    variance of the means over the two seeds less half the variance between seeds, 0 if that is
    negative (one-way analysis of variance). bases: how many have both seeds; at least two.
    """
    second = {(row["method"], row["seed"] - repeat): row for row in repeats}
    table: list[Row] = []
    for (method,), of_method in results.grouped(rows, "method").items():
        both = [(row, second[key]) for row in of_method if (key := (method, row["seed"])) in second]
        for measure in VARYING:
            pairs = np.array([(a.get(measure), b.get(measure)) for a, b in both], float)
            if len(pairs) < 2 or np.isnan(pairs).any():
                continue
            within = float(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2) / 2)
            between = float(np.var(pairs.mean(axis=1), ddof=1)) - within / 2
            row = {"method": method, "measure": measure, "bases": len(pairs)}
            row |= {"between_bases": max(between, 0.0) ** 0.5, "between_seeds": within**0.5}
            table.append(row)
    return table


def differences(rows: Sequence[Row]) -> list[Row]:
    """Return differences.csv: one row per pair of methods and measure, a − b paired by seed.

    rows: of methods.csv. mean, low and high are the mean and its Student interval over the seeds
    that both methods have; mean is None without such seeds, low and high also for one seed. above
    and below count the seeds at which a is larger and smaller.
    """
    by_method: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    measured = [name for name in COMPARED if any(name in row for row in rows)]
    compared = []
    for (a, of_a), (b, of_b) in itertools.combinations(by_method.items(), 2):
        for measure in measured:
            difference, _ = statistics.paired_in_common(
                {seed: row.get(measure) for seed, row in of_a.items()},
                {seed: row.get(measure) for seed, row in of_b.items()},
            )
            seeds = len(difference.values) if difference else 0
            compared.append(
                {
                    "method_a": a,
                    "method_b": b,
                    "measure": measure,
                    "seeds": seeds,
                    "mean": difference.mean if difference else None,
                    "low": difference.low if difference and seeds > 1 else None,
                    "high": difference.high if difference and seeds > 1 else None,
                    "above": difference.positive if difference else 0,
                    "below": difference.negative if difference else 0,
                }
            )
    return compared
