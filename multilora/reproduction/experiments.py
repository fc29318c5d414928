"""What the full preset measures of finished runs beside their spectra → tables.

cuts.csv (scores of cut updates), rounding_floor.csv, module_overlap.csv, dynamics.csv, sweep.csv,
grid.csv, budget.csv and, where there are adapters of others, wild.csv. What takes long is kept
beside the run that it is of, and not measured again.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity, Spectra
from multilora import budget, record
from multilora.reproduction import measures, presets
from multilora.reproduction.studies import cuts, dynamics, overlap, rounding, wild
from multilora.reproduction.trained import MAIN, Trained

# Which methods' updates are cut: the three that the claims compare.
CUT = MAIN
BESIDE = ("overlap_above_chance", "left_phi_k", "right_phi_k")
# A run of the grid: the setting that is changed, its value, and the run.
Point = tuple[str, float, Trained]


def tables(runs: Sequence[Trained], model: Path, adapters: Path | None) -> dict[str, list[Row]]:
    """All but sweep and grid; a table for which there is nothing has no rows."""
    found = {
        "cuts": [row for run in runs if run.method in CUT for row in _cut(run, model)],
        "rounding_floor": [
            row for run in runs if run.method == "full" for row in _rounded(run, model)
        ],
        "module_overlap": overlap.by_layer(_several(runs)),
        "dynamics": dynamics.table([run.path for run in runs if run.method in MAIN], model),
        "budget": budget.curve(),
    }
    if adapters:
        found["wild"], left_out = wild.table(adapters)
        for line in left_out:
            print(*line.values(), sep=": ", file=sys.stderr)
    return found


def _several(runs: Sequence[Trained]) -> list[Path]:
    """The runs that have several modules a layer, which can overlap."""
    return [
        run.path
        for run in runs
        if run.facts["settings"]["method"] == "multilora" and run.facts["settings"]["n"] > 1
    ]


def _cut(run: Trained, model: Path) -> list[Row]:
    return _kept(run, "cuts", lambda: cuts.table([run.path], model), cuts)


def _rounded(run: Trained, model: Path) -> list[Row]:
    return _kept(run, "rounding", lambda: rounding.table([run.path], model), rounding)


def _kept(run: Trained, name: str, make: Callable[[], list[Row]], code: ModuleType) -> list[Row]:
    """The rows that `make` gives, from NAME.json beside the run where the same code made them."""
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
    """sweep.csv: the measures of methods.csv of every run of the sweep, and chosen (0, 1).

    rows: of `measures.of_runs`. chosen: by `presets.best_of` on the validation items, the lowest
    of equals, and none of a method of which a rate was not run.
    """
    best = presets.best_of(
        (row["method"], row["learning_rate"], row["score_validation"]) for row in rows
    )
    return [row | {"chosen": int(best.get(row["method"]) == row["learning_rate"])} for row in rows]


def grid(
    points: Sequence[Point],
    analyse: Callable[[Sequence[Trained]], Spectra],
    alike: Callable[[Sequence[Trained]], Similarity],
) -> list[Row]:
    """grid.csv: setting, value and the measures of methods.csv, of every run of the grid.

    Beside them overlap_above_chance, and φ(k, k) with full fine-tuning from other seeds on both
    sides. A setting is measured where its runs of all three methods are there.
    """
    groups: dict[tuple[str, float], list[Trained]] = {}
    for setting, value, run in points:
        # A variant by its settings is the method itself here: what is changed stands beside it.
        plain = Trained(run.path, {**run.facts, "method": run.facts["settings"]["method"]})
        groups.setdefault((setting, value), []).append(plain)
    rows: list[Row] = []
    for (setting, value), runs in groups.items():
        if not {run.method for run in runs} >= set(MAIN):
            continue
        spectra = analyse(runs)
        labels = {run.name: Label(run.method, run.seed) for run in runs}
        nearness = measures.nearness(alike(runs), labels, spectra, measures.common_k(runs, spectra))
        near = {(r["method"], r["seed"]): r for r in nearness if r["reference"] == "full"}
        over = {(r["method"], r["seed"]): r for r in overlap.by_run(runs)}
        for row in measures.of_runs(runs, spectra):
            of_run = (row["method"], row["seed"])
            # Both have a φ(k, k): that with full fine-tuning is meant, not that of the modules.
            beside = {**over.get(of_run, {}), **near.get(of_run, {})}
            rows.append(
                {"setting": setting, "value": value}
                | dict(row)
                | {name: beside.get(name) for name in BESIDE}
            )
    return rows
