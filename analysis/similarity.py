"""Compare the directions in which several checkpoints change the modules that they share.

ΔW = U diag(s) Vᵀ: the top i left vectors U[:, :i] span what an update writes, the right ones what
it reads. φ(i, j) = ‖U₁[:, :i]ᵀU₂[:, :j]‖²/min(i, j) is the share of the smaller subspace that lies
in the larger: 1 if all of it does; max(i, j)/d for random subspaces of R^d. The two sides can
disagree.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import checkpoint, command, extras, names, spectrum, store
from analysis.base import landing
from analysis.base import vectors as base_vectors
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.merging import report as merging_report
from analysis.names import kind_of, layer_of
from analysis.numerics import subspaces
from analysis.numerics.subspaces import phi
from analysis.pairs import meeting, repeatability
from analysis.pairs.meeting import Pairs
from analysis.pairs.members import (
    PAIR,
    Finished,
    Member,
    Members,
    Pieces,
    over_modules,
    pair_columns,
)
from analysis.process import start
from analysis.results import RUNS, AgainstBase, Row, Similarity, Spectra
from analysis.tables import base as base_table
from analysis.tables import merging as merging_table
from analysis.tables import similarity as similarity_table
from analysis.tables.text import Block
from analysis.work.cluster import Cluster
from analysis.work.kept import Kept, Piece

__all__ = ["COLUMNS", "Similarity", "analyse", "main", "of_runs", "phi"]

COLUMNS = (*PAIR, *subspaces.COLUMNS)
TABLE, PHI = "similarity.csv", "phi.safetensors"
BASE_TABLE = "base.csv"
LEGENDS = (
    similarity_table.EXPLANATION,
    f"With --merge:\n\n{merging_table.EXPLANATION}",
    f"With --base:\n\n{base_table.EXPLANATION}",
)


def analyse(
    paths: str | Path | Iterable[str | Path | Run],
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    parts: bool = True,
    progress: bool = False,
) -> Similarity:
    """Compare the updates of the checkpoints at `paths` with one another, module by module.

    paths: two or more; a directory of checkpoint-N stands for all of its checkpoints. One is enough
        if its modules have parts (modules of MultiLoRA, heads, tasks): they are compared.
    base: the model that was fine-tuned; short for `options.base`.
    options: what the files of the checkpoints do not say.
    modules: regular expression that is searched for in the names of modules.
    rename: (pattern, replacement) pairs, applied to the names before modules are matched.
    parts: whether to compare the parts of each run with one another.
    progress: show a bar on stderr, if that is a terminal, if this takes over two seconds.

    What cannot be compared is listed in `skipped`. Raises CheckpointError if a path does not exist,
    UserError if `base` and `options.base` differ or a pattern is not a regular expression.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = checkpoint.with_base(options, base)
    return of_runs(
        checkpoint.runs(listed, options.revision),
        options=options,
        modules=modules,
        rename=rename,
        parts=parts,
        progress=progress,
    )


def of_runs(
    runs: Sequence[Run],
    *,
    options: Options,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    pairs: Pairs | None = None,
    parts: bool = True,
    progress: bool = False,
    kept: Kept | None = None,
    cluster: Cluster | None = None,
) -> Similarity:
    """Compare the updates of `runs`, which `checkpoint.runs` gave.

    pairs: which of the runs to compare; every two of them by default.
    kept, cluster: the finished comparisons of dense modules, and the processes that make them.
    The rest as for `analyse`.
    """
    collected = meeting.collect(runs, options, names.expression(modules), rename)
    chosen = list(itertools.combinations(runs, 2)) if pairs is None else pairs
    shared = meeting.sharing(chosen, collected)
    meeting.refuse_many(shared, runs if parts else [], collected)
    bare = {run: replace(run, source=None) for run in runs}  # which processes need not be told
    compare = partial(
        _compare,
        runs=list(bare.values()) if parts else [],
        pairs=[(bare[a], bare[b]) for a, b in shared],
    )
    pieces = Pieces(_piece, _finished, kept or Kept(None, dict), cluster)
    keep = pieces if kept or cluster else None
    of_modules = list(over_modules(compare, collected, progress, keep))
    return Similarity(
        rows=[row for of_module in of_modules for row in of_module.rows],
        inside=[row for of_module in of_modules for row in of_module.inside],
        phi={key: array for of_module in of_modules for key, array in of_module.phi.items()},
        skipped=collected.skipped,
        zero=collected.zero,
        other=collected.other,
    )


