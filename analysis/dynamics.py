"""Show how the update moves over the checkpoints of one run.

PATH is a run directory with its checkpoint-N, or several of these. A line a step, medians over
modules: the size of ΔW, how concentrated it is, and how much of its directions it shares with the
step before and with the last one. left: output directions, right: input directions.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis import CheckpointError, checkpoint, command, names, similarity, spectrum, store
from analysis.checkpoint import Run
from analysis.figures import dynamics as dynamics_figures
from analysis.formats import Options
from analysis.pairs import dominance
from analysis.pairs.meeting import Pairs
from analysis.results import Dynamics, Row
from analysis.tables import dynamics as dynamics_table
from analysis.tables.dynamics import COLUMNS, PLACE, SHARED, SIZES

TABLE = "dynamics.csv"


def analyse(
    paths: str | Path | Iterable[str | Path | Run],
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
    runs = checkpoint.runs(listed)
    by_run = _steps(runs)
    spectra = spectrum.analyse(runs, options=options, modules=modules, progress=progress)
    alike = similarity.analyse(
        runs, options=options, modules=modules, choose=_chosen, parts=False, progress=progress
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
        change = dominance.pair_spectra(spectra, (run, steps[0]), (run, steps[-1]))
        verdicts[run] = dominance.judge(change).sentence
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, all analysed; 1, some skipped; 2, nothing."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    options = command.options(arguments)
    runs = checkpoint.runs(arguments.paths)
    found = analyse(runs, options=options, modules=arguments.modules, progress=True)
    for skip in found.skipped:
        command.complain(parser, skip["reason"])
    if not found.rows:
        if arguments.json:
            command.emit(store.strict_json({"rows": [], "skipped": found.skipped}))
        return 2
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record(
            "analysis.dynamics", command.inputs(arguments, runs), vars(arguments)
        )
    if arguments.figures:
        _draw(found, Path(arguments.figures))
    notes: Row = {"summary": dynamics_table.summary(found.rows), "verdicts": found.verdicts}
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
            "\n".join(
                [
                    *map(names.printable, dynamics_table.lines(found.rows, found.verdicts)),
                    dynamics_table.EXPLANATION,
                ]
            )
        )
    return 1 if found.skipped else 0


def _draw(found: Dynamics, directory: Path) -> None:
    """A figure a run."""
    from analysis.figures import spectrum as spectrum_figures  # matplotlib takes long to import

    names = list(dict.fromkeys(row["run"] for row in found.rows))
    for name in names:
        stem = "dynamics" if len(names) == 1 else f"dynamics-{name.replace('/', '-')}"
        spectrum_figures.save(dynamics_figures.over_steps(found, name), directory / stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.dynamics",
        description=__doc__,
        epilog=dynamics_table.EXPLANATION
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
