"""Make a LoRA adapter from what fine-tuning did to a model: the best one of a rank.

TUNED is any checkpoint that analysis.spectrum reads: a full fine-tune with its base, or an adapter
of any type (DoRA, LoHa, MultiLoRA, …), with --base where ΔW depends on it. By Eckart and Young, B·A
of each matrix is nearest to its ΔW at its rank: --rank R for all, or with --energy Q the least that
holds the share Q of the energy. What is no matrix (norms, biases) cannot be in a LoRA; embeddings
are left out unless --embeddings is given. Both are named.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError, checkpoint, command, extras, names, store
from analysis.checkpoint import Run
from analysis.formats import Options, ties
from analysis.names import kind_of, layer_of
from analysis.numerics import compress, decompose, metrics, parallel, topk
from analysis.process import start
from analysis.results import Row
from analysis.tables import truncate as table
from analysis.update import (
    DenseUpdate,
    LowRankUpdate,
    Other,
    Skipped,
    Update,
    float64,
)
from analysis.writing import peft as adapter

DTYPES = ("float32", "float16", "bfloat16")
BASE = "base_model_name_or_path"
ROWS = 2048  # rows of ΔW that are compared at a time


@dataclass(frozen=True, eq=False)
class Extracted:
    """A LoRA of the updates of a checkpoint, before it is written.

    rows: one per module, as those of `analysis.truncate`; error is that of the factors as stored.
    updates: with factors in the dtype in which they are stored.
    layouts: of the modules that are no plain matrices.
    left_out: module or tensor → why it is not in the LoRA.
    """

    rows: list[Row] = field(default_factory=list)
    updates: list[LowRankUpdate] = field(default_factory=list)
    layouts: dict[str, adapter.Layout] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """‖ΔW − BA‖/‖ΔW‖ over all modules together, of the factors as stored."""
        sizes = np.array([row["norm"] for row in self.rows])
        errors = np.array([row["error"] for row in self.rows])
        whole = float(np.linalg.norm(sizes))
        return float(np.linalg.norm(sizes * errors)) / whole if whole else 0.0


def extract(
    run: Run,
    options: Options | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: np.dtype | None = None,
    modules: str | None = None,
    embeddings: bool = False,
    progress: bool = False,
) -> Extracted:
    """Return the best LoRA of a checkpoint's updates.

    rank: of every module, or less if ΔW has less. energy: in (0, 1], instead of it. dtype: of the
    factors, float32 by default. modules: a regular expression that a module's name must contain.
    embeddings: whether to take embeddings too.

    Raises UserError unless exactly one of rank and energy is given, and CheckpointError at a module
    that cannot be read.
    """
    if (rank is None) == (energy is None):
        raise UserError("expected one of --rank and --energy")
    if rank is not None and rank < 1:
        raise UserError(f"--rank {rank}; expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"--energy {energy:g}; expected a share of the energy, above 0 and up to 1")
    wanted = names.expression(modules)
    stored = np.dtype(np.float32) if dtype is None else dtype
    result = Extracted()
    entries = checkpoint.scan(run, options)
    for entry in parallel.with_bar(entries, progress, run.name, "module"):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if isinstance(entry, Other):
            result.left_out[entry.name] = entry.what
        elif wanted.search(entry.name):
            _take(entry, rank, energy, stored, embeddings, result)
    return result


def _take(
    update: Update,
    rank: int | None,
    energy: float | None,
    dtype: np.dtype,
    embeddings: bool,
    result: Extracted,
) -> None:
    """Add an update to the result, or the reason why it is left out."""
    if update.part:
        result.left_out[f"{update.name} {update.part}"] = "one part of several in a module"
        return
    is_embedding = ties.has_entries(f"{update.name}.weight") and not ties.is_head(
        f"{update.name}.weight"
    )
    if is_embedding and not embeddings:
        result.left_out[update.name] = "embedding; --embeddings takes it too"
        return
    found = factors(update, rank, energy)
    if found is None:
        result.left_out[update.name] = "ΔW is zero"
        return
    if is_embedding and isinstance(update, DenseUpdate):
        # PEFT's ΔW of an embedding is (width, entries).
        found = LowRankUpdate(update.name, found.A.T, found.B.T, 1.0, "", found.method)
        result.layouts[update.name] = adapter.Layout(embedding=True)
    kept = adapter.as_stored(found, dtype)
    size, error = _compared(update, kept, is_embedding and isinstance(update, DenseUpdate))
    result.updates.append(kept)
    result.rows.append(
        {
            "module": update.name,
            "kind": kind_of(update.name),
            "layer": layer_of(update.name),
            "d_out": update.shape[0],
            "d_in": update.shape[1],
            "r": update.capacity,
            "rank": kept.r,
            "bytes": update.shape[0] * update.shape[1] * 4,
            "bytes_kept": kept.B.nbytes + kept.A.nbytes,
            "energy": 1 - error**2,
            "norm": size,
            "error": error,
        }
    )


def factors(update: Update, rank: int | None, energy: float | None) -> LowRankUpdate | None:
    """Return the best factors of an update, float64; None for ΔW = 0.

    Of a dense update by `topk.top`, with more and more directions until they hold the energy.
    """
    if isinstance(update, DenseUpdate):
        return _of_matrix(update, rank, energy)
    found = decompose.decomposition(update, compress.METHOD)
    if found.rank == 0:
        return None
    r = rank if energy is None else int(metrics.energy_rank(found.s, energy))
    root = np.sqrt(found.s[: min(r or 1, found.rank)])
    B = found.left.vectors(root.size) * root
    A = root[:, None] * found.right.vectors(root.size).T
    return LowRankUpdate(update.name, B, A, 1.0, "", "extracted", update.source)


def _of_matrix(update: DenseUpdate, rank: int | None, energy: float | None) -> LowRankUpdate | None:
    """Return the best factors of a dense update; None for ΔW = 0."""
    M = update.load()
    if not np.isfinite(M).all():
        raise CheckpointError(f"{update.source}: {update.name}: ΔW holds NaN or Inf")
    k = rank or min(32, *update.shape)
    found = topk.top(M, k)
    if found.norm == 0:
        return None
    if energy is not None:
        held = np.cumsum((found.s / found.norm) ** 2)
        while held[-1] < energy and k < min(update.shape):
            k = min(4 * k, *update.shape)
            found = topk.top(M, k)
            held = np.cumsum((found.s / found.norm) ** 2)
        k = min(int(np.count_nonzero(held < energy * (1 - 1e-12))) + 1, found.s.size)
    k = min(k, int(np.count_nonzero(found.s > found.rounding)))
    root = np.sqrt(found.s[:k])
    U, Vh = found.U[:, :k], found.Vh[:k]
    return LowRankUpdate(
        update.name, U * root, root[:, None] * Vh, 1.0, "", "extracted", update.source
    )


def _compared(update: Update, kept: LowRankUpdate, turned: bool) -> tuple[float, float]:
    """Return ‖ΔW‖ and ‖ΔW − BA‖/‖ΔW‖, measured; turned: BA is the transpose of ΔW."""
    B, A = float64(kept.B), kept.scale * float64(kept.A)
    B, A = (A.T, B.T) if turned else (B, A)
    if isinstance(update, LowRankUpdate):
        other = LowRankUpdate(update.name, B, A)
        return compress.norm([(1.0, update)]), compress.error(update, other)
    dW = update.load() if isinstance(update, DenseUpdate) else update.dense()
    size = difference = 0.0
    for i in range(0, len(dW), ROWS):
        rows = float64(dW[i : i + ROWS])
        size += float(np.sum(rows**2))
        difference += float(np.sum((rows - B[i : i + ROWS] @ A) ** 2))
    return float(np.sqrt(size)), float(np.sqrt(difference / size)) if size else 0.0


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 if nothing was written."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Extract, write and report; the exit status."""
    out = Path(arguments.out)
    adapter.check_free(out, arguments.force)
    run = checkpoint.at(arguments.path, arguments.revision)
    options = command.reading_options(arguments)
    with extras.named():
        result = extract(
            run,
            options,
            rank=arguments.rank,
            energy=arguments.energy,
            dtype=adapter.dtype_of(arguments.dtype),
            modules=arguments.modules,
            embeddings=arguments.embeddings,
            progress=True,
        )
    if not result.updates:
        raise CheckpointError(f"{run.path}: no matrix has changed; expected at least one")
    config = {BASE: str(options.base)} if options.base else {}
    adapter.write(
        out,
        result.updates,
        adapter.dtype_of(arguments.dtype),
        config=config,
        layouts=result.layouts,
        force=arguments.force,
    )
    if arguments.csv:
        command.emit(store.csv_text(result.rows, table.COLUMNS).rstrip("\n"))
    else:
        command.show(table.lines(result.rows, result.error, str(out)), "", arguments)
    for name, what in list(result.left_out.items())[:SHOWN]:
        command.warn(parser, f"{name}: left out: {what}")
    if (more := len(result.left_out) - SHOWN) > 0:
        command.warn(parser, f"{more} more tensors are left out")
    return 0


SHOWN = 5
EPILOG = """\
Examples:
  python -m analysis.extract tuned/ --base base/ --rank 32 --out lora/
  python -m analysis.extract tuned/ --base base/ --energy 0.9 --out lora/ --dtype bfloat16
  python -m analysis.extract dora/ --base base/ --rank 16 --out plain-lora/

Exit status: 0 if the adapter was written; 2 if not, or for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.extract"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=command.HelpFormatter,
    )
    parser.add_argument("path", metavar="TUNED", help="the checkpoint")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--rank", type=int, metavar="R", help="rank of every module")
    size.add_argument("--energy", type=float, metavar="Q", help="share of Σs² in each module")
    parser.add_argument("--out", required=True, metavar="DIR", help="the adapter that is written")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the factors")
    parser.add_argument("--modules", metavar="REGEX", help="only modules whose name matches")
    parser.add_argument("--embeddings", action="store_true", help="take embeddings too")
    parser.add_argument("--force", action="store_true", help="replace what is at --out")
    parser.add_argument("--csv", action="store_true", help="print the table of modules as CSV")
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
