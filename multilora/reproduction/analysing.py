"""Analyse finished runs: the spectra of their updates and the directions that they share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis import UserError, similarity, spectrum
from analysis.formats import Options
from analysis.results import Similarity, Spectra
from multilora.methods import peft as peft_methods
from multilora.reproduction.trained import Trained
from multilora.training.settings import BY_TASK


def spectra_of(runs: Sequence[Trained], model: Path) -> Spectra:
    """Return the spectra of all runs; `model` is their base.

    R-LoRA is represented by the mean of its heads. Raises UserError if a module of a run cannot be
    analysed.
    """
    every = Spectra()
    for run in runs:
        spectra = spectrum.analyse(run.path, options=_options(run, model), progress=True)
        if spectra.skipped:
            raise UserError(f"{run.path}: {spectra.skipped[0]['reason']}")
        rows = [row for row in spectra.rows if not _is_head(row["method"], row["part"])]
        every.rows.extend(rows)
        every.s.update({row["key"]: spectra.s[row["key"]] for row in rows})
        every.other.extend(spectra.other)
    return every


def similarity_of(runs: Sequence[Trained], model: Path) -> Similarity:
    """Return which directions every two runs share, method by method; `model` is their base.

    Methods with an update for each task are left out, since none of them represents the run.
    """
    runs = [run for run in runs if run.plain_method not in BY_TASK]
    methods = list(dict.fromkeys(run.method for run in runs))
    paths = [run.path for run in sorted(runs, key=lambda run: methods.index(run.method))]
    # All runs are read in one way, so updates that need their start (as PiSSA's) are left out.
    needs_base = any(peft_methods.is_named(run.plain_method) for run in runs)
    options = Options(base=model) if needs_base else Options()
    every = similarity.analyse(paths, options=options, parts=False)
    rows = [
        row
        for row in every.rows
        if not any(_is_head(row[f"method_{side}"], row[f"part_{side}"]) for side in "ab")
    ]
    return replace(every, rows=rows)


def _options(run: Trained, model: Path) -> Options:
    """Return how to read a run: PEFT's own methods need the base and their start."""
    if not peft_methods.is_named(run.plain_method):
        return Options()
    initial = run.path / peft_methods.INITIAL
    return Options(base=model, initial=initial if initial.is_dir() else None)


def _is_head(method: str, part: str | None) -> bool:
    """True for one of R-LoRA's heads; their mean represents the module."""
    return method == "rlora" and part != "mean"