def for_page(
    spectra: Spectra,
    runs: Sequence[Run],
    known: Similarity | None = None,
    *,
    options: Options,
    modules: str | None = None,
    progress: bool = False,
) -> Similarity | None:
    """Return `known` with those pairs of checkpoints that a page shows and `known` lacks.

    spectra: of `runs`; None without a pair. The rest as for `analyse`.
    """
    from analysis.pages.data import phi_pairs

    known = known or Similarity()
    done = {frozenset(_ends(row)) for row in known.rows}
    by_name = {(run.name, run.step): run for run in runs}
    pairs = [(by_name[a], by_name[b]) for a, b in phi_pairs(spectra.rows) if {a, b} not in done]
    if not pairs:
        return known if done else None
    more = of_runs(
        runs, options=options, modules=modules, pairs=pairs, parts=False, progress=progress
    )
    return Similarity(
        rows=[*known.rows, *more.rows],
        inside=known.inside,
        phi={**known.phi, **more.phi},
        skipped=[*known.skipped, *(skip for skip in more.skipped if skip not in known.skipped)],
        zero=[*known.zero, *(skip for skip in more.zero if skip not in known.zero)],
        other=known.other or more.other,
    )


def _ends(row: Row) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
    """The two checkpoints (run, step) of a row."""
    return (row["run_a"], row["step_a"]), (row["run_b"], row["step_b"])


# Steps of the analysis


def _compare(members: Members, runs: Sequence[Run], pairs: Pairs) -> Similarity:
    """Compare the updates of one module: those of `pairs`, and the parts of each of `runs`."""
    between = [_row(a, b) for a, b in members.pairs(pairs)]
    inside = [_row(a, b) for run in runs for a, b in itertools.combinations(members.parts(run), 2)]
    return Similarity(
        rows=[row for row, _ in between],
        inside=[row for row, _ in inside],
        phi={key: array for _, arrays in [*between, *inside] for key, array in arrays.items()},
    )


def _row(a: Member, b: Member) -> tuple[Row, dict[str, np.ndarray]]:
    """The row of one pair of updates, and its φ grids and angles by their keys in `phi`."""
    numbers, arrays = subspaces.pair_measures(a.decomposition, b.decomposition)
    line = pair_columns(a, b) | {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in numbers.items()
    }
    row = {column: line[column] for column in COLUMNS}
    return row, {f"{row['key']}#{name}": array for name, array in arrays.items()}


def _piece(finished: Finished[Similarity]) -> Piece:
    """Return the comparisons of a module as a piece that can be kept."""
    result = finished.result
    facts = {
        "rows": result.rows,
        "inside": result.inside,
        "phi": list(result.phi),  # a file has them in another order
        "skipped": finished.skipped,
        "zero": finished.zero,
    }
    return Piece(result.phi, facts)


