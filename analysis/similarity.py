"""Compare where the updates in several checkpoints move the weights of the modules they share.

ΔW = U diag(s) Vᵀ: the top i left vectors U[:, :i] span what an update writes, the right ones what
it reads. φ(i, j) = ‖U₁[:, :i]ᵀU₂[:, :j]‖²/min(i, j) is the part of the smaller span that lies in
the larger: 1, all of it; two random spans of R^d have max(i, j)/d. The two sides can disagree.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import checkpoint, command, methods, pairing, similarity_table, store, subspaces
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.members import PAIR, Member, Members, over_modules, pair_columns
from analysis.pairing import Pairs
from analysis.store import Row
from analysis.subspaces import phi

__all__ = ["COLUMNS", "Similarity", "analyse", "main", "phi"]

COLUMNS = (*PAIR, *subspaces.COLUMNS)
TABLE, PHI = "similarity.csv", "phi.safetensors"


@dataclass(frozen=True, eq=False)
class Similarity:
    """What a comparison found.

    rows: one a pair of updates, keyed by COLUMNS, None where a number is undefined; phi: key +
    "#left" and "#right" -> the grid φ(i, j), (k, k), up to k = 128, nan where it is undetermined,
    and "#left_angles", "#right_angles" -> principal angles of the top k, radians. inside: the rows
    of two parts of one module in one run. skipped: {run, module, reason}; other: {run, name, what}.
    """

    rows: list[Row] = field(default_factory=list)
    inside: list[Row] = field(default_factory=list)
    phi: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)


def analyse(
    paths: str | Path | Iterable[str | Path],
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[pairing.Rename] = (),
    choose: Callable[[Sequence[Run]], Pairs] | None = None,
    progress: bool = False,
) -> Similarity:
    """How alike the updates of the checkpoints at `paths` are, module by module.

    paths: two or more; a directory of checkpoint-N stands for all of them. One is enough where its
    modules have parts, which are compared with one another: MultiLoRA's modules, heads, tasks.
    base, options: what there is to say about reading. modules: a regular expression that a
    module's name must contain. rename: (pattern, replacement), applied to the names before they
    are matched. choose: the pairs of runs to compare, all of them by default. What cannot be
    compared stands in `skipped`. Raises CheckpointError for a path that does not exist,
    ValueError for an expression that is none.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = options or Options(base=None if base is None else Path(base))
    runs = checkpoint.runs(listed)
    collected = pairing.collect(runs, options, command.expression(modules), rename)
    pairs = choose(runs) if choose else list(itertools.combinations(runs, 2))
    pairs = pairing.sharing(pairs, collected)
    found = Similarity(skipped=collected.skipped, other=collected.other)
    job = partial(_compare, runs=runs, pairs=pairs)
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
    numbers, of_pair = subspaces.compare(a.found, b.found)
    line = pair_columns(a, b) | {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in numbers.items()
    }
    arrays.update({f"{line['key']}#{name}": array for name, array in of_pair.items()})
    return {column: line[column] for column in COLUMNS}


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
    found = analyse(
        arguments.paths,
        options=command.options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        progress=True,
    )
    for skip in found.skipped:
        command.complain(parser, skip["reason"])
    if not found.rows and not found.inside:
        if not found.skipped:
            command.complain(parser, "one checkpoint without parts; expected two to compare")
        return 2
    labels = methods.labels(checkpoint.runs(arguments.paths), arguments.group)
    between = methods.between(found.rows, found.phi, labels)
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record("analysis.similarity", command.read(arguments), vars(arguments))
    notes = {"methods": between, "skipped": found.skipped, "other": found.other}
    rows = [*found.rows, *found.inside]
    if arguments.out:
        tables = {TABLE: store.csv_text(rows, COLUMNS)}
        store.write(arguments.out, {PHI: found.phi}, tables, {**made_by, **notes})
    if arguments.json:
        summary = similarity_table.summary(rows)
        result = {"record": made_by, "rows": found.rows, "inside": found.inside}
        command.emit(store.strict_json({**result, "summary": summary, **notes}))
    elif arguments.csv:
        command.emit(store.csv_text(command.printable_rows(rows), COLUMNS).rstrip("\n"))
    else:
        lines = similarity_table.lines(found.rows, found.inside, between)
        command.emit("\n".join([*map(command.printable, lines), similarity_table.EXPLANATION]))
    return 1 if found.skipped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.similarity",
        description=__doc__,
        epilog=similarity_table.EXPLANATION
        + " Exit status: 0, every module was compared; 1, some were not (not in both, shapes that"
        " differ, ΔW = 0); 2, nothing was compared, or bad usage.",
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
    command.add_output(parser, f"{TABLE}, {PHI}, {store.RECORD} there")
    command.add_reading(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
