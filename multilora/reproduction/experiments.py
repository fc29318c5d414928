"""Make the tables that only the full preset has, from further studies of finished runs.

cuts.csv (scores of cut updates), rounding_floor.csv, sweep.csv and grid.csv. Studies that take long
are kept next to the run and not measured again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from analysis.pairs.repeatability import Label
from analysis.results import Row
from multilora import record
from multilora.reproduction import analysing, measures, presets
from multilora.reproduction.studies import cuts, overlap, rounding
from multilora.reproduction.trained import MAIN, Trained

# A run of the grid: the setting that is changed, its value, and the run.
Point = tuple[str, float, Trained]
# Columns of other tables that each row of grid.csv also has.
FROM_OVERLAP = ("overlap_above_chance",)
FROM_NEARNESS = ("left_phi_k", "right_phi_k", "log_distance")


def of_runs(runs: Sequence[Trained], model: Path) -> dict[str, list[Row]]:
    """Return cuts.csv and rounding_floor.csv of the main methods' runs; model: their base."""
    full = [run for run in runs if run.method == "full"]
    return {
        "cuts": [row for run in runs for row in _cut(run, model)],
        "rounding_floor": [row for run in full for row in _rounded(run, model)],
    }


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
