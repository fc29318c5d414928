"""Cut an adapter to the ranks that it uses, and say how much of ΔW is lost.

By Eckart and Young, no adapter of the same ranks is nearer to ΔW: each module keeps its top
singular directions. The ranks come from one of --energy (each module keeps this share of its
energy, Σs²), --rank (at most R in every module) and --budget (megabytes of all factors, spent on
the directions that hold most energy for their size, ‖ΔW‖² of all modules together). A PEFT LoRA
adapter becomes a PEFT LoRA adapter with a rank per module; files of kohya and diffusers stay such
files. What else was saved, heads and biases, is carried along.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError, checkpoint, command, store
from analysis.checkpoint import Run
from analysis.files.place import Place
from analysis.formats import Options, peft, through_peft
from analysis.numerics import compress, decompose, metrics
from analysis.numerics.decompose import Decomposition
from analysis.process import start
from analysis.results import Row
from analysis.tables import truncate as table
from analysis.update import LowRankUpdate, Other, Remark, Skipped
from analysis.writing import peft as adapter
from analysis.writing import single, smaller

EXTRACT = "python -m analysis.extract makes a LoRA of"


@dataclass(frozen=True, eq=False)
class Truncated:
    """A truncated adapter, before it is written, or after.

    rows: one per module: module, kind, layer, d_out, d_in, r (before), rank (kept), bytes (before),
        bytes_kept, energy (share kept, exact), norm (‖ΔW‖_F), error (relative, as stored).
    updates: those that are kept: as they were where nothing is cut, else with float64 factors.
    left_out: modules of which nothing is kept.
    dtype: that the factors are stored in.
    """

    rows: list[Row]
    updates: list[LowRankUpdate]
    left_out: list[str] = field(default_factory=list)
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))

    @property
    def error(self) -> float:
        """‖ΔW − ΔW'‖/‖ΔW‖ over all modules together, of the factors as they are stored."""
        return smaller.whole_error(self.rows)


def truncate(
    updates: Sequence[LowRankUpdate],
    *,
    energy: float | None = None,
    rank: int | None = None,
    budget: float | None = None,
    dtype: np.dtype | None = None,
) -> Truncated:
    """Return the best update of each module at the ranks that one of the three asks for.

    energy: in (0, 1], the least share of Σs² that each module keeps.
    rank: from 1, the largest rank of a module.
    budget: bytes of all factors together. Directions are taken by energy per byte, which no other
        choice of the same size betters but by less than one direction.
    dtype: of the stored factors; None for the coarsest in which they are stored now.

    Raises UserError unless exactly one of the three is given and lies in its range.
    """
    smaller.check({"energy": energy, "rank": rank, "budget": budget})
    kept_dtype = dtype or compress.stored_dtype(updates)
    found = [decompose.decomposition(update, compress.METHOD) for update in updates]
    if budget is not None:
        ranks = within(budget, updates, found, kept_dtype.itemsize)
    else:
        ranks = [_rank(one, energy, rank) for one in found]
    rows, kept, left_out = [], [], []
    for update, one, r in zip(updates, found, ranks, strict=True):
        row, cut = _cut(update, one, r, kept_dtype)
        rows.append(row)
        if cut is None:
            left_out.append(update.name)
        else:
            kept.append(cut)
    return Truncated(rows, kept, left_out, kept_dtype)


def as_written(
    result: Truncated, updates: Sequence[LowRankUpdate], stored: Sequence[LowRankUpdate]
) -> Truncated:
    """Return the result with the errors of what was written, where a format sets the scale.

    updates: before the truncation. stored: as `Opened.write` returns them.
    """
    before = {update.name: update for update in updates}
    after = {update.name: update for update in stored if update.scale != 1.0}
    rows = [
        row | {"error": compress.error(before[row["module"]], after[row["module"]])}
        if row["module"] in after and row["error"] > 0
        else row
        for row in result.rows
    ]
    return replace(result, rows=rows)


def _rank(one: Decomposition, energy: float | None, rank: int | None) -> int:
    """Return the rank of a module for --energy or --rank; 0 for ΔW = 0."""
    if one.rank == 0:
        return 0
    if energy is not None:
        return min(int(metrics.energy_rank(one.s, energy)), one.rank)
    return min(rank or 1, one.rank)


def within(
    budget: float,
    updates: Sequence[LowRankUpdate],
    found: Sequence[Decomposition],
    itemsize: int,
) -> list[int]:
    """Return the ranks that hold most energy in `budget` bytes of numbers of `itemsize` bytes.

    A direction costs (d_out + d_in) · itemsize bytes and brings s².
    """
    offers = []
    for i, (update, one) in enumerate(zip(updates, found, strict=True)):
        cost = sum(update.shape) * itemsize
        offers += [(s**2 / cost, i, cost) for s in one.s[: one.rank]]
    ranks = [0] * len(updates)
    left = budget
    for _, i, cost in sorted(offers, key=lambda offer: -offer[0]):
        if cost <= left:
            ranks[i] += 1
            left -= cost
    return ranks


