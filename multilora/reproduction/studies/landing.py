"""Measure every ΔW beside the weight that it changes: its size, where it lands, intruders."""

from collections.abc import Iterable
from pathlib import Path

from analysis import CheckpointError
from analysis.base import landing
from analysis.numerics.statistics import mean
from analysis.results import Row
from multilora.reproduction.trained import Trained

# Columns of analysis.similarity's base.csv that are averaged over modules.
AVERAGED = (
    *landing.COLUMNS,
    *landing.LANDING_COLUMNS,
    *landing.INTRUDER_COLUMNS,
)


def table(runs: Iterable[Trained], base: Path, cache: Path | None = None) -> list[Row]:
    """Return landing.csv: one row per run, means over modules of the columns of `landing`.

    base: the base of the runs; cache: directory for its decompositions, None to keep none. For
    the parts of a method with several updates per module, the mean is over these too. Raises
    CheckpointError if a module cannot be compared with the base.
    """
    rows = []
    for run in runs:
        against = landing.analyse([run.path], base, intruders=True, cache=cache)
        if against.skipped:
            raise CheckpointError(f"{run.path}: {against.skipped[0]['reason']}")
        row = {"method": run.method, "seed": run.seed, "modules": len(against.rows)}
        rows.append(row | {name: mean(of[name] for of in against.rows) for name in AVERAGED})
    return rows
