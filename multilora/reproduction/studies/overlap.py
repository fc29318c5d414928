"""Measure how much of their directions the n modules of a MultiLoRA layer share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis import similarity
from analysis.numerics.statistics import mean
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from multilora.reproduction.trained import Trained

BY_LAYER_COLUMNS = (
    "method",
    "seed",
    "n",
    "r",
    "module",
    "kind",
    "pairs",
    "left_phi",
    "left_chance",
    "right_phi",
    "right_chance",
)


@dataclass(frozen=True, eq=False)
class ModulePairs:
    """A MultiLoRA run with n > 1 and the comparisons between its modules.

    rows: one per layer and pair of modules, as in `Similarity.inside`.
    """

    run: Trained
    rows: Sequence[Row]


def module_pairs(runs: Iterable[Trained]) -> list[ModulePairs]:
    """Compare the modules of each run that has several per layer; other runs are left out."""
    return [
        ModulePairs(run, similarity.analyse(run.path).inside)
        for run in runs
        if run.overlapping_modules
    ]


def by_layer(overlaps: Iterable[ModulePairs]) -> list[Row]:
    """Return module_overlap.csv: one row per run and layer, means over its n(n − 1)/2 pairs.

    left_phi, right_phi: φ(r, r) of output and input directions, in [0, 1]; left_chance,
    right_chance: r/d; r: the smallest rank of the pairs.
    """
    rows = []
    for pairs in overlaps:
        for (module, kind), of_layer in grouped(pairs.rows, "module", "kind").items():
            row = {
                "method": pairs.run.method,
                "seed": pairs.run.seed,
                "n": len({pair[f"part_{end}"] for pair in of_layer for end in "ab"}),
                "r": int(min(pair["k"] for pair in of_layer)),
                "module": module,
                "kind": kind,
                "pairs": len(of_layer),
            }
            for side in SIDES:
                row[f"{side}_phi"] = mean(pair[f"{side}_phi_k"] for pair in of_layer)
                row[f"{side}_chance"] = mean(pair[f"{side}_chance_k"] for pair in of_layer)
            rows.append({column: row[column] for column in BY_LAYER_COLUMNS})
    return rows


def by_run(overlaps: Iterable[ModulePairs]) -> list[Row]:
    """Return overlap.csv: one row per run, means over layers and pairs of modules.

    φ(1, 1), φ(r, r) and chance on both sides; left_above_chance, right_above_chance: φ(r, r) minus
    chance; overlap_above_chance: the mean of these two; cosine: the mean of |cosine| between the
    updates of the modules.
    """
    rows = []
    for pairs in overlaps:
        row: Row = {
            "method": pairs.run.method,
            "seed": pairs.run.seed,
            "n": pairs.run.overlapping_modules,
            "r": max((pair["k"] for pair in pairs.rows), default=None),
            "pairs": len(pairs.rows),
        }
        for side in SIDES:
            for measure in ("phi_1", "phi_k", "chance_k"):
                name = f"{side}_{measure}"
                row[name] = mean(pair[name] for pair in pairs.rows)
        above = [mean(_above_chance(pair, side) for pair in pairs.rows) for side in SIDES]
        row |= {f"{side}_above_chance": value for side, value in zip(SIDES, above, strict=True)}
        row["overlap_above_chance"] = mean(above)
        cosines = [pair["cosine"] for pair in pairs.rows]
        row["cosine"] = mean(None if cosine is None else abs(cosine) for cosine in cosines)
        rows.append(row)
    return rows


def _above_chance(pair: Row, side: str) -> float | None:
    """φ(r, r) of a pair minus chance; None if it is undetermined."""
    phi = pair[f"{side}_phi_k"]
    return None if phi is None else phi - pair[f"{side}_chance_k"]
