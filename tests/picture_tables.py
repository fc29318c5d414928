"""Made-up rows of the tables that figures are drawn from."""

import matplotlib as mpl
import numpy as np

from analysis import results
from analysis.numerics import subspaces
from multilora.reproduction.tables import parsed

mpl.use("Agg")

METHODS = ("multilora", "lora", "full")
METHOD_OF = {"full-s0": "full", "lora-s0": "lora"}


def two_runs(rng):
    """Spectra of two runs: full, of 12 values, and lora, of 3 of them."""
    spectra = results.Spectra()
    for run, k in (("full-s0", 12), ("lora-s0", 3)):
        for kind in ("q_proj", "v_proj", "up_proj", "down_proj"):
            row = {"key": f"{run}/{kind}", "run": run, "kind": kind, "d_out": 12, "d_in": 20}
            spectra.rows.append(row)
            spectra.s[row["key"]] = np.sort(rng.random(k))[::-1]
    return spectra


def methods_rows(rng):
    """Rows of methods.csv: three seeds of four methods."""
    return [
        {
            "method": method,
            "seed": seed,
            "k": 24,
            "top_share_1": rng.random(),
            "effective_rank_k": rng.random(),
            "gini_k": rng.random(),
        }
        for method in (*METHODS, "peft:DORA")
        for seed in range(3)
    ]


def grid_rows(rng):
    """Rows of grid.csv: two settings, two seeds, three methods."""
    return [
        {
            "setting": setting,
            "value": value,
            "seed": seed,
            "method": method,
            "top_share_1": rng.random(),
            "effective_rank_k": rng.random(),
            "score": rng.random(),
        }
        for setting, values in {"n·r": (16, 4, 8), "rate": (0.5, 2)}.items()
        for value in values
        for seed in (0, 1)
        for method in METHODS
    ]


def cut_rows(rng):
    """Rows of cuts.csv: two methods of different capacity; the base scores 0.2, every run more."""
    return [
        {
            "method": method,
            "seed": seed,
            "kind": kind,
            "k": k,
            "score_knowledge": rng.random(),
            "score": 0.2 if (kind, k) == ("keep", 0) else 0.3 + 0.5 * rng.random(),
        }
        for method, capacity in (("full", 8), ("lora", 4))
        for seed in (0, 1)
        for kind in ("keep", "remove")
        for k in (0, 1, 2, 4, 8)
        if k <= capacity
    ]


def wild_rows(rng):
    """Rows of wild.csv: an adapter with two steps and one without."""
    return [
        {
            **{"adapter": adapter, "step": step, "module": f"m.{i}", "kind": "q", "r": r},
            "top_share_1": rng.random(),
            "null_top_share_1": 1 / r,
        }
        for adapter, r, steps in (("b-run", 8, (10, 20)), ("a", 2, (None,)))
        for step in steps
        for i in range(5)
    ]


def overlap_rows(rng):
    """Rows of module_overlap.csv: three variants of MultiLoRA."""
    return [
        {
            **{"method": method, "seed": seed, "n": n, "r": 24 // n, "module": f"{i}.{kind}"},
            "kind": kind,
            "pairs": 3,
            "left_phi": rng.random(),
            "right_phi": rng.random(),
            "left_chance": 0.06,
            "right_chance": 0.02,
        }
        for method, n in (("multilora", 3), ("multilora n=2", 2), ("multilora zero", 3))
        for seed in (0, 1)
        for kind in ("up_proj", "q_proj")
        for i in range(2)
    ]


def rounding_rows(rng):
    """Rows of rounding_floor.csv: two ratios, two seeds."""
    columns = ("effective_rank", "gini", "top_share_1")
    return [
        {"ratio": ratio, "own_ratio": 0.6, "effective_rank_noise": 110.0}
        | {"above_floor_share": rng.random()}
        | {c: rng.random() for c in columns}
        | {f"{c}_true": rng.random() for c in columns}
        for ratio in (0.3, 0.01)
        for _ in range(2)
    ]


PAIRS = (("full", "full"), ("full", "lora"), ("full", "multilora"), ("lora", "lora"))


def phi_rows(rng, k=6, d=40, shared=(("full", "full", 4), ("full", "lora", 2))):
    """Rows of phi_grids.csv: random subspaces, some of which share their first directions.

    rng: draws the subspaces; k: directions of each; d: their dimension.
    shared: (method_a, method_b, number of directions that both have, as the first ones). All other
    pairs of PAIRS share what chance gives them.
    """
    planted = {(a, b): n for a, b, n in shared}
    rows = []
    for a, b in PAIRS:
        for side in subspaces.SIDES:
            U, V = (np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in range(2))
            n = planted.get((a, b), 0)
            V = np.linalg.qr(np.hstack([U[:, :n], V[:, n:]]))[0]
            grid = subspaces.phi(U, V) - subspaces.chance(k, k, d)
            rows += [
                {"method_a": a, "method_b": b, "side": side, "i": i, "d": d}
                | {f"j{j}": float(value) for j, value in enumerate(of_i, start=1)}
                for i, of_i in enumerate(grid, start=1)
            ]
    return rows


def read(path):
    """Return the rows of a CSV file."""
    return parsed(path, path.read_bytes(), ())


def line(ax, label):
    """Return the line of an Axes with a label."""
    (labelled,) = [line for line in ax.lines if line.get_label() == label]
    return labelled
