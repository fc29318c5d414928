"""Measure how much of their directions the n modules of a MultiLoRA layer share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np

from analysis import checkpoint, similarity
from analysis.numerics.decompose import Decomposition, decomposition
from analysis.numerics.statistics import mean
from analysis.numerics.subspaces import SIDES, pair_measures
from analysis.pairs import meeting
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
    "left_null",
    "right_null",
)
# (method, module, side) -> φ(r, r) between a module of one run and one of another seed.
Nulls = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True, eq=False)
class ModulePairs:
    """A MultiLoRA run with n > 1 and the comparisons between its modules.

    rows: one per layer and pair of modules, as in `Similarity.inside`.
    nulls: the overlap of modules that were trained apart; {} if there is no second seed.
    """

    run: Trained
    rows: Sequence[Row]
    nulls: Nulls = field(default_factory=dict)


def module_pairs(runs: Iterable[Trained], nulls: Nulls | None = None) -> list[ModulePairs]:
    """Compare the modules of each run that has several per layer; other runs are left out.

    nulls: of `between_seeds`.
    """
    return [
        ModulePairs(run, similarity.analyse(run.path).inside, nulls or {})
        for run in runs
        if run.overlapping_modules
    ]


def between_seeds(runs: Iterable[Trained]) -> Nulls:
    """Return the null of the overlap: φ(r, r) between modules of runs of different seeds.

    runs: of one base. Every module i of one run is compared with every module j of another run of
    the same method, layer by layer. They never met in training, so they share only what the base
    and the tasks make any two modules share. Means over pairs, by method, layer and side.
    """
    of_methods: dict[str, list[dict[str, list[Decomposition]]]] = {}
    for run in runs:
        if run.overlapping_modules:
            of_methods.setdefault(run.method, []).append(_modules(run))
    values: dict[tuple[str, str, str], list[float | None]] = {}
    for method, layers in of_methods.items():
        for a, b in combinations(layers, 2):
            for layer in a.keys() & b.keys():
                for one, other in product(a[layer], b[layer]):
                    measured, _ = pair_measures(one, other)
                    for side in SIDES:
                        phi = measured[f"{side}_phi_k"]
                        known = phi if phi is not None and np.isfinite(phi) else None
                        values.setdefault((method, layer, side), []).append(known)
    means = {key: mean(of_key) for key, of_key in values.items()}
    return {key: value for key, value in means.items() if value is not None}


def _modules(run: Trained) -> dict[str, list[Decomposition]]:
    """Return the decomposed modules of each layer; those with ΔW = 0 are left out."""
    layers: dict[str, list[Decomposition]] = {}
    for update in checkpoint.read(run.path):
        parts = [decomposition(part) for part in meeting.parts([update])]
        layers[update.name] = [part for part in parts if part.rank]
    return layers


def by_layer(overlaps: Iterable[ModulePairs]) -> list[Row]:
    """Return module_overlap.csv: one row per run and layer, means over its n(n − 1)/2 pairs.

    left_phi, right_phi: φ(r, r) of output and input directions, in [0, 1]; left_chance,
    right_chance: r/d; left_null, right_null: φ between modules of different seeds, None without a
    second seed; r: the smallest rank of the pairs.
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
                row[f"{side}_null"] = pairs.nulls.get((pairs.run.method, module, side))
            rows.append({column: row[column] for column in BY_LAYER_COLUMNS})
    return rows


def by_run(overlaps: Iterable[ModulePairs]) -> list[Row]:
    """Return overlap.csv: one row per run, means over layers and pairs of modules.

    φ(1, 1), φ(r, r) and chance on both sides; left_above_chance, right_above_chance: φ(r, r) minus
    chance; overlap_above_chance: the mean of these two; left_null_k, right_null_k: φ(r, r) between
    modules of different seeds, None without a second seed; left_above_null, right_above_null:
    φ(r, r) minus it; cosine: the mean of |cosine| between the updates of the modules.
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
        row |= _against_null(row, pairs)
        cosines = [pair["cosine"] for pair in pairs.rows]
        row["cosine"] = mean(None if cosine is None else abs(cosine) for cosine in cosines)
        rows.append(row)
    return rows


def _against_null(row: Row, pairs: ModulePairs) -> Row:
    """Return the null of both sides and φ(r, r) of the row minus it; None without a null."""
    columns: Row = {}
    for side in SIDES:
        by_layer = [
            value
            for (method, _, of), value in pairs.nulls.items()
            if (method, of) == (pairs.run.method, side)
        ]
        phi, by_null = row[f"{side}_phi_k"], mean(by_layer)
        columns[f"{side}_null_k"] = by_null
        columns[f"{side}_above_null"] = None if phi is None or by_null is None else phi - by_null
    return columns


def _above_chance(pair: Row, side: str) -> float | None:
    """φ(r, r) of a pair minus chance; None if it is undetermined."""
    phi = pair[f"{side}_phi_k"]
    return None if phi is None else phi - pair[f"{side}_chance_k"]
