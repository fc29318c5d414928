"""Compare where the updates in several checkpoints move the weights of the modules they share.

ΔW = U diag(s) Vᵀ: the top i left vectors U[:, :i] span what an update writes, the right ones what
it reads. φ(i, j) = ‖U₁[:, :i]ᵀU₂[:, :j]‖²/min(i, j) is the part of the smaller span that lies in
the larger: 1, all of it; two random spans of R^d have max(i, j)/d. The two sides can disagree.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import checkpoint, command, names, results, similarity, store
from analysis.base import landing
from analysis.base import vectors as base_vectors
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.numerics import subspaces
from analysis.numerics.subspaces import phi
from analysis.pairs import meeting, merging, repeatability
from analysis.pairs.meeting import Pairs
from analysis.pairs.members import PAIR, Member, Members, over_modules, pair_columns
from analysis.results import Row, Similarity
from analysis.tables import base as base_table
from analysis.tables import merging as merging_table
from analysis.tables import similarity as similarity_table

__all__ = ["COLUMNS", "Similarity", "analyse", "main", "phi"]

COLUMNS = (*PAIR, *subspaces.COLUMNS)
TABLE, PHI = "similarity.csv", "phi.safetensors"
EPILOG = f"""\
{similarity_table.EXPLANATION}

With --merge:
{merging_table.EXPLANATION}

With --base:
{base_table.EXPLANATION}

Exit status: 0, every module was compared; 1, some were not (not in both, shapes that differ,
ΔW = 0); 2, nothing was compared, or bad usage."""
BASE_TABLE = "base.csv"
MERGE_TABLE, SUMS = "merging.csv", "sums.safetensors"


def analyse(
    paths: str | Path | Iterable[str | Path | Run],
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    choose: Callable[[Sequence[Run]], Pairs] | None = None,
    parts: bool = True,
    progress: bool = False,
) -> Similarity:
    """How alike the updates of the checkpoints at `paths` are, module by module.

    paths: two or more; a directory of checkpoint-N stands for all of them. One is enough where its
    modules have parts, which are compared with one another: MultiLoRA's modules, heads, tasks.
    base, options: what there is to say about reading. modules: a regular expression that a
    module's name must contain. rename: (pattern, replacement), applied to the names before they
    are matched. choose: the pairs of runs to compare, all of them by default; parts: whether those
    of one run are compared. What cannot be compared stands in `skipped`. Raises CheckpointError
    for a path that does not exist, ValueError for an expression that is none.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = options or Options(base=None if base is None else Path(base))
    runs = checkpoint.runs(listed)
    collected = meeting.collect(runs, options, names.expression(modules), rename)
    pairs = choose(runs) if choose else list(itertools.combinations(runs, 2))
    pairs = meeting.sharing(pairs, collected)
    found = Similarity(skipped=collected.skipped, zero=collected.zero, other=collected.other)
    job = partial(_compare, runs=runs if parts else [], pairs=pairs)
    for result in over_modules(job, collected, progress):
        found.rows.extend(result.rows)
        found.inside.extend(result.inside)
        found.phi.update(result.phi)
    return found


def _compare(members: Members, runs: Sequence[Run], pairs: Pairs) -> Similarity:
    """Of one module: all pairs of runs, and within each run all pairs of parts."""
    result = Similarity()
    for a, b in members.pairs(pairs):
        result.rows.append(_row(a, b, result.phi))
    for run in runs:
        for a, b in itertools.combinations(members.parts(run), 2):
            result.inside.append(_row(a, b, result.phi))
    return result


def _row(a: Member, b: Member, arrays: dict[str, np.ndarray]) -> Row:
    """The line of one pair; its grids and angles go to `arrays`."""
    numbers, of_pair = subspaces.pair_measures(a.found, b.found)
    line = pair_columns(a, b) | {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in numbers.items()
    }
    arrays.update({f"{line['key']}#{name}": array for name, array in of_pair.items()})
    return {column: line[column] for column in COLUMNS}


Table = tuple[Sequence[Row], Sequence[str]]


