"""Show how the update changes over the checkpoints of a run.

PATH is a run directory with its checkpoint-N, or several of these. What lies beside them, the state
at the end of the run, is no step and is left out. Prints one line per step, with
medians over modules: the size of ΔW, how concentrated it is, and how much of its directions it
shares with the previous step and with the last one. left: output directions, right: input
directions.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis import CheckpointError, checkpoint, command, extras, similarity, spectrum, store
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.pairs import dominance
from analysis.pairs.meeting import Pairs
from analysis.process import start
from analysis.results import Dynamics, Row, Similarity, Spectra
from analysis.tables import dynamics as dynamics_table
from analysis.tables.dynamics import COLUMNS, PLACE, SHARED, SIZES

TABLE = "dynamics.csv"
Steps = dict[str, list[int]]  # run -> its steps, ascending


def analyse(
    paths: str | Path | Iterable[str | Path | Run],
    *,
    options: Options | None = None,
    modules: str | None = None,
    progress: bool = False,
) -> Dynamics:
    """Analyse every step of the runs at `paths`, module by module.

    Arguments as for `spectrum.analyse`. Raises CheckpointError if a path is not a step of a run, or
    if a run has only one step.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = options or Options()
    runs = checkpoint.runs(listed, options.revision, steps=True)
    return of_runs(runs, options=options, modules=modules, progress=progress)


def of_runs(
    runs: Sequence[Run], *, options: Options, modules: str | None = None, progress: bool = False
) -> Dynamics:
    """Analyse `runs`, which `checkpoint.runs` gave; otherwise as `analyse`."""
    steps = _steps(runs)
    spectra = spectrum.of_runs(runs, options=options, modules=modules, progress=progress)
    shared = similarity.of_runs(
        runs, options=options, modules=modules, pairs=_pairs(runs), parts=False, progress=progress
    )
    return Dynamics(
        rows=list(_rows(spectra, shared, steps)),
        s=spectra.s,
        verdicts=_verdicts(spectra, steps),
        skipped=_skipped(spectra, shared),
        other=spectra.other,
    )


# Steps of the analysis


def _steps(runs: Iterable[Run]) -> Steps:
    """The steps of each run; CheckpointError if a run is not a series of steps."""
    steps: Steps = {}
    paths: dict[str, Path] = {}
    for run in runs:
        if run.step is None:
            raise CheckpointError(
                f"{run.path}: is not a step of a run; expected a directory with checkpoint-N"
            )
        steps.setdefault(run.name, []).append(run.step)
        paths[run.name] = run.path
    for name, of_run in steps.items():
        if len(of_run) < 2:
            raise CheckpointError(
                f"{paths[name]}: is the only step of {name}; expected two or more"
            )
    return {name: sorted(of_run) for name, of_run in steps.items()}


def _pairs(runs: Iterable[Run]) -> Pairs:
    """Consecutive steps of each run, and each step with the last."""
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.step or 0):
        by_name.setdefault(run.name, []).append(run)
    pairs: Pairs = []
    for steps in by_name.values():
        pairs += itertools.pairwise(steps)
        pairs += [(step, steps[-1]) for step in steps[:-2]]
    return pairs


def _rows(spectra: Spectra, shared: Similarity, steps: Steps) -> Iterator[Row]:
    """Yield one row per step and module, keyed by COLUMNS."""
    pairs = {
        (row["run_a"], row["module"], row["part_a"], row["step_a"], row["step_b"]): row
        for row in shared.rows
    }
    for row in spectra.rows:
        of_run, step = steps[row["run"]], row["step"]
        at = of_run.index(step)
        others = {"previous": of_run[at - 1] if at else None, "last": of_run[-1]}
        line = {column: row[column] for column in (*PLACE, *SIZES)}
        for name, other in others.items():
            ends = () if other is None else sorted((other, step))
            # No pair: ΔW = 0 in one of them, or the step is the first or the last.
            pair = pairs.get((row["run"], row["module"], row["part"], *ends), {})
            line |= {f"{column}_{name}": pair.get(column) for column in SHARED}
        yield line