def _cut(
    update: LowRankUpdate, one: Decomposition, r: int, dtype: np.dtype
) -> tuple[Row, LowRankUpdate | None]:
    """Return the row of a module, and its best update of rank r; None for r = 0."""
    size = metrics.frobenius_norm(one.s)
    whole = r >= one.rank and r == update.r and {update.B.dtype, update.A.dtype} == {dtype}
    cut = update if whole else compress.cut(update, one, r) if r else None
    error = 1.0 if size else 0.0
    if cut is not None:
        error = 0.0 if whole else compress.error(update, compress.rounded(cut, dtype))
    row = smaller.row(
        update,
        update.name,
        r,
        r * sum(update.shape) * dtype.itemsize,
        energy=float(np.sum((one.s[:r] / size) ** 2)) if size else None,
        norm=size,
        error=error,
    )
    return row, cut


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint whose updates can be replaced, and how.

    updates: in its order. write: takes a result, the output and whether to replace it; returns the
    updates as they are stored.
    """

    updates: list[LowRankUpdate]
    write: Callable[[Truncated, Path, bool], list[LowRankUpdate]]


def opened(run: Run, options: Options) -> Opened:
    """Open a checkpoint that can be written again: PEFT LoRA, kohya or diffusers.

    Raises CheckpointError for any other, and for one of which a module is not a plain product.
    """
    source = run.source
    assert source is not None
    if source.family is peft:
        _refuse_others(source.place)
    updates = _updates(run, options)
    if source.family is peft:
        original = adapter.original(source.place.path)

        def as_adapter(result: Truncated, out: Path, force: bool) -> list[LowRankUpdate]:
            return adapter.write(
                out,
                result.updates,
                result.dtype,
                config=original.config,
                carried=original.carried,
                layouts=original.layouts,
                force=force,
            )

        return Opened(updates, as_adapter)
    file = single.of(source)
    if file is not None:
        single.names(file)

        def as_file(result: Truncated, out: Path, force: bool) -> list[LowRankUpdate]:
            return single.write(out, file, result.updates, result.dtype, force)

        return Opened(updates, as_file)
    raise CheckpointError(
        f"{run.path}: is neither a PEFT LoRA adapter nor a file of kohya or diffusers, which could"
        f" be written again; {EXTRACT} any update"
    )


def _refuse_others(place: Place) -> None:
    """Raise CheckpointError for a PEFT adapter whose B·A alone is not ΔW, before it is read."""
    config, where = place.json(peft.CONFIG), place.path / peft.CONFIG
    reason = through_peft.reason(config)
    if not reason and config.get("use_dora"):
        reason = "use_dora is set: DoRA rescales the rows of W0 + B·A"
    if reason:
        raise CheckpointError(f"{where}: {reason}; {EXTRACT} ΔW where it can be read, with --base")


def _updates(run: Run, options: Options) -> list[LowRankUpdate]:
    """Return the updates of a checkpoint; CheckpointError unless all are plain products B·A."""
    updates: list[LowRankUpdate] = []
    for entry in checkpoint.scan(run, options):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if isinstance(entry, Remark):
            print(f"{entry.name}: {entry.what}", file=sys.stderr)
        if isinstance(entry, Other):
            continue
        if not isinstance(entry, LowRankUpdate) or entry.part:
            what = f"has parts ({entry.part})" if entry.part else "is no product of two factors"
            raise CheckpointError(
                f"{run.path}: {entry.name}: {what} ({entry.method}); expected plain LoRA"
                f" ({EXTRACT} it)"
            )
        updates.append(entry)
    if not updates:
        raise CheckpointError(f"{run.path}: has no update; expected at least one")
    return updates


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 if nothing was written."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Truncate, write and report; the exit status."""
    budget = None if arguments.budget is None else arguments.budget * smaller.MEGABYTE
    asked = {"energy": arguments.energy, "rank": arguments.rank, "budget": budget}
    smaller.check(asked)
    out = Path(arguments.out)
    adapter.check_free(out, arguments.force)
    run = checkpoint.at(arguments.path, arguments.revision)
    source = opened(run, command.reading_options(arguments))
    result = truncate(
        source.updates,
        energy=arguments.energy,
        rank=arguments.rank,
        budget=budget,
        dtype=adapter.dtype_of(arguments.dtype) if arguments.dtype else None,
    )
    result = as_written(result, source.updates, source.write(result, out, arguments.force))
    if arguments.csv:
        command.emit(store.csv_text(result.rows, table.COLUMNS).rstrip("\n"))
    else:
        command.show(table.lines(result.rows, result.error, str(out)), "", arguments)
    return 0


EPILOG = """\
Examples:
  python -m analysis.truncate adapter/ --energy 0.95 --out smaller/
  python -m analysis.truncate adapter/ --rank 4 --out rank4/ --dtype float16
  python -m analysis.truncate style.safetensors --budget 20 --out style-20MB.safetensors

Exit status: 0 if the result was written; 2 if not, or for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.truncate"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=command.HelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="an adapter, or a file of factors")
    size = command.add_size_options(parser, rank="largest rank of a module")
    size.add_argument("--budget", type=float, metavar="MB", help="megabytes of all factors")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="a directory for PEFT, else a file"
    )
    command.add_writing_options(parser, adapter.DTYPES, usual="as they are")
    parser.add_argument("--csv", action="store_true", help="print the table of modules as CSV")
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