def _finished(piece: Piece) -> Finished[Similarity]:
    """Return the comparisons that `_piece` made a piece of, bit for bit."""
    facts = piece.facts
    phi = {key: piece.arrays[key] for key in facts["phi"]}
    result = Similarity(facts["rows"], facts["inside"], phi)
    return Finished(result, facts["skipped"], facts["zero"])


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: everything was compared; 1: some modules were skipped; 2: nothing was compared, or bad usage.
    """
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Compare, report what was skipped, write the results; the exit status."""
    if arguments.explain and not (arguments.paths or arguments.group):
        command.show([], "\n\n".join(LEGENDS), arguments)
        return 0
    arguments.paths += [path for _, *group in arguments.group for path in group]
    _check_usage(parser, arguments)
    if arguments.page:
        command.check_page(Path(arguments.page), "--page", force=arguments.force)
    runs = checkpoint.runs(arguments.paths, arguments.revision)
    options = command.reading_options(arguments)
    settings = {"options": options, "modules": arguments.modules, "map": arguments.map}
    read = partial(command.paths_read, runs, arguments)
    kept = command.kept(parser, "analysis.similarity", read, settings, arguments)
    if arguments.merge:
        report = _merged(runs, arguments)
    else:
        with command.cluster(parser, arguments) as cluster:
            report = _compared(parser, runs, arguments, kept, cluster)
    for skip in report.skipped:
        command.warn(parser, skip["reason"])
    command.warn_of_remarks(parser, report.json["other"])
    command.warn_of_unread_steps(parser, runs)
    if not report.has_rows and not report.skipped:
        command.warn(parser, "one checkpoint without parts; expected two to compare")
    if report.has_rows or arguments.json:
        _write(report, read(), arguments)
        if kept and report.has_rows:
            kept.finish()
    if not report.has_rows:
        return 2
    complete = not arguments.page or _write_page(parser, report, runs, arguments)
    return 1 if report.skipped or not complete else 0


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with status 2 if required arguments are missing or options exclude one another."""
    if not arguments.paths:
        parser.error("the following arguments are required: PATH, or --group")
    for name, *group in arguments.group:
        if not group:
            parser.error(f"--group {name}: expected a name and the paths of its seeds")
    if arguments.landing or arguments.intruders:
        if not arguments.base:
            parser.error("--landing and --intruders compare with the base; expected --base too")
        if arguments.merge:
            parser.error("--landing and --intruders cannot be combined with --merge")
    if arguments.merge and (arguments.workers or arguments.scheduler):
        parser.error("--merge compares here; expected neither --workers nor --scheduler")
    if arguments.merge and (arguments.figures or arguments.group):
        parser.error("--merge draws no figure; expected neither --figures nor --group")
    if arguments.merge and arguments.page:
        parser.error("--page shows no merge; expected one of --merge and --page")


Table = tuple[Sequence[Row], Sequence[str]]  # rows and columns


@dataclass(frozen=True, eq=False)
class _Report:
    """Results in the forms in which they are written.

    blocks: the printed text; legends: what its columns mean.
    json: what --json prints besides the record and what was skipped.
    tables: file -> rows and columns; --csv prints the first one that has rows.
    tensors: file -> arrays.
    skipped: {run, module, reason}.
    similarity, against: what a page shows of them; None if not computed.
    """

    blocks: list[Block]
    legends: list[str]
    json: dict[str, Any]
    tables: dict[str, Table]
    tensors: dict[str, dict[str, np.ndarray]]
    skipped: list[dict[str, str]]
    similarity: Similarity | None = None
    against: AgainstBase | None = None

    @property
    def has_rows(self) -> bool:
        """True if any of the tables has a row."""
        return any(rows for rows, _ in self.tables.values())


def _compared(
    parser: argparse.ArgumentParser,
    runs: Sequence[Run],
    arguments: argparse.Namespace,
    kept: Kept | None,
    cluster: Cluster | None,
) -> _Report:
    """Compare the checkpoints, their parts and methods and, with --base, each with its base."""
    similarity = of_runs(
        runs,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        progress=True,
        kept=kept,
        cluster=cluster,
    )
    if arguments.figures:
        _draw(parser, similarity, Path(arguments.figures))
    report = _of_similarity(similarity, repeatability.labels(runs, arguments.group))
    if not arguments.base:
        return report
    return _with_base(report, _against_base(parser, runs, arguments))


def _of_similarity(similarity: Similarity, labels: dict[str, repeatability.Label]) -> _Report:
    """The report of a comparison; labels: the methods and seeds of the runs."""
    methods = repeatability.between(similarity.rows, similarity.phi, labels)
    rows = [*similarity.rows, *similarity.inside]
    blocks = [*similarity_table.lines(similarity.rows, similarity.inside, methods)]
    legends = [similarity_table.EXPLANATION] if rows else []
    result = {
        "rows": similarity.rows,
        "inside": similarity.inside,
        "methods": methods,
        "summary": similarity_table.summary(similarity.rows),
        "other": similarity.other,
    }
    tables: dict[str, Table] = {TABLE: (rows, COLUMNS)}
    return _Report(
        blocks, legends, result, tables, {PHI: similarity.phi}, similarity.skipped, similarity
    )


def _against_base(
    parser: argparse.ArgumentParser, runs: Sequence[Run], arguments: argparse.Namespace
) -> AgainstBase:
    return landing.analyse(
        runs,
        arguments.base,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        landing=arguments.landing,
        intruders=arguments.intruders,
        cache=Path(arguments.cache) if arguments.cache else base_vectors.default_cache(),
        say=partial(command.warn, parser),
        progress=True,
    )


def _with_base(report: _Report, against: AgainstBase) -> _Report:
    """The report with the comparison of each checkpoint with its base added."""
    # Updates that cannot be read are skipped in both comparisons, and listed once.
    skipped = [skip for skip in against.skipped if skip not in report.skipped]
    return _Report(
        blocks=[*report.blocks, "", *base_table.lines(against.rows)],
        legends=[*report.legends, base_table.EXPLANATION],
        json={**report.json, "base": against.rows},
        tables={**report.tables, BASE_TABLE: (against.rows, landing.ROW_COLUMNS)},
        tensors=report.tensors,
        skipped=[*report.skipped, *skipped],
        similarity=report.similarity,
        against=against,
    )


def _merged(runs: Sequence[Run], arguments: argparse.Namespace) -> _Report:
    """Measure what adding the updates of the checkpoints would do: analysis.merge without --out."""
    found = merging_report.analyse(
        runs,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        rename=arguments.map,
        progress=True,
    )
    return _Report(
        blocks=[*merging_table.lines(found)],
        legends=[merging_table.EXPLANATION],
        json=merging_report.listed(found),
        tables=merging_report.tables(found),
        tensors=merging_report.tensors(found),
        skipped=found.skipped,
    )


def _draw(parser: argparse.ArgumentParser, similarity: Similarity, directory: Path) -> None:
    """Draw what two checkpoints share, or what each pair of several shares."""
    pairs = {tuple(row[column] for column in RUNS) for row in similarity.rows}
    if not pairs:
        command.warn(parser, "--figures: no two checkpoints to draw")
        return
    # Importing matplotlib takes longer than most analyses.
    with extras.named():
        from analysis.figures import similarity as figures

    draw = figures.shared_by_two if len(pairs) == 1 else figures.shared_by_many
    store.save_figure(draw(similarity), directory / "similarity")


def _write(report: _Report, read: Sequence[Path | Run], arguments: argparse.Namespace) -> None:
    """Write the results to --out and to stdout; read: the inputs to record."""
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record("analysis.similarity", read, command.recorded(arguments))
    if arguments.out and report.has_rows:
        notes: Row = {"skipped": report.skipped}
        notes |= {key: report.json[key] for key in ("methods", "other") if key in report.json}
        tables = {file: store.csv_text(*table) for file, table in report.tables.items()}
        store.write(arguments.out, report.tensors, tables, {**made_by, **notes})
    if arguments.json:
        result = {"record": made_by, **report.json, "skipped": report.skipped}
        command.emit(store.strict_json(result))
    elif arguments.csv:
        rows, columns = next(table for table in report.tables.values() if table[0])
        command.emit(store.csv_text(command.printable_rows(rows), columns).rstrip("\n"))
    else:
        command.show(report.blocks, "\n\n".join(report.legends), arguments)


def _write_page(
    parser: argparse.ArgumentParser,
    report: _Report,
    runs: Sequence[Run],
    arguments: argparse.Namespace,
) -> bool:
    """Write the page of the checkpoints, unless it would lack one; whether nothing is missing."""
    spectra = _spectra(runs, arguments)
    further = [skip for skip in spectra.skipped if skip not in report.skipped]
    for skip in further:
        command.warn(parser, skip["reason"])
    if command.lacks(parser, spectra, runs):
        return False
    command.write_page(Path(arguments.page), spectra, report.similarity, report.against)
    return not further


def _spectra(runs: Sequence[Run], arguments: argparse.Namespace) -> Spectra:
    """The spectra of the checkpoints, with modules named as --map says."""
    found = spectrum.of_runs(
        runs,
        options=command.reading_options(arguments),
        modules=None if arguments.map else arguments.modules,  # --modules sees the new names
        progress=True,
    )
    return _renamed(found, arguments.map, arguments.modules) if arguments.map else found


def _renamed(spectra: Spectra, rename: Sequence[meeting.Rename], modules: str | None) -> Spectra:
    """The spectra of those modules whose new names match; of equal ones in a run the first."""
    wanted = names.expression(modules)
    rows: dict[tuple[Any, ...], Row] = {}
    for row in spectra.rows:
        name = meeting.renamed(row["module"], rename)
        if wanted.search(name):
            line = row | {"module": name, "layer": layer_of(name), "kind": kind_of(name)}
            rows.setdefault((row["run"], row["step"], name, row["part"]), line)
    s = {row["key"]: spectra.s[row["key"]] for row in rows.values()}
    return Spectra([*rows.values()], s, spectra.skipped, spectra.other)


EPILOG = """\
Examples:
  python -m analysis.similarity adapters/a adapters/b --figures figures/
  python -m analysis.similarity --merge adapters/a adapters/b
  python -m analysis.similarity runs/lora --base base/ --landing --out dw/

