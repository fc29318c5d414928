"""Made-up tables of a reproduction, and the verdicts that follow from them."""

import numpy as np

from multilora.reproduction import tables
from multilora.reproduction.claims import judge
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

SEEDS = (0, 1, 2, 3, 4)


AS_CLAIMED = {
    "full": {"top_share_1": 0.1, "effective_rank_k": 22.0, "gini_k": 0.2, "score": 0.6},
    "lora": {"top_share_1": 0.5, "effective_rank_k": 12.0, "gini_k": 0.5, "score": 0.6},
    "multilora": {"top_share_1": 0.2, "effective_rank_k": 18.0, "gini_k": 0.3, "score": 0.7},
}


def methods_rows(values=AS_CLAIMED, seeds=SEEDS, noise=1e-3, draw=0):
    """methods.csv, with a little noise over seeds."""
    rng = np.random.default_rng(draw)
    rows = []
    for method, of in values.items():
        for seed in seeds:
            row = {name: value + noise * rng.standard_normal() for name, value in of.items()}
            row |= {"method": method, "seed": seed, "k": 24, "parameters": 1000}
            row["top_share_1_above_null"] = row["top_share_1"] - 0.05
            row |= {"top_share_4": min(1, 2 * row["top_share_1"]), "above_floor_share": 0.99}
            row["top_share_16"] = min(1, 2.5 * row["top_share_1"])
            row |= {f"score_{family}": row["score"] for family in FAMILIES}
            row |= {"learning_rate": 3e-3, "task_sort": row["score"], "held_k": 1.0}
            rows.append(row | {"null_top_share_1": 0.05, "democracy": 0.7})
    return rows


def nearness_rows(left, right, k=24, seeds=SEEDS):
    """nearness.csv of LoRA and MultiLoRA with full; left, right: φ of both methods."""
    rng = np.random.default_rng(1)
    rows = []
    for i, method in enumerate(("lora", "multilora")):
        for seed in seeds:
            row = {"method": method, "seed": seed, "reference": "full", "k": k}
            for side, phi in (("left", left[i]), ("right", right[i])):
                value = phi + 1e-3 * rng.standard_normal()
                row |= {f"{side}_phi_k": value, f"{side}_above_chance": value - 0.1}
                row[f"{side}_chance_k"] = 0.15
            row["log_distance"] = 0.9 - 0.1 * i + 1e-3 * rng.standard_normal()
            rows.append(row)
    return rows


def overlap_rows(above, method="multilora", n=3):
    return [
        {"method": method, "seed": seed, "n": n, "r": 8, "overlap_above_chance": value}
        for seed, value in enumerate(above)
    ]


def grid_rows(holds):
    """Two seeds a setting; holds: whether claims 1 and 3 do."""
    rows = []
    for value, as_claimed in enumerate(holds):
        of = AS_CLAIMED if as_claimed else {"full": AS_CLAIMED["lora"], "lora": AS_CLAIMED["full"]}
        of = AS_CLAIMED | of
        for row in methods_rows(of, seeds=(0, 1), draw=value):
            phi = 0.2 + (0.1 + 1e-3 * value) * (row["method"] == "multilora")
            row |= {"setting": "steps", "value": value, "overlap_above_chance": 0.02 + 1e-3 * value}
            rows.append(row | {"left_phi_k": phi, "right_phi_k": phi})
    return rows


def cut_rows(keep, remove, ks=(1, 2, 4, 8)):
    """cuts.csv; keep, remove: score of LoRA and of MultiLoRA at every k."""
    rows = []
    for kind, pair in (("keep", keep), ("remove", remove)):
        for method, score in zip(("lora", "multilora"), pair, strict=True):
            for seed in SEEDS:
                for k in ks:
                    at = score + 0.01 * np.log2(max(k, 1)) + 1e-4 * seed * (method == "lora")
                    row = {"method": method, "seed": seed, "kind": kind, "k": k, "score": at}
                    rows.append(row | {f"score_{family}": at for family in FAMILIES})
    return rows


def wild_rows(shares, step=None):
    return [
        {
            **{"adapter": f"a{i}", "step": step, "module": f"m{j}", "kind": "q_proj", "r": 8},
            **{"top_share_1": share + 0.01 * j, "null_top_share_1": 0.2},
        }
        for i, share in enumerate(shares)
        for j in range(3)
    ]


def with_values(**changes):
    """AS_CLAIMED with other values: method__measure=value."""
    values = {method: dict(of) for method, of in AS_CLAIMED.items()}
    for name, value in changes.items():
        method, measure = name.split("__")
        values[method][measure] = value
    return values


def judged(**rows):
    """The verdicts by number, of tables by name."""
    return {one.statement.number: one for one in judge.judge(Tables(rows))}


def outcomes(**rows):
    return {number: str(one.outcome) for number, one in judged(**rows).items()}


EVERYTHING = {
    "methods": methods_rows(),
    "overlap": overlap_rows([0.02, 0.03, 0.025]),
    "nearness": nearness_rows((0.35, 0.2), (0.25, 0.35)),
    "llama_budget": [{"model": "llama-7b", "n": 3, "r": 22, "share": 0.02508}],
    "grid": grid_rows([True] * 6),
    "cuts": cut_rows((0.5, 0.3), (0.2, 0.4)),
    "wild": wild_rows([0.6, 0.7, 0.8]),
}


def write_results(directory):
    """Write all tables and their record into a directory."""
    (directory / "record.json").write_text('{"arguments": {"steps": 3}, "seed": [0, 1]}')
    tables.write(directory, EVERYTHING)
    return directory
