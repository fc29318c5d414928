"""Make the tables that only the full preset has, from further studies of finished runs.

cuts.csv (scores of cut updates), rounding_floor.csv, module_overlap.csv, dynamics.csv, sweep.csv,
grid.csv and, if there are adapters of others, wild.csv. Studies that take long are kept next to the
run and not measured again.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from analysis.pairs.repeatability import Label
from analysis.results import Row
from multilora import record
from multilora.reproduction import analysing, measures, presets
from multilora.reproduction.studies import cuts, dynamics, overlap, rounding, wild
from multilora.reproduction.studies.overlap import ModulePairs
from multilora.reproduction.trained import MAIN, Trained

# A run of the grid: the setting that is changed, its value, and the run.
Point = tuple[str, float, Trained]
# Columns of other tables that each row of grid.csv also has.
FROM_OVERLAP, FROM_NEARNESS = ("overlap_above_chance",), ("left_phi_k", "right_phi_k")


@dataclass(frozen=True)
class Extras:
    """Input of the measurements that only the full preset makes.

    swept: the runs of the sweeps that learning rates are chosen from.
    points: the runs of the grid.
    adapters: a directory of adapters that others trained, or None.
    """

    swept: Sequence[Trained] = ()
    points: Sequence[Point] = ()
    adapters: Path | None = None


def tables(
    runs: Sequence[Trained], model: Path, overlaps: Sequence[ModulePairs], extras: Extras
) -> dict[str, list[Row]]:
    """Return the tables of the full preset by name; a table without data has no rows.

    runs: the runs that are compared.
    model: the directory of their base.
    overlaps: the comparisons between the modules of MultiLoRA runs.
    extras: sweeps, grid and adapters. Adapters that are left out are listed on stderr.
    """
    main = [run for run in runs if run.method in MAIN]
    full = [run for run in runs if run.method == "full"]
    rows_of = {
        "cuts": [row for run in main for row in _cut(run, model)],
        "rounding_floor": [row for run in full for row in _rounded(run, model)],
        "module_overlap": overlap.by_layer(overlaps),
        "dynamics": dynamics.table(main, model),
    }
    if extras.adapters:
        rows_of["wild"], left_out = wild.table(extras.adapters)
        for line in left_out:
            print(*line.values(), sep=": ", file=sys.stderr)
    swept = measures.of_runs(extras.swept, analysing.spectra_of(extras.swept, model))
    rows_of["sweep"] = sweep(swept)
    rows_of["grid"] = grid(extras.points, model)
    return rows_of


def _cut(run: Trained, model: Path) -> list[Row]:
    return _kept(run, "cuts", lambda: cuts.table([run], model), cuts)


def _rounded(run: Trained, model: Path) -> list[Row]:
    return _kept(run, "rounding", lambda: rounding.table([run], model), rounding)


def _kept(run: Trained, name: str, make: Callable[[], list[Row]], code: ModuleType) -> list[Row]:
    """Return the rows that `make` returns, read from a file next to the run if possible.

    run: the run that is studied.
    name: of the study, and of the file NAME.json.
    make: measures the rows.
    code: the module of the study; rows made by other code or from other weights are made again.
    """
    path = run.path / f"{name}.json"
    made_of = record.fingerprint(run.facts["fingerprint"], run.facts["weights"], {name: code})
    if path.is_file():
        kept = record.read_json(path)
        if kept.get("made_of") == made_of:
            return list(kept["rows"])
    rows = make()
    record.write_json(path, {"made_of": made_of, "rows": rows})
    return rows


def sweep(rows: Sequence[Row]) -> list[Row]:
    """Return sweep.csv: the rows of all runs of the sweeps, each with chosen (0 or 1).

    rows: of `measures.of_runs`. chosen is 1 for the best rate of a method on the validation items,
    the lowest of equals (`presets.best_of`), and 0 for all if a rate was not run.
    """
    best = presets.best_of(
        (row["method"], row["learning_rate"], row["score_validation"]) for row in rows
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