@dataclass(frozen=True, eq=False)
class _Report:
    """One way of looking: what is printed, what --json adds to the record, the files of --out.

    tables: file -> rows and columns, of which --csv prints the first; tensors: file -> arrays.
    """

    lines: list[str]
    result: dict[str, Any]
    tables: dict[str, Table]
    tensors: dict[str, dict[str, np.ndarray]]
    skipped: list[dict[str, str]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """--landing, --intruders, --cache."""
    group = parser.add_argument_group(
        "against the singular vectors of the base (with --base)",
        "Both need the full decomposition of every W0: half a minute and 134 MB on disk for one of"
        " 4096 × 4096, hours and 40 GB for a model of 7 billion parameters. An estimate is printed"
        " before it starts, and the result is kept, so that it is paid for once. --landing is there"
        " without asking where it takes less than a minute.",
    )
    group.add_argument(
        "--landing",
        action="store_true",
        help="the share of the update's energy by decile of W0's left and right singular vectors",
    )
    group.add_argument(
        "--intruders",
        action="store_true",
        help="how many of the top 10 left singular vectors of W0 + ΔW are new to W0",
    )
    group.add_argument(
        "--cache", metavar="DIR", help="where decompositions are kept (default: below ~/.cache)"
    )


def cache_directory(arguments: Any) -> Path:
    """What `add_options` was given for --cache, or the default."""
    return Path(arguments.cache) if arguments.cache else base_vectors.default_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, all compared; 1, some skipped; 2, nothing."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Compare, complain of what was skipped, write the rest; the exit status."""
    arguments.paths += [path for _, *group in arguments.group for path in group]
    if not arguments.paths:
        parser.error("the following arguments are required: PATH, or --group")
    if empty := [group[0] for group in arguments.group if len(group) < 2]:
        parser.error(f"--group {empty[0]}: expected a name and the paths of its seeds")
    if (arguments.landing or arguments.intruders) and (arguments.merge or not arguments.base):
        parser.error("--landing and --intruders are beside the base: expected --base, no --merge")
    if arguments.merge and (arguments.figures or arguments.group):
        parser.error("--merge looks at two checkpoints and draws nothing: no --figures, no --group")
    runs = checkpoint.runs(arguments.paths)
    report = _merged(arguments, runs) if arguments.merge else _compared(parser, arguments, runs)
    for skip in report.skipped:
        command.complain(parser, skip["reason"])
    command.complain_of_steps(parser, runs)
    if not any(rows for rows, _ in report.tables.values()):
        if not report.skipped:
            command.complain(parser, "one checkpoint without parts; expected two to compare")
        if arguments.json:
            _write(report, arguments, runs)
        return 2
    _write(report, arguments, runs)
    return 1 if report.skipped else 0


def _compared(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, runs: Sequence[Run]
) -> _Report:
    """The checkpoints with one another, their parts, their methods, and beside the base."""
    found = analyse(
        runs,
        options=command.options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        progress=True,
    )
    between = repeatability.between(
        found.rows, found.phi, repeatability.labels(runs, arguments.group)
    )
    rows = [*found.rows, *found.inside]
    lines = [*similarity_table.lines(found.rows, found.inside, between)]
    lines += similarity_table.EXPLANATION.splitlines() if rows else []
    result: dict[str, Any] = {"rows": found.rows, "inside": found.inside, "methods": between}
    result |= {"summary": similarity_table.summary(found.rows), "other": found.other}
    tables: dict[str, Table] = {TABLE: (rows, COLUMNS)}
    skipped = found.skipped
    if arguments.base:
        beside = _beside_base(parser, arguments, runs)
        # What cannot be read was noted before.
        skipped = [*skipped, *(skip for skip in beside.skipped if skip not in skipped)]
        lines += ["", *base_table.lines(beside.rows), *base_table.EXPLANATION.splitlines()]
        result["base"] = beside.rows
        tables[BASE_TABLE] = (beside.rows, landing.ROW_COLUMNS)
    if arguments.figures and found.rows:
        _draw(found, Path(arguments.figures))
    elif arguments.figures:
        command.complain(parser, "--figures: no two checkpoints to draw")
    return _Report(lines, result, tables, {PHI: found.phi}, skipped)


def _beside_base(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, runs: Sequence[Run]
) -> results.AgainstBase:
    return landing.analyse(
        runs,
        arguments.base,
        options=command.options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        landing=arguments.landing,
        intruders=arguments.intruders,
        cache=similarity.cache_directory(arguments),
        say=partial(command.complain, parser),
        progress=True,
    )


def _merged(arguments: argparse.Namespace, runs: Sequence[Run]) -> _Report:
    """Two checkpoints before they are merged."""
    found = merging.analyse(
        runs,
        options=command.options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        progress=True,
    )
    lines = [*merging_table.lines(found.rows), *merging_table.EXPLANATION.splitlines()]
    result: dict[str, Any] = {"merging": found.rows, "other": found.other}
    tables: dict[str, Table] = {MERGE_TABLE: (found.rows, merging.ROW_COLUMNS)}
    return _Report(lines, result, tables, {SUMS: found.s}, found.skipped)


def _draw(found: Similarity, directory: Path) -> None:
    """What two checkpoints share, or what each pair of several does."""
    from analysis.figures import similarity as similarity_figures  # matplotlib takes long to import
    from analysis.figures import spectrum as spectrum_figures

    two = len({(row["run_a"], row["step_a"], row["run_b"], row["step_b"]) for row in found.rows})
    draw = similarity_figures.shared_by_two if two == 1 else similarity_figures.shared_by_many
    spectrum_figures.save(draw(found), directory / "similarity")


def _write(report: _Report, arguments: argparse.Namespace, runs: Sequence[Run]) -> None:
    """The results, to --out and to stdout."""
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record(
            "analysis.similarity", command.inputs(arguments, runs), vars(arguments)
        )
    if arguments.out and any(rows for rows, _ in report.tables.values()):
        notes: Row = {"skipped": report.skipped}
        notes |= {key: report.result[key] for key in ("methods", "other") if key in report.result}
        tables = {file: store.csv_text(*table) for file, table in report.tables.items()}
        store.write(arguments.out, report.tensors, tables, {**made_by, **notes})
    if arguments.json:
        result = {"record": made_by, **report.result, "skipped": report.skipped}
        command.emit(store.strict_json(result))
    elif arguments.csv:
        rows, columns = next(table for table in report.tables.values() if table[0])
        command.emit(store.csv_text(command.printable_rows(rows), columns).rstrip("\n"))
    else:
        command.emit("\n".join(map(names.printable, report.lines)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.similarity",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    parser.add_argument(
        "--group",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME PATH",
        help="the runs of one method, seed by seed, as --group lora a/ b/; read from run.json where"
        " that is there",
    )
    parser.add_argument(
        "--map",
        nargs=2,
        action="append",
        default=[],
        metavar=("REGEX", "REPLACEMENT"),
        help="rename modules before they are matched by name",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of two checkpoints, what adding or averaging them keeps, cancels and needs",
    )
    parser.add_argument("--figures", metavar="DIR", help="draw similarity.png and .pdf there")
    files = f"{TABLE}, {PHI}, {store.RECORD} there ({BASE_TABLE}; {MERGE_TABLE}, {SUMS})"
    command.add_output(parser, files)
    command.add_reading(parser)
    similarity.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
