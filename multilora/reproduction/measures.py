"""Trained runs and their spectra → rows of tables: what the claims are judged from, and the text.

The unit is the run: every value is a mean over modules already.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import UserError, names
from analysis.numerics import null, statistics
from analysis.pairs import dominance, repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity, Spectra
from multilora.reproduction.trained import MAIN, Trained
from multilora.tasks.example import FAMILIES

FIRST_K = ("effective_rank_k", "gini_k", "held_k")


def common_k(runs: Sequence[Trained], spectra: Spectra) -> int:
    """The smallest capacity of LoRA, MultiLoRA and full fine-tuning; of all, where none is run."""
    main = {run.name for run in runs if run.method in MAIN} or {run.name for run in runs}
    return min(row["capacity"] for row in spectra.rows if row["run"] in main)


def of_runs(runs: Sequence[Trained], spectra: Spectra) -> list[Row]:
    """methods.csv, one row a run: what may be compared between methods, and scores.

    k is `common_k`: effective_rank_k and gini_k are those of s[:k], held_k is the share of the
    energy that s[:k] holds, None where the capacity is lower. above_floor_share: the part of
    min(d_out, d_in) values above the rounding noise. null_top_share_1: of a random update of that
    shape and capacity. Means over the modules, those with ΔW = 0 left out.
    """
    if not runs:
        return []
    k = common_k(runs, spectra)
    rows = []
    for run in runs:
        of_run = [row for row in spectra.rows if row["run"] == run.name]
        moved = [_of_module(row, spectra, k) for row in of_run if row["spectral_norm"] > 0]
        if not moved:
            raise UserError(f"{run.path}: every ΔW is zero: nothing was trained")
        scores = run.facts["scores"]["test"]
        rows.append(
            {
                "method": run.method,
                "seed": run.seed,
                "parameters": run.facts["parameters"],
                "learning_rate": run.facts["arguments"]["learning_rate"],
                "k": k,
                **{name: statistics.mean(module[name] for module in moved) for name in moved[0]},
                **{f"score_{family}": scores["families"][family] for family in FAMILIES},
                "score": scores["mean"],
                "score_validation": run.facts["scores"]["validation"]["mean"],
                **{f"task_{task}": score for task, score in scores["tasks"].items()},
            }
        )
    return rows


def _of_module(row: Row, spectra: Spectra, k: int) -> Row:
    s, sizes = spectra.s[row["key"]], sorted((row["d_out"], row["d_in"]))
    found: Row = statistics.comparable(s, min(k, s.size))
    if s.size < k:
        found |= dict.fromkeys(FIRST_K)
    by_chance = null.null_top_share(*sizes, s.size)
    return found | {
        "null_top_share_1": by_chance,
        "top_share_1_above_null": found["top_share_1"] - by_chance,
        "democracy": row["democracy"],
        "energy_rank_90": row["energy_rank_90"],
        "above_floor_share": row["above_floor"] / sizes[0],
    }


def nearness(found: Similarity, labels: Mapping[str, Label], spectra: Spectra, k: int) -> list[Row]:
    """nearness.csv, a row a run and method: φ(k, k) with the method's runs of other seeds.

    Beside it chance, the mean above chance over i = 1…k, the cosine, and log_distance of the
    normalised spectra (`compare.log_distance`) over the values that both have.
    """
    rows = [row | {"log_distance": _log_distance(row, spectra)} for row in found.rows]
    return repeatability.by_seed(rows, found.phi, labels, k)


def _log_distance(row: Row, spectra: Spectra) -> float | None:
    """Of one pair of updates, over the values above the rank cutoff of both."""
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
