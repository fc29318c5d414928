"""Measure how concentrated ΔW is over the steps of training."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from analysis import CheckpointError, spectrum
from analysis.checkpoint import STEP
from analysis.formats import Options
from analysis.numerics.statistics import comparable
from analysis.results import Row, Spectra, grouped
from multilora.reproduction.trained import Trained

COLUMNS = (
    "method",
    "seed",
    "step",
    "k",
    "modules",
    "frobenius_norm",
    "top_share_1",
    "top_share_4",
    "effective_rank_k",
    "gini_k",
)


def table(runs: Iterable[Trained], base: Path) -> list[Row]:
    """Return dynamics.csv: one row per run and step, means over the modules that have moved.

    k, for effective_rank_k and gini_k, is the smallest capacity of all runs, so that methods can
    be compared. A run without checkpoint-N has no row, nor has a step at which nothing has moved.
    Raises CheckpointError if a checkpoint cannot be read.
    """
    analysed = [(run, spectra) for run in runs if (spectra := _spectra(run, base)).rows]
    k = min((row["capacity"] for _, spectra in analysed for row in spectra.rows), default=0)
    rows = []
    for run, spectra in analysed:
        for (step,), of_step in sorted(grouped(spectra.rows, "step").items()):
            modules = [
                comparable(spectra.s[row["key"]], k) | {"frobenius_norm": row["frobenius_norm"]}
                for row in of_step
            ]
            row = {"method": run.method, "seed": run.seed, "step": step, "k": k}
            row["modules"] = len(modules)
            row |= {name: statistics.fmean(m[name] for m in modules) for name in modules[0]}
            rows.append({column: row[column] for column in COLUMNS})
    return rows


def _spectra(run: Trained, base: Path) -> Spectra:
    """Return the spectra of all steps of a run, without modules at ΔW = 0.

    R-LoRA is represented by the mean of its heads.
    """
    steps = [path for path in sorted(run.path.iterdir()) if STEP.fullmatch(path.name)]
    if not steps:
        return Spectra()
    spectra = spectrum.analyse(steps, options=Options(base=base))
    if spectra.skipped:
        raise CheckpointError(f"{run.path}: {spectra.skipped[0]['reason']}")
    has_mean = any(row["method"] == "rlora" and row["part"] == "mean" for row in spectra.rows)
    rows = [
        row
        for row in spectra.rows
        if row["spectral_norm"] > 0 and (not has_mean or row["part"] == "mean")
    ]
    return Spectra(rows, spectra.s)