Exit status: 0 if every module was compared; 1 if some were not (missing in one checkpoint, shapes
that differ, ΔW = 0); 2 if nothing was compared, or for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.similarity"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=command.HelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    parser.add_argument(
        "--group",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME PATH",
        help="the runs of one method, one per seed, such as --group lora a/ b/; by default the"
        " method and seed in run.json, if there is one",
    )
    command.add_map_option(parser)
    parser.add_argument(
        "--merge",
        action="store_true",
        help="what adding or averaging the checkpoints keeps and cancels, and the rank that it"
        " needs: the report of analysis.merge, which writes the sum too",
    )
    parser.add_argument("--figures", metavar="DIR", help="draw similarity.png and .pdf there")
    command.add_page_options(parser)
    files = f"{TABLE}, {PHI}, {store.RECORD}"
    more = f"with --base also {BASE_TABLE}; with --merge instead"
    more += f" {', '.join(merging_report.FILES)}"
    command.add_output_options(parser, f"{files} ({more})")
    command.add_reading_options(parser)
    command.add_work_options(parser)
    _add_base_options(parser)
    return parser


def _add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that need all singular vectors of the base."""
    group = parser.add_argument_group(
        "comparison with the singular vectors of the base (needs --base)",
        "Both need the full decomposition of every W0: half a minute and 134 MB of disk for one\n"
        "of 4096 × 4096, hours and 40 GB for a model of 7 billion parameters. An estimate is\n"
        "printed before it starts, and the result is cached. Without these options, landing is\n"
        "still computed if it takes less than a minute.",
    )
    group.add_argument(
        "--landing",
        action="store_true",
        help="share of the update's energy per decile of W0's left and right singular vectors",
    )
    group.add_argument(
        "--intruders",
        action="store_true",
        help="how many of the top 10 left singular vectors of W0 + ΔW are new to W0",
    )
    group.add_argument(
        "--cache", metavar="DIR", help="where decompositions are cached (default below ~/.cache)"
    )


if __name__ == "__main__":
    sys.exit(main())
