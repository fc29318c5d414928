"""Make the tables of further studies of finished runs, which the quick preset does without.

cuts.csv (scores of cut updates), dynamics.csv, rounding_floor.csv, landing.csv, forgetting.csv,
sweep.csv and grid.csv. Studies that take long are kept next to the run and not measured again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis.base import vectors
from analysis.pairs.repeatability import Label
from analysis.results import Row
from multilora import record
from multilora.reproduction import analysing, measures, presets
from multilora.reproduction.studies import (
    cuts,
    dynamics,
    forgetting,
    landing,
    overlap,
    rounding,
)
from multilora.reproduction.studies.forgetting import HeldOut
from multilora.reproduction.tables import LOSS
from multilora.reproduction.trained import MAIN, Trained

# A run of the grid: the setting that is changed, its value, and the run.
Point = tuple[str, float, Trained]
# Columns of other tables that each row of grid.csv also has.
FROM_OVERLAP = ("overlap_above_chance",)
FROM_NEARNESS = ("left_phi_k", "right_phi_k", "log_distance")


def of_runs(runs: Sequence[Trained], model: Path, k: int, per_task: int) -> dict[str, list[Row]]:
    """Return cuts.csv, dynamics.csv and rounding_floor.csv of the main methods' runs.

    model: their base; k: of `measures.common_k`; per_task: held-out items of each task.
    """
    rows_of: dict[str, list[Row]] = {"cuts": [], "dynamics": [], "rounding_floor": []}
    for run in runs:
        rows_of["cuts"] += _kept(run, cuts, partial(cuts.table, [run], model, per_task), per_task)
        of_steps = partial(dynamics.table, [run], model, k, per_task)
        rows_of["dynamics"] += _kept(run, dynamics, of_steps, k, per_task)
        if run.method == "full":
            rows_of["rounding_floor"] += _kept(run, rounding, partial(rounding.table, [run], model))
    return rows_of


def beside_base(runs: Sequence[Trained], model: Path, held_out: HeldOut) -> dict[str, list[Row]]:
    """Return landing.csv of the runs, and forgetting.csv of their base and of the runs."""
    cache = vectors.default_cache()
    rows: list[Row] = []
    for run in runs:
        rows += _kept(run, landing, partial(landing.table, [run], model, cache))
    of_base = forgetting.table([None], model, held_out)
    return {"landing": rows, "forgetting": [*of_base, *forgotten(runs, model, held_out)]}


def forgotten(runs: Sequence[Trained], model: Path, held_out: HeldOut) -> list[Row]:
    """Return the rows of forgetting.csv of the runs; model: their base."""
    rows: list[Row] = []
    for run in runs:
        own = partial(forgetting.table, [run], model, held_out)
        rows += _kept(run, forgetting, own, asdict(held_out))
    return rows


def _kept(run: Trained, study: ModuleType, make: Callable[[], list[Row]], *given: Any) -> list[Row]:
    """Return the rows that `make` returns, read from a file next to the run if possible.

    run: the run that is studied.
    study: the module of the study, whose name the file has; rows made by other code or from other
        weights are made again.
    make: measures the rows.
    given: what else the rows depend on.
    """
    name = study.__name__.rpartition(".")[2]
    path = run.path / f"{name}.json"
    made_of = record.fingerprint(
        run.facts["fingerprint"], run.facts["weights"], {name: study}, *given
    )
    if path.is_file():
        kept = record.read_json(path)
        if kept.get("made_of") == made_of:
            return list(kept["rows"])
    rows = make()
    record.write_json(path, {"made_of": made_of, "rows": rows})
    return rows


def sweep(rows: Sequence[Row], by: str, least: int) -> list[Row]:
    """Return sweep.csv: the rows of all runs of the sweeps, each with chosen (0 or 1).

    rows: of `measures.of_runs`.
    by: SCORE or LOSS, of the validation items. chosen is 1 for the best rate of a method, the
        lowest of equals.
    least: the number of rates of a method; with fewer of them, none is chosen.
    """
    sign = -1 if by == LOSS else 1
    best = presets.best_of(
        ((row["method"], row["learning_rate"], sign * row[f"{by}_validation"]) for row in rows),
        least,
    )
    return [row | {"chosen": int(best.get(row["method"]) == row["learning_rate"])} for row in rows]


def grid(points: Sequence[Point], model: Path) -> list[Row]:
    """Return grid.csv: setting, value and the measures of methods.csv, one row per run.

    Each row also has overlap_above_chance, and φ(k, k) with full fine-tuning from other seeds on
    both sides. Only settings that have runs of all three main methods are measured.
    """
    runs_at: dict[tuple[str, float], list[Trained]] = {}
    for setting, value, run in points:
        # A variant counts as its method here, since setting and value say what is changed.
        plain = Trained(run.path, {**run.facts, "method": run.plain_method})
        runs_at.setdefault((setting, value), []).append(plain)
    return [
        {"setting": setting, "value": value} | row
        for (setting, value), runs in runs_at.items()
        if {run.method for run in runs} >= set(MAIN)
        for row in _at_one_setting(runs, model)
    ]


def _at_one_setting(runs: Sequence[Trained], model: Path) -> list[Row]:
    """Return the rows of grid.csv for the runs with one value of one setting."""
    spectra = analysing.spectra_of(runs, model)
    labels = {run.name: Label(run.method, run.seed) for run in runs}
    k = measures.common_k(runs, spectra)
    nearness = measures.nearness(analysing.similarity_of(runs, model), labels, spectra, k)
    near = {(r["method"], r["seed"]): r for r in nearness if r["reference"] == "full"}
    overlaps = {(r["method"], r["seed"]): r for r in overlap.by_run(overlap.module_pairs(runs))}
    rows = []
    for row in measures.of_runs(runs, spectra):
        run = (row["method"], row["seed"])
        own = {name: overlaps.get(run, {}).get(name) for name in FROM_OVERLAP}
        rows.append(row | own | {name: near.get(run, {}).get(name) for name in FROM_NEARNESS})
    return rows
