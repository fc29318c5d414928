"""Trained runs and their spectra → rows of tables: what the claims are judged from, and the text.

The unit is the run: every value is a mean over modules already.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import checkpoint, compare, methods, null, similarity, statistics
from analysis.methods import Label
from analysis.similarity import Similarity
from analysis.store import Row, Spectra
from multilora import budget
from multilora.tasks.example import FAMILIES

# Their capacities decide how many values and directions are compared; a relative of a lower rank
# is compared by what holds between any capacities.
MAIN = ("full", "lora", "multilora")
FIRST_K = ("effective_rank_k", "gini_k", "held_k")
NEEDED = ("fingerprint", "method", "settings", "arguments", "seed", "base", "parameters", "scores")


@dataclass(frozen=True)
class Trained:
    """A finished run: where it is, and what its run.json says."""

    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """What its rows are called."""
        return self.path.name

    @property
    def method(self) -> str:
        """The method, with what makes it a variant."""
        return self.facts["method"]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.facts["seed"]


def trained(path: Path) -> Trained:
    """The run at `path`; ValueError where its run.json is not what this version writes."""
    file = path / "run.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: is not there: the run is not finished; run it again") from None
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON ({error}); remove {path} and run again") from None
    missing = [key for key in NEEDED if key not in facts] if isinstance(facts, dict) else NEEDED
    if missing:
        raise ValueError(
            f"{file}: lacks {', '.join(missing)}: another version wrote it; remove {path} and run"
            " again"
        )
    return Trained(path, facts)


def check_alike(runs: Sequence[Trained]) -> None:
    """ValueError where the runs do not share one base, or two are of one method and seed."""
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if run.facts["base"].get("sha256") != runs[0].facts["base"].get("sha256"):
            raise ValueError(
                f"{run.path}: was trained from another base than {runs[0].path}; expected one for"
                " all: remove it and run again"
            )
        other = seen.setdefault((run.method, run.seed), run.path)
        if other != run.path:
            raise ValueError(f"{run.path} and {other}: both are {run.method}, seed {run.seed}")


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
            raise ValueError(f"{run.path}: every ΔW is zero: nothing was trained")
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


def overlap(runs: Sequence[Trained]) -> list[Row]:
    """overlap.csv, one row a run of MultiLoRA with n > 1: what its modules share with one another.

    φ(r, r) on both sides, and chance, means over pairs of modules and over layers;
    overlap_above_chance: the mean of both sides above theirs; cosine: mean |cosine| of the ΔWᵢ.
    """
    several = [
        run
        for run in runs
        if run.facts["settings"]["method"] == "multilora" and run.facts["settings"]["n"] > 1
    ]
    rows = []
    for run in several:
        inside = similarity.analyse(run.path).inside
        means = {
            f"{side}_{column}": statistics.mean(row[f"{side}_{column}"] for row in inside)
            for side in ("left", "right")
            for column in ("phi_1", "phi_k", "chance_k")
        }
        above = {
            side: statistics.mean(
                None if row[f"{side}_phi_k"] is None else row[f"{side}_phi_k"] - row[chance]
                for row in inside
            )
            for side, chance in (("left", "left_chance_k"), ("right", "right_chance_k"))
        }
        rows.append(
            {
                "method": run.method,
                "seed": run.seed,
                "n": run.facts["settings"]["n"],
                "r": max((row["k"] for row in inside), default=None),
                "pairs": len(inside),
                **means,
                "left_above_chance": above["left"],
                "right_above_chance": above["right"],
                "overlap_above_chance": statistics.mean(above.values()),
                "cosine": statistics.mean(
                    None if row["cosine"] is None else abs(row["cosine"]) for row in inside
                ),
            }
        )
    return rows


def nearness(found: Similarity, labels: Mapping[str, Label], spectra: Spectra, k: int) -> list[Row]:
    """nearness.csv, a row a run and method: φ(k, k) with the method's runs of other seeds.

    Beside it chance, the mean above chance over i = 1…k, the cosine, and log_distance of the
    normalised spectra (`compare.log_distance`) over the values that both have.
    """
    rows = [row | {"log_distance": _log_distance(row, spectra)} for row in found.rows]
    return methods.by_seed(rows, found.phi, labels, k)


def _log_distance(row: Row, spectra: Spectra) -> float | None:
    """Of one pair of updates, over the values above the rank cutoff of both."""
    a, b = (
        spectra.s[
            checkpoint.update_key(
                checkpoint.run_key(row[f"run_{side}"], row[f"step_{side}"]),
                row["module"],
                row[f"part_{side}"],
            )
        ]
        for side in "ab"
    )
    distance = compare.log_distance(a, b, min(row["k"], a.size, b.size))
    return None if np.isnan(distance) else distance


def llama_budget(share: str = "2.5%", counts: Sequence[int] = (1, 2, 3, 4, 5, 8)) -> list[Row]:
    """llama_budget.csv, a row a LLaMA and n: the r whose share of all parameters is nearest.

    All linear layers but the head are adapted, as in `multilora.budget`. share: of all
    parameters; share_outside: of those outside embeddings and head.
    """
    wanted = budget.share_of(share)
    rows = []
    for model in budget.LLAMA:
        sizes = budget.measure(budget.build(budget.config_of(model)))
        for n in counts:
            r = sizes.nearest_rank(wanted * sizes.parameters, n)
            parameters = sizes.multilora(n, r)
            rows.append(
                {
                    **{"model": model, "n": n, "r": r, "parameters": parameters},
                    "share": parameters / sizes.parameters,
                    "share_outside": parameters / sizes.outside,
                }
            )
    return rows
