"""Show how the update moves over the checkpoints of one run.

PATH is a run directory with its checkpoint-N, or several of these. A line a step, medians over
modules: the size of ΔW, how concentrated it is, and how much of its directions it shares with the
step before and with the last one. left: output directions, right: input directions.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError, checkpoint, command, compare, similarity, spectrum, store
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.pairing import Pairs
from analysis.statistics import median
from analysis.store import Row
from analysis.subspaces import SIDES
from analysis.table import aligned, cell, grouped

PLACE = ("run", "step", "module", "layer", "kind", "part")
SIZES = (
    *("spectral_norm", "frobenius_norm", "top_share_1", "top_share_4", "top_share_16"),
    *("effective_rank", "democracy"),
)
SHARED = (
    *("left_phi_1", "right_phi_1", "left_phi_k", "right_phi_k"),
    *("left_chance_k", "right_chance_k", "left_above_chance", "right_above_chance", "cosine"),
)
OTHERS = ("previous", "last")
COLUMNS = (
    *PLACE,
    *SIZES,
    *(f"{column}_{other}" for other in OTHERS for column in SHARED),
)
TABLE = "dynamics.csv"
EXPLANATION = """\
‖ΔW‖_F, top-1, eff. rank, democracy: as analysis.spectrum prints them. φ(1), φ(k): how much of the
top direction, of the top k, lies in those of the other step, from 0 to 1, with k the smaller rank;
cosine: of the two ΔW as vectors. The A of a LoRA starts random and moves little, so that its input
side looks settled early. Numbers are medians over modules. Directions are those of the last step
from where φ(k) with it stays at 0.9 of what it can be above chance."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """What the steps of a run, or of several, are like.

    rows: one a step and module, keyed by COLUMNS, None where a number is undefined; s: singular
    values by run@step/module[#part]; verdicts: run -> which of its first and last step is the more
    dominated, in words; skipped: {run, module, reason}; other: {run, name, what}.
    """

    rows: list[Row]
    s: dict[str, np.ndarray]
    verdicts: dict[str, str]
    skipped: list[dict[str, str]]
    other: list[dict[str, str]]


def analyse(
    paths: str | Path | Iterable[str | Path],
    *,
    options: Options | None = None,
    modules: str | None = None,
    progress: bool = False,
) -> Dynamics:
    """Every step of the runs at `paths`, module by module.

    Arguments as for `spectrum.analyse`. Raises CheckpointError where a path is no step of a run,
    or a run has only one.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    by_run = _steps(checkpoint.runs(listed))
    spectra = spectrum.analyse(listed, options=options, modules=modules, progress=progress)
    alike = similarity.analyse(
        listed, options=options, modules=modules, choose=_chosen, parts=False, progress=progress
    )
    pairs = {
        (row["run_a"], row["module"], row["part_a"], row["step_a"], row["step_b"]): row
        for row in alike.rows
    }
    rows = []
    for row in spectra.rows:
        steps = by_run[row["run"]]
        at = steps.index(row["step"])
        line = {column: row[column] for column in (*PLACE, *SIZES)}
        for other, step in (("previous", steps[at - 1] if at else None), ("last", steps[-1])):
            pair = (row["run"], row["module"], row["part"])
            ends = sorted((step, row["step"])) if step is not None else ()
            found = pairs.get((*pair, *ends), {})
            line |= {f"{column}_{other}": found.get(column) for column in SHARED}
        rows.append(line)
    # ΔW = 0, as at the start of a run, has a spectrum and no directions: that is no fault.
    faults = [skip for skip in alike.skipped if skip not in alike.zero]
    skipped = [*spectra.skipped, *(skip for skip in faults if skip not in spectra.skipped)]
    verdicts = {}
    for run, steps in by_run.items():
        change = compare.compare(spectra, (run, steps[0]), (run, steps[-1]))
        verdicts[run] = compare.judge(change).sentence
    return Dynamics(rows, spectra.s, verdicts, skipped, spectra.other)


def _steps(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Run -> its steps, ascending; CheckpointError for what is no series of steps."""
    steps: dict[str, list[int]] = {}
    for run in runs:
        if run.step is None:
            raise CheckpointError(
                f"{run.path}: is no step of a run; expected checkpoint-N below it"
            )
        steps.setdefault(run.name, []).append(run.step)
    for run in runs:
        if len(steps[run.name]) < 2:
            raise CheckpointError(f"{run.path}: is the only step; expected two or more of a run")
    return {name: sorted(of_run) for name, of_run in steps.items()}


def _chosen(runs: Sequence[Run]) -> Pairs:
    """Consecutive steps of each run, and each step with the last."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.step or 0):
        by_name.setdefault(run.name, []).append(run)
    pairs: Pairs = []
    for steps in by_name.values():
        pairs += itertools.pairwise(steps)
        pairs += [(step, steps[-1]) for step in steps[:-2]]
    return pairs


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line a run and step: medians over modules where they are defined."""
    numbers = COLUMNS[len(PLACE) :]
    return [
        {"run": run, "step": step, "modules": len(of_step)}
        | {name: median(row[name] for row in of_step) for name in numbers}
        for (run, step), of_step in sorted(grouped(rows, "run", "step").items())
    ]


# Heading, column of the summary, format.
PRINTED = (
    ("‖ΔW‖₂", "spectral_norm", ".3g"),
    ("‖ΔW‖_F", "frobenius_norm", ".3g"),
    ("top-1", "top_share_1", ".3f"),
    ("top-4", "top_share_4", ".3f"),
    ("eff. rank", "effective_rank", ".2f"),
    ("democracy", "democracy", ".3f"),
)
SHARED_HEADINGS = (
    *("step", "side", "with the one before: φ(1)", "φ(k)", "cosine"),
    *("with the last: φ(1)", "φ(k)", "cosine"),
)
SETTLED = 0.9  # of what φ(k) with the last step can be above chance: it has found its place


def lines(rows: Sequence[Row], verdicts: Mapping[str, str]) -> Iterator[str]:
    """What a person reads: two tables a run, and below them what they say in words."""
    for (run,), of_run in grouped(summary(rows), "run").items():
        yield f"{run}, {of_run[0]['modules']} modules"
        sizes = [["step", *(heading for heading, _, _ in PRINTED)]]
        for line in of_run:
            sizes.append([str(line["step"]), *(cell(line[c], form) for _, c, form in PRINTED)])
        yield from aligned(sizes)
        yield ""
        shared = [list(SHARED_HEADINGS)]
        for line in of_run:
            for side in SIDES:
                numbers = [
                    line[f"{column}_{other}"]
                    for other in OTHERS
                    for column in (f"{side}_phi_1", f"{side}_phi_k", "cosine")
                ]
                cells = [cell(number, ".3f") for number in numbers]
                if side != SIDES[0]:
                    cells[2] = cells[5] = ""
                shared.append([str(line["step"]) if side == SIDES[0] else "", side, *cells])
        yield from aligned(shared)
        yield ""
        yield from words(of_run)
        yield verdicts[run]
        yield ""


def words(steps: Sequence[Row]) -> Iterator[str]:
    """What the summary of one run says: how ΔW grew, and when its directions settled."""
    first, last = steps[0], steps[-1]
    sizes = first["frobenius_norm"], last["frobenius_norm"]
    if sizes[0]:
        yield (
            f"From step {first['step']} to {last['step']} ‖ΔW‖_F goes from {sizes[0]:.3g} to"
            f" {sizes[1]:.3g}, {sizes[1] / sizes[0]:.2g} times."
        )
    for side, what in (("left", "output"), ("right", "input")):
        settled = _settled(steps, side)
        if settled is not None:
            when = f"are those of the last step from step {settled} on"
        elif any(_excess(step, side) is not None for step in steps[:-1]):
            when = "move until the end"
        else:
            continue
        yield f"The top k {what} directions ({side}) {when}."


def _settled(steps: Sequence[Row], side: str) -> int | None:
    """The first step from which on the directions are those of the last; None where none is."""
    settled = None
    for step in reversed(steps[:-1]):
        excess = _excess(step, side)
        if excess is None or excess < SETTLED:
            break
        settled = step["step"]
    return settled


def _excess(step: Row, side: str) -> float | None:
    """φ(k) with the last step, as far above chance as it can be: from 0, by chance, to 1.

    None where it is undefined, or where random directions would share half of it.
    """
    shared, chance = step[f"{side}_phi_k_last"], step[f"{side}_chance_k_last"]
    if shared is None or chance >= 0.5:
        return None
    return float((shared - chance) / (1 - chance))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, all analysed; 1, some skipped; 2, nothing."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    options = command.options(arguments)
    found = analyse(arguments.paths, options=options, modules=arguments.modules, progress=True)
    for skip in found.skipped:
        command.complain(parser, skip["reason"])
    if not found.rows:
        if arguments.json:
            command.emit(store.strict_json({"rows": [], "skipped": found.skipped}))
        return 2
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record("analysis.dynamics", command.read(arguments), vars(arguments))
    if arguments.figures:
        _draw(found, Path(arguments.figures))
    notes: Row = {"summary": summary(found.rows), "verdicts": found.verdicts}
    notes |= {"skipped": found.skipped, "other": found.other}
    if arguments.out:
        tables = {TABLE: store.csv_text(found.rows, COLUMNS)}
        store.write(arguments.out, {store.SPECTRA: found.s}, tables, {**made_by, **notes})
    if arguments.json:
        command.emit(store.strict_json({"record": made_by, "rows": found.rows, **notes}))
    elif arguments.csv:
        rows = command.printable_rows(found.rows)
        command.emit(store.csv_text(rows, COLUMNS).rstrip("\n"))
    else:
        command.emit(
            "\n".join([*map(command.printable, lines(found.rows, found.verdicts)), EXPLANATION])
        )
    return 1 if found.skipped else 0


def _draw(found: Dynamics, directory: Path) -> None:
    """A figure a run."""
    from analysis import figures, similarity_figures  # matplotlib takes long to import

    names = list(dict.fromkeys(row["run"] for row in found.rows))
    for name in names:
        stem = "dynamics" if len(names) == 1 else f"dynamics-{name.replace('/', '-')}"
        figures.save(similarity_figures.over_steps(found, name), directory / stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.dynamics",
        description=__doc__,
        epilog=EXPLANATION
        + " Exit status: 0, every step was analysed; 1, some modules were skipped; 2, nothing was"
        " analysed, or bad usage.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run directory, or its steps")
    parser.add_argument("--figures", metavar="DIR", help="draw dynamics.png and .pdf there")
    command.add_output(parser, f"{TABLE}, {store.SPECTRA}, {store.RECORD} there")
    command.add_reading(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
