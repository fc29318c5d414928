"""Measure the finished runs of one base and keep their tables, so that a report needs only these.

A block of a reproduction is trained and measured on its own: the runs of one base, the grid, the
sweep. Its results are written to a directory as soon as it is finished: if a reproduction is
interrupted, at most one block is lost. `report` pools the blocks.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import UserError, store
from analysis.pairs import repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Row, Spectra
from multilora import delta, record
from multilora.reproduction import analysing, bands, experiments, measures, tables
from multilora.reproduction.presets import Run
from multilora.reproduction.studies import gradients, grids, overlap, parts, wild
from multilora.reproduction.studies.forgetting import HeldOut
from multilora.reproduction.trained import MAIN, Trained, check_comparable, trained
from multilora.tasks import scoring
from multilora.training.settings import defaults

Tables = Mapping[str, Sequence[Row]]


@dataclass(frozen=True, eq=False)
class Measured:
    """The results of a block.

    rows_of: rows of its tables, by name; spectra: those of the methods that figures show.
    """

    rows_of: Tables
    spectra: Spectra = field(default_factory=Spectra)


@dataclass(frozen=True, eq=False)
class Block:
    """A block of a reproduction.

    name: the name of its directory.
    runs: the runs that are trained for it.
    model: the directory of their base, or of one of them.
    measure: takes the finished runs and returns the results; None for a part of a block, which is
        trained before it is known what else belongs to the block.
    """

    name: str
    runs: Sequence[Run]
    model: Path
    measure: Callable[[Sequence[Trained]], Measured] | None


def of_base(
    runs: Sequence[Trained], model: Path, unit: int | None = None, thorough: int = 0
) -> Measured:
    """Measure the runs of one base.

    runs: finished runs of one base, each of another method or seed.
    model: the directory of the base.
    unit: the seed of the base, if the base is the unit of the statistics: the runs of other seeds
        repeat those of this seed, and all numbers between runs are means over the base. None if
        each seed is a unit.
    thorough: held-out items of each task for what takes minutes, cut updates, dynamics, rounding,
        and overlap layer by layer; 0 to leave it out.

    Raises UserError if the runs cannot be compared.
    """
    check_comparable(runs)
    own = [run for run in runs if unit in (None, run.seed)]
    repeats = [run for run in runs if unit not in (None, run.seed)]
    spectra, similarity = analysing.spectra_of(runs, model), analysing.similarity_of(runs, model)
    labels = {run.name: Label(run.method, run.seed) for run in runs}
    k = measures.common_k(runs, spectra)
    near = measures.nearness(similarity, labels, spectra, k)
    overlaps = overlap.module_pairs(own, nulls=overlap.between_seeds(runs))
    main = [run for run in own if run.method in MAIN]
    rows_of = {
        "methods": measures.of_runs(own, spectra),
        "repeats": measures.of_runs(repeats, spectra),
        "nearness": near if unit is None else measures.of_unit(near, unit),
        "similarity_by_method": repeatability.between(similarity.rows, similarity.phi, labels, k),
        "phi_grids": grids.table(similarity, labels, k),
        "overlap": overlap.by_run(overlaps),
    }
    if thorough:
        rows_of |= experiments.of_runs(main, model, k, thorough)
        rows_of["module_overlap"] = overlap.by_layer(overlaps)
    shown = bands.shown(run.method for run in own)
    return Measured(rows_of, _of([run for run in own if run.method in shown], spectra))


def of_language_model(runs: Sequence[Trained], model: Path, held_out: HeldOut) -> Measured:
    """Measure the runs of a pretrained base as `of_base` does, and each ΔW beside the base."""
    measured = of_base(runs, model, thorough=held_out.per_task)
    beside = experiments.beside_base(runs, model, held_out)
    return Measured({**measured.rows_of, **beside}, measured.spectra)


def of_families(runs: Sequence[Trained], model: Path, held_out: HeldOut, context: int) -> Measured:
    """Measure runs that were trained on one family of tasks, and the gradients of all tasks.

    context: tokens of a training example at most.
    """
    pulls = gradients.table(model, held_out.tasks, held_out.per_task, context)
    return Measured(
        {"forgetting": experiments.forgotten(runs, model, held_out), "gradients": pulls}
    )


def of_sizes(runs: Sequence[Trained], model: Path) -> Measured:
    """Measure runs of MultiLoRA with other numbers of modules and ranks; model: their base.

    sizes.csv has the rows of methods.csv with n and r in front; all of one run.
    """
    own = [run for run in runs if run.plain_method == "multilora"]
    rows = measures.of_runs(own, analysing.spectra_of(own, model))
    sizes = [{name: run.facts["settings"][name] for name in ("n", "r")} for run in own]
    for size, run in zip(sizes, own, strict=True):
        size["r"] = size["r"] or defaults(run.plain_method)["r"]
    return Measured({"sizes": [size | row for size, row in zip(sizes, rows, strict=True)]})


def of_parts(runs: Sequence[Trained]) -> Measured:
    """Measure runs of methods that have several updates for each module."""
    return Measured({"parts": parts.table(runs)})


def of_sweep(runs: Sequence[Trained], model: Path, by: str, least: int) -> Measured:
    """Measure the runs of the sweeps of learning rates; `model` is their base.

    by, least: as for `experiments.sweep`.
    """
    rows = measures.of_runs(runs, analysing.spectra_of(runs, model))
    return Measured({"sweep": experiments.sweep(rows, by, least)})


def of_grid(
    runs: Sequence[Trained], points: Sequence[tuple[str, float, Run]], model: Path
) -> Measured:
    """Measure the finished runs of the grid; points: as `presets.grid` plans them.

    A run belongs to every point at which the setting changes nothing for its method.
    """
    run_at = {run.path: run for run in runs}
    finished = [(s, value, run_at[run.out]) for s, value, run in points if run.out in run_at]
    return Measured({"grid": experiments.grid(finished, model)})


def of_adapters(runs: Sequence[Trained], directory: Path) -> Measured:
    """Measure the adapters of others below `directory`; those left out are listed on stderr."""
    rows, left_out = wild.table(directory)
    for line in left_out:
        print(*line.values(), sep=": ", file=sys.stderr)
    return Measured({"wild": rows})


def write(block: Block, settings: Mapping[str, Any], out: Path) -> bool:
    """Measure the finished runs of a block and write its tables to out/NAME; False if none is.

    False for a part of a block too.

    settings: those of `reproduce`, for the record.
    """
    if block.measure is None:
        return False
    runs = [trained(run.out) for run in block.runs if run.is_done()]
    if block.runs and not runs:
        return False
    machines = _machines(runs)  # before minutes of measuring
    measured = block.measure(runs)
    texts = tables.as_texts(measured.rows_of)
    made_by = store.record("multilora.reproduce", [run.path for run in runs], dict(settings)) | {
        "seed": sorted({run.seed for run in runs}),
        "base": record.sha256_of_files(block.model),
        "base_scores": _base_scores(runs, block.model),
        "runs": {name: run.facts["fingerprint"] for name, run in _named(runs).items()},
        "methods": {name: run.method for name, run in _named(runs).items()},
        "environment": record.environment(),
        "trained_on": machines,
        tables.HASHES: tables.sha256_of(texts),
    }
    store.save(out / block.name, measured.spectra, made_by, texts)
    return True


def _named(runs: Sequence[Trained]) -> dict[str, Trained]:
    """Return name → run; runs of the same name, as in a grid, get their directories in front."""
    times = Counter(run.name for run in runs)
    return {
        run.name if times[run.name] == 1 else f"{run.path.parent.name}/{run.name}": run
        for run in runs
    }


def _of(runs: Sequence[Trained], spectra: Spectra) -> Spectra:
    """Return the spectra of some of the runs."""
    names = {run.name for run in runs}
    rows = [row for row in spectra.rows if row["run"] in names]
    return Spectra(rows, {row["key"]: spectra.s[row["key"]] for row in rows})


def _base_scores(runs: Sequence[Trained], model: Path) -> dict[str, Any]:
    """Score the base on the items that the runs were scored on; {} without runs."""
    if not runs:
        return {}
    base, tokenizer = delta.load_base(str(model))
    items = runs[0].held_out("test", runs[0].facts["settings"]["per_task_scored"])
    return scoring.score(base, tokenizer, items, runs[0].decodes)


def _machines(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """Return the machines that the runs were trained on, each once.

    Raises UserError if there are several: another processor gives other numbers, so that runs of
    one base must not be pooled.
    """
    machines = []
    for run in runs:
        machine = {name: run.facts["environment"].get(name) for name in record.MACHINE}
        if machine not in machines:
            machines.append(machine)
    if len(machines) > 1:
        raise UserError(
            f"{runs[0].path.parent}: runs of one block were trained on different machines:"
            f" {'; '.join(map(str, machines))}: expected one; remove those of one machine"
        )
    return machines
