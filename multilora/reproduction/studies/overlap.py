"""Finished MultiLoRA runs → how much of their directions the n modules of a layer share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis import similarity
from analysis.numerics.statistics import mean
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from multilora import record
from multilora.reproduction.trained import Trained

COLUMNS = (
    *("method", "seed", "n", "r", "module", "kind", "pairs"),
    *(f"{side}_{what}" for side in SIDES for what in ("phi", "chance")),
)


def by_layer(runs: Iterable[Path]) -> list[Row]:
    """A row a run and layer: φ(r, r) between its modules, the mean over their n(n − 1)/2 pairs.

    left: of what they write, right: of what they read, from 0 to 1; chance: r/d. r: the smallest
    rank of the pairs. Runs with one module a layer have no row.
    """
    rows = []
    for run in runs:
        facts = record.read_json(run / "run.json")
        found = similarity.analyse(run)
        for (module, kind), pairs in grouped(found.inside, "module", "kind").items():
            parts = {pair[f"part_{end}"] for pair in pairs for end in "ab"}
            row = {"method": facts["method"], "seed": facts["seed"], "n": len(parts)}
            row |= {"r": int(min(pair["k"] for pair in pairs)), "module": module, "kind": kind}
            row["pairs"] = len(pairs)
            for side in SIDES:
                row[f"{side}_phi"] = mean(pair[f"{side}_phi_k"] for pair in pairs)
                row[f"{side}_chance"] = mean(pair[f"{side}_chance_k"] for pair in pairs)
            rows.append({column: row[column] for column in COLUMNS})
    return rows


def by_run(runs: Sequence[Trained]) -> list[Row]:
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
            f"{side}_{column}": mean(row[f"{side}_{column}"] for row in inside)
            for side in ("left", "right")
            for column in ("phi_1", "phi_k", "chance_k")
        }
        above = {
            side: mean(
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
                "overlap_above_chance": mean(above.values()),
                "cosine": mean(
                    None if row["cosine"] is None else abs(row["cosine"]) for row in inside
                ),
            }
        )
    return rows