def _verdicts(spectra: Spectra, steps: Steps) -> dict[str, str]:
    """A sentence per run: whether its first or its last step is more dominated."""
    verdicts = {}
    for run, of_run in steps.items():
        change = dominance.pair_spectra(spectra, (run, of_run[0]), (run, of_run[-1]))
        verdicts[run] = dominance.judge(change).sentence
    return verdicts


def _skipped(spectra: Spectra, shared: Similarity) -> list[dict[str, str]]:
    """The updates that either analysis skipped, each once.

    ΔW = 0, as at the start of a run, has a spectrum and no directions: that is not a fault.
    """
    more = [
        skip for skip in shared.skipped if skip not in shared.zero and skip not in spectra.skipped
    ]
    return [*spectra.skipped, *more]


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: everything was analysed; 1: some modules were skipped; 2: nothing was analysed, or bad usage.
    """
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Analyse, report what was skipped, write the results; the exit status."""
    if not arguments.paths:
        if arguments.explain:
            command.show([], dynamics_table.EXPLANATION, arguments)
            return 0
        parser.error("the following arguments are required: PATH")
    runs = checkpoint.runs(arguments.paths, arguments.revision, steps=True)
    for path in checkpoint.ends(arguments.paths):
        command.warn(parser, f"{path}: its own state, at the end of the run, is not read as a step")
    dynamics = of_runs(
        runs,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        progress=True,
    )
    for skip in dynamics.skipped:
        command.warn(parser, skip["reason"])
    command.warn_of_remarks(parser, dynamics.other)
    if not dynamics.rows:
        if arguments.json:
            command.emit(store.strict_json({"rows": [], "skipped": dynamics.skipped}))
        return 2
    if arguments.figures:
        _draw(dynamics, Path(arguments.figures))
    _write(dynamics, command.paths_read(runs, arguments), arguments)
    return 1 if dynamics.skipped else 0


def _draw(dynamics: Dynamics, directory: Path) -> None:
    """Draw one figure per run."""
    # Importing matplotlib takes longer than most analyses.
    with extras.named():
        from analysis.figures.dynamics import over_steps

    runs = list(dict.fromkeys(row["run"] for row in dynamics.rows))
    for run in runs:
        stem = "dynamics" if len(runs) == 1 else f"dynamics-{run.replace('/', '-')}"
        store.save_figure(over_steps(dynamics, run), directory / stem)


def _write(dynamics: Dynamics, read: Sequence[Path | Run], arguments: argparse.Namespace) -> None:
    """Write the results to --out and to stdout; read: the inputs to record."""
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record("analysis.dynamics", read, command.recorded(arguments))
    notes: Row = {
        "summary": dynamics_table.summary(dynamics.rows),
        "verdicts": dynamics.verdicts,
        "skipped": dynamics.skipped,
        "other": dynamics.other,
    }
    if arguments.out:
        tables = {TABLE: store.csv_text(dynamics.rows, COLUMNS)}
        store.write(arguments.out, {store.SPECTRA: dynamics.s}, tables, {**made_by, **notes})
    if arguments.json:
        command.emit(store.strict_json({"record": made_by, "rows": dynamics.rows, **notes}))
    elif arguments.csv:
        rows = command.printable_rows(dynamics.rows)
        command.emit(store.csv_text(rows, COLUMNS).rstrip("\n"))
    else:
        blocks = dynamics_table.lines(dynamics.rows, dynamics.verdicts)
        command.show(blocks, dynamics_table.EXPLANATION, arguments)


EPILOG = """\
Examples:
  python -m analysis.dynamics runs/lora
  python -m analysis.dynamics runs/lora runs/multilora --figures figures/
  python -m analysis.dynamics runs/full/checkpoint-* --base base/ --out dw/

Exit status: 0 if every step was analysed; 1 if some modules were skipped; 2 if nothing was
analysed, or for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.dynamics"),
        description=__doc__,
        formatter_class=command.HelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a run directory, or its steps")
    parser.add_argument("--figures", metavar="DIR", help="draw dynamics.png and .pdf there")
    command.add_output_options(parser, f"{TABLE}, {store.SPECTRA}, {store.RECORD}")
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
