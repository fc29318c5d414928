"""Runs that kept their checkpoint-N → how concentrated ΔW is over the steps of training."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from analysis import CheckpointError, spectrum
from analysis.checkpoint import STEP
from analysis.formats import Options
from analysis.numerics.statistics import comparable
from analysis.results import Row, Spectra, grouped
from multilora import record

MEASURES = ("top_share_1", "top_share_4", "effective_rank_k", "gini_k")
COLUMNS = ("method", "seed", "step", "k", "modules", "frobenius_norm", *MEASURES)


def table(runs: Iterable[Path], base: str | Path) -> list[Row]:
    """A row a run and step, by COLUMNS: means over the modules that have moved.

    k, that of effective_rank_k and gini_k, is the smallest capacity of all, so that methods can be
    compared. A run without checkpoint-N has no row; a step at which nothing has moved has none.
    Raises CheckpointError where a checkpoint cannot be read.
    """
    found = [(run, of_run) for run in runs if (of_run := _spectra(run, Path(base))).rows]
    k = min((row["capacity"] for _, of_run in found for row in of_run.rows), default=0)
    rows = []
    for run, of_run in found:
        facts = record.read_json(run / "run.json")
        for (step,), of_step in sorted(grouped(of_run.rows, "step").items()):
            values = [
                comparable(of_run.s[row["key"]], k) | {"frobenius_norm": row["frobenius_norm"]}
                for row in of_step
            ]
            row = {"method": facts["method"], "seed": facts["seed"], "step": step, "k": k}
            row |= {name: statistics.fmean(v[name] for v in values) for name in values[0]}
            row["modules"] = len(values)
            rows.append({column: row[column] for column in COLUMNS})
    return rows


def _spectra(run: Path, base: Path) -> Spectra:
    """Of every step of a run, without what has not moved; R-LoRA at the mean of its heads."""
    steps = [path for path in sorted(run.iterdir()) if STEP.fullmatch(path.name)]
    if not steps:
        return Spectra()
    found = spectrum.analyse(steps, options=Options(base=base))
    if found.skipped:
        raise CheckpointError(f"{run}: {found.skipped[0]['reason']}")
    means = {row["part"] for row in found.rows if row["method"] == "rlora"} & {"mean"}
    rows = [
        row
        for row in found.rows
        if row["spectral_norm"] > 0 and (not means or row["part"] in means)
    ]
    return Spectra(rows, found.s)
