"""Say whether an adapter's rank is used: the ranks it needs, what they save, what could be dropped.

For each module and in all: the least rank that holds 90, 95 and 99 % of the energy of ΔW (Σs²), how
many directions hold more than the strongest direction of a random update of the same shape and rank
does, and the size of the factors at each. Energy is not accuracy: what a smaller rank does to the
model, only the model can tell.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from analysis import checkpoint, command, names, store
from analysis.checkpoint import Run
from analysis.formats import Options, peft
from analysis.names import kind_of, layer_of
from analysis.numerics import advice, decompose, metrics, parallel
from analysis.process import start
from analysis.results import Row
from analysis.tables import advise as table
from analysis.update import LowRankUpdate, Other, Skipped, Update
from analysis.writing import single

TABLE = "advice.csv"
SINGLE = 4  # bytes of a number in the factors that an update without any would get


def of_run(
    run: Run, options: Options | None = None, modules: str | None = None, progress: bool = False
) -> tuple[list[Row], list[Skipped]]:
    """Return one row per update of a checkpoint, table.COLUMNS, and what was skipped.

    modules: a regular expression that a module's name must contain. bytes are those of the factors
    as they are stored; share is that of the update in the energy of all of the checkpoint's.
    """
    wanted = names.expression(modules)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    entries = checkpoint.scan(run, options)
    for entry in parallel.with_bar(entries, progress, run.name, "module"):
        if isinstance(entry, Skipped):
            skipped.append(entry)
        elif not isinstance(entry, Other) and wanted.search(entry.name):
            rows.append(_row(run, entry))
    whole = sum(row["frobenius_norm"] ** 2 for row in rows)
    for row in rows:
        row["share"] = row["frobenius_norm"] ** 2 / whole if whole else None
    return rows, skipped


def _row(run: Run, update: Update) -> Row:
    """Return the row of an update, without its share."""
    spectrum = decompose.spectrum(update)
    s = spectrum.s
    rank = decompose.rank(s, spectrum.error_bound, update, spectrum.floor)
    r, itemsize = None, SINGLE
    if isinstance(update, LowRankUpdate):
        r, itemsize = update.r, max(dtype.itemsize for dtype in update.stored)
    d_out, d_in = update.shape
    found = advice.ranks(s, rank)
    per_direction = itemsize * (d_out + d_in)
    return {
        "run": run.name,
        "step": run.step,
        "module": update.name,
        "part": update.part,
        "kind": kind_of(update.name),
        "layer": layer_of(update.name),
        "d_out": d_out,
        "d_in": d_in,
        "r": r,
        "capacity": update.capacity,
        "rank": rank,
        **found,
        "beyond_chance": advice.beyond_chance(s, d_out, d_in, r),
        "frobenius_norm": metrics.frobenius_norm(s),
        "bytes": per_direction * (r or update.capacity),
        **{name.replace("rank", "bytes"): per_direction * n for name, n in found.items()},
    }


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as that of `analysis.spectrum`."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Analyse, print and write; the exit status."""
    if arguments.explain and not arguments.paths:
        command.show([], table.EXPLANATION, arguments)
        return 0
    if not arguments.paths:
        parser.error("expected the PATH of a checkpoint")
    runs = checkpoint.runs(arguments.paths, arguments.revision)
    options = command.reading_options(arguments)
    rows: list[Row] = []
    blocks = []
    skipped = 0
    for run in runs:
        own, left = of_run(run, options, arguments.modules, progress=True)
        for entry in left:
            command.warn(parser, entry.reason)
        skipped += len(left)
        rows += own
        if not own:
            command.warn(parser, f"{run.path}: no update to analyse; expected at least one")
            continue
        blocks += [
            *([run.key, ""] if len(runs) > 1 else []),
            *table.lines(own, _words(run, arguments), _out(run, options)),
            "",
        ]
    if not rows:
        return 2
    if arguments.out:
        made_by = store.record(
            "analysis.advise", command.paths_read(runs, arguments), command.recorded(arguments)
        )
        store.write(arguments.out, {}, {TABLE: store.csv_text(rows, table.COLUMNS)}, made_by)
    if arguments.csv:
        command.emit(store.csv_text(rows, table.COLUMNS).rstrip("\n"))
    elif arguments.json:
        command.emit(store.strict_json({"modules": rows}))
    else:
        command.show(blocks, table.EXPLANATION, arguments)
    return 1 if skipped else 0


def _words(run: Run, arguments: argparse.Namespace) -> str:
    """Return the path of a checkpoint and the options that it was read with, for a shell."""
    words = [str(run.path)]
    for name in ("base", "initial", "factors", "blocks", "scale", "revision"):
        value = getattr(arguments, name)
        if value:
            given = [",".join(map(str, value))] if name == "blocks" else value
            words += [f"--{name}", *([str(given)] if isinstance(given, str | float) else given)]
    for name in ("base_rounded", "direction_only", "transposed", "experts_first"):
        words += [f"--{name.replace('_', '-')}"] if getattr(arguments, name) else []
    return shlex.join(words)


def _out(run: Run, options: Options) -> str:
    """Return where analysis.truncate could write a checkpoint; "" if it cannot."""
    source = run.source
    if source is None or options.factors or options.direction_only:
        return ""
    if source.family is peft:
        return "smaller/"
    return f"smaller{single.SUFFIX}" if single.of(source) else ""


EPILOG = """\
Examples:
  python -m analysis.advise adapter/
  python -m analysis.advise adapter/ --csv > ranks.csv
  python -m analysis.advise tuned/ --base base/ --modules q_proj

Exit status: 0 if every update was analysed; 1 if some were skipped; 2 if nothing was analysed, or
for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.advise"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=command.HelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    command.add_output_options(parser, f"{TABLE} and {store.RECORD}")
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
