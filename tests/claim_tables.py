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
NULL = {"full": 0.05, "lora": 0.1, "multilora": 0.1}  # the top-1 share of a random update


def methods_rows(values=AS_CLAIMED, seeds=SEEDS, noise=1e-3, draw=0):
    """methods.csv, with a little noise over seeds."""
    rng = np.random.default_rng(draw)
    rows = []
    for method, of in values.items():
        for seed in seeds:
            row = {name: value + noise * rng.standard_normal() for name, value in of.items()}
            row |= {"method": method, "seed": seed, "k": 24, "parameters": 1000}
            by_chance = NULL.get(method, 0.1)
            row.setdefault("top_share_1_above_null", row["top_share_1"] - by_chance)
            row |= {"top_share_4": min(1, 2 * row["top_share_1"]), "above_floor_share": 0.99}
            row["top_share_16"] = min(1, 2.5 * row["top_share_1"])
            row |= {f"score_{family}": row["score"] for family in FAMILIES}
            row |= {"learning_rate": 3e-3, "task_sort": row["score"], "held_k": 1.0}
            row |= {"null_top_share_1": by_chance, "democracy": 0.7, "energy_rank_90": 20.0}
            rows.append(row)
    return rows


def dynamics_rows(values=AS_CLAIMED, seeds=SEEDS, losses=(2.0, 1.5, 1.0, 0.5)):
    """dynamics.csv of LoRA and MultiLoRA: the same measures at every step, a loss that falls."""
    rng = np.random.default_rng(2)
    return [
        {
            "method": method,
            "seed": seed,
            "step": step,
            "k": 24,
            "validation_loss": loss,
            "top_share_1": of["top_share_1"] + noise,
            "top_share_4": 2 * (of["top_share_1"] + noise),
            "effective_rank_k": of["effective_rank_k"] + noise,
            "gini_k": of["gini_k"] + noise,
        }
        for method, of in values.items()
        if method in ("lora", "multilora")
        for seed in seeds
        for noise in [1e-3 * rng.standard_normal()]
        for step, loss in enumerate(losses)
    ]


def nearness_rows(left, right, k=24, seeds=SEEDS, shape=(0.9, 0.6)):
    """nearness.csv of LoRA and MultiLoRA with full; left, right, shape: of both methods."""
    rng = np.random.default_rng(1)
    rows = []
    for i, method in enumerate(("lora", "multilora")):
        for seed in seeds:
            row = {"method": method, "seed": seed, "reference": "full", "k": k}
            for side, phi in (("left", left[i]), ("right", right[i])):
                value = phi + 1e-3 * rng.standard_normal()
                row |= {f"{side}_phi_k": value, f"{side}_above_chance": value - 0.1}
                row[f"{side}_chance_k"] = 0.15
            row["log_distance"] = shape[i] + 1e-3 * rng.standard_normal()
            rows.append(row)
    return rows


def overlap_rows(left, right, seeds=SEEDS):
    """overlap.csv of MultiLoRA and of MultiLoRA with B at zero; left, right: φ of both."""
    rng = np.random.default_rng(3)
    rows = []
    for i, method in enumerate(("multilora", "multilora zero")):
        for seed in seeds:
            row = {"method": method, "seed": seed, "n": 3, "r": 8, "cosine": 0.01}
            for side, phi in (("left", left[i]), ("right", right[i])):
                value = phi + 1e-3 * rng.standard_normal()
                row |= {f"{side}_phi_k": value, f"{side}_chance_k": 0.06}
                row |= {f"{side}_null_k": 0.1, f"{side}_above_null": value - 0.1}
            rows.append(row)
    return rows


def grid_rows(holds):
    """grid.csv of two seeds per setting; holds: whether claims 1a, 3a and 3b hold there."""
    rows = []
    for value, as_claimed in enumerate(holds):
        swapped = {"lora": AS_CLAIMED["full"], "full": AS_CLAIMED["lora"]}
        of = AS_CLAIMED if as_claimed else AS_CLAIMED | swapped
        for row in methods_rows(of, seeds=(0, 1), draw=value):
            near = row["method"] == "multilora"
            phi = 0.2 + (0.1 + 1e-3 * value) * near
            row |= {"setting": "steps", "value": value, "overlap_above_chance": 0.02}
            row |= {"left_phi_k": phi, "right_phi_k": phi, "log_distance": 1 - (phi - 0.2) * 2}
            rows.append(row)
    return rows


BASE, WHOLE = 0.2, 0.7  # scores of the base and of a whole update in cuts.csv
KEEP = {"full": 0.3, "lora": 0.8, "multilora": 0.5}  # gain with the top directions kept
REMOVE = {"full": 0.5, "lora": 0.2, "multilora": 0.4}  # gain with the top directions removed


def cut_rows(keep=KEEP, remove=REMOVE, ks=(1, 2, 4, 8, 16, 24), seeds=SEEDS):
    """cuts.csv; keep, remove: gain of each method at every k ≥ 1, as a share of the whole gain."""
    rows = []
    for kind, gains, uncut in (("keep", keep, 0.0), ("remove", remove, 1.0)):
        for method, gain in gains.items():
            for seed in seeds:
                for k in (0, *ks):
                    at = uncut if k == 0 else gain + 1e-4 * seed * (method == "lora")
                    score = BASE + at * (WHOLE - BASE)
                    row = {"method": method, "seed": seed, "kind": kind, "k": k, "score": score}
                    rows.append(row | {f"score_{family}": score for family in FAMILIES})
    return rows


def wild_rows(shares, step=None):
    return [
        {
            "adapter": f"a{i}",
            "step": step,
            "module": f"m{j}",
            "kind": "q_proj",
            "r": 8,
            "top_share_1": share + 0.01 * j,
            "null_top_share_1": 0.2,
        }
        for i, share in enumerate(shares)
        for j in range(3)
    ]


def budget_rows(model="llama-7b", r=22, share=0.02508):
    return [{"model": model, "n": 3, "r": r, "share": share}]


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
    """The outcomes by number; "no verdict" for a claim that gets none."""
    return {number: str(one.outcome or "no verdict") for number, one in judged(**rows).items()}


# What supports every claim that gets a verdict.
EVERYTHING = {
    "methods": methods_rows(with_values(full__score=0.5)),
    "dynamics": dynamics_rows(),
    "overlap": overlap_rows(left=(0.2, 0.4), right=(0.3, 0.5)),
    "nearness": nearness_rows(left=(0.2, 0.35), right=(0.25, 0.35)),
    "llama_budget": budget_rows(),
    "grid": grid_rows([True] * 6),
    "cuts": cut_rows(),
    "wild": wild_rows([0.6, 0.7, 0.8]),
}


def write_results(directory, rows_of=EVERYTHING):
    """Write tables and their record into a directory."""
    directory.mkdir(exist_ok=True)
    (directory / "record.json").write_text('{"arguments": {"steps": 3}, "seed": [0, 1]}')
    tables.write(directory, rows_of)
    return directory
