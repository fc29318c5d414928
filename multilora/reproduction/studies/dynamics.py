"""Measure how concentrated ΔW is over the steps of training, and the loss that it has reached."""

import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from analysis import CheckpointError, checkpoint, spectrum
from analysis.checkpoint import STEP
from analysis.formats import Options
from analysis.numerics.statistics import comparable
from analysis.results import Row, Spectra, grouped
from analysis.update import Update
from multilora import delta
from multilora.reproduction.trained import Trained
from multilora.tasks.scoring import score

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
    "validation_loss",
)


def table(runs: Iterable[Trained], base: Path, k: int, per_task: int) -> list[Row]:
    """Return dynamics.csv: one row per run and step, means over the modules that have moved.

    k: the number of values that effective_rank_k and gini_k are taken of, the same for all methods
        that are compared.
    per_task: validation items of each task. validation_loss is the loss per token of their right
        answers, in nats: the mean over families of the means over tasks.

    A run without checkpoint-N has no row, nor has a step at which nothing has moved. Raises
    CheckpointError if a checkpoint cannot be read.
    """
    analysed = [(run, spectra) for run in runs if (spectra := _spectra(run, base)).rows]
    model, tokenizer = delta.load_base(str(base)) if analysed else (None, None)
    rows = []
    for run, spectra in analysed:
        examples = run.held_out("validation", per_task)
        for (step,), of_step in sorted(grouped(spectra.rows, "step").items()):
            modules = [
                comparable(spectra.s[row["key"]], k) | {"frobenius_norm": row["frobenius_norm"]}
                for row in of_step
            ]
            row = {"method": run.method, "seed": run.seed, "step": step, "k": k}
            row["modules"] = len(modules)
            row |= {name: statistics.fmean(m[name] for m in modules) for name in modules[0]}
            updates = checkpoint.read(run.path / f"checkpoint-{step}", options=Options(base=base))
            with _tuned(model, updates):
                scores = score(model, tokenizer, examples, decode=False)
            row["validation_loss"] = scores["nll"]["mean"]
            rows.append({column: row[column] for column in COLUMNS})
    return rows


@contextmanager
def _tuned(model: Any, updates: Iterable[Update]) -> Iterator[None]:
    """Add updates to the weights of the model; restore its weights on exit."""
    before = {}
    try:
        for update in updates:
            weight = model.get_submodule(update.name).weight
            before[update.name] = weight.data
            dW = torch.from_numpy(update.dense())
            weight.data = (weight.data.double() + dW.double()).to(weight.dtype)
        yield
    finally:
        for name, W0 in before.items():
            model.get_submodule(name).weight.data = W0


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
