"""Make a LoRA adapter from what fine-tuning did to a model: the best one of a rank.

TUNED is any checkpoint that analysis.spectrum reads: a full fine-tune with its base, or an adapter
of any type (DoRA, LoHa, MultiLoRA, …), with --base where ΔW depends on it. By Eckart and Young, B·A
of each matrix is nearest to its ΔW at its rank: --rank R for all, or with --energy Q the least that
holds the share Q of the energy. What is no matrix (norms, biases) cannot be in a LoRA; embeddings
are left out unless --embeddings is given. Both are named, with their share of Σ‖ΔW‖². A tied head
gets the factors of its embedding; merging such an adapter would add them twice.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError, checkpoint, command, names, store
from analysis.checkpoint import Run
from analysis.files.place import Place
from analysis.formats import Options, ties
from analysis.formats import base as base_model
from analysis.names import kind_of
from analysis.numerics import compress, decompose, metrics, parallel, topk
from analysis.process import start
from analysis.results import Row
from analysis.tables import truncate as table
from analysis.tables.text import percent
from analysis.update import (
    DenseUpdate,
    Entry,
    LowRankUpdate,
    Other,
    Skipped,
    Update,
    float64,
)
from analysis.writing import peft as adapter
from analysis.writing import smaller

BASE = "base_model_name_or_path"
FULL = "full"  # the method of updates that are differences of weights as the model stores them
HEAD = "lm_head"  # the head's module where it is tied, so that no tensor says its name
# How readers describe what a tensor that is no matrix changes by (formats.base, formats.full).
CHANGE = re.compile(r"change of norm ([\d.e+-]+)")
ROWS = 2048  # rows of ΔW that are compared at a time


@dataclass(frozen=True, eq=False)
class Extracted:
    """A LoRA of the updates of a checkpoint, before it is written.

    rows: one per module, as those of `analysis.truncate`; error is that of the factors as stored.
    updates: with factors in the dtype in which they are stored.
    layouts: of the modules that are no plain matrices.
    left_out: module or tensor → why it is not in the LoRA.
    norms: those of left_out whose change is known → its Frobenius norm.
    tied: heads that have the factors of their embedding.
    """

    rows: list[Row] = field(default_factory=list)
    updates: list[LowRankUpdate] = field(default_factory=list)
    layouts: dict[str, adapter.Layout] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    tied: list[str] = field(default_factory=list)

    def share(self, name: str) -> float | None:
        """Share of what is left out under `name` in the sum of all squared changes, or None."""
        counted = [row["norm"] for row in self.rows if row["module"] not in self.tied]
        whole = float(np.linalg.norm([*counted, *self.norms.values()]))
        return (self.norms[name] / whole) ** 2 if name in self.norms and whole else None

    @property
    def error(self) -> float:
        """‖ΔW − BA‖/‖ΔW‖ over all modules together, of the factors as stored."""
        return smaller.whole_error(self.rows)


def extract(
    run: Run,
    options: Options | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: np.dtype | None = None,
    modules: str | None = None,
    embeddings: bool = False,
    part: str = "",
    progress: bool = False,
) -> Extracted:
    """Return the best LoRA of a checkpoint's updates.

    rank: of every module, or less if ΔW has less. energy: in (0, 1], instead of it. dtype: of the
    factors, float32 by default. modules: a regular expression that a module's name must contain.
    embeddings: whether to take embeddings too. part: the one that is taken where a module has
    several.

    Raises UserError unless exactly one of rank and energy is given, and CheckpointError at a module
    that cannot be read.
    """
    smaller.check({"rank": rank, "energy": energy})
    wanted = names.expression(modules)
    stored = np.dtype(np.float32) if dtype is None else dtype
    result = Extracted()
    entries = list(checkpoint.scan(run, options))
    base = _base(entries, options)
    for entry in parallel.with_bar(entries, progress, run.name, "module"):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if isinstance(entry, Other):
            result.left_out[entry.name] = entry.what
            if change := CHANGE.search(entry.what):
                result.norms[entry.name] = float(change[1])
        elif wanted.search(entry.name):
            if entry.part in ("", part):
                _take(entry, rank, energy, stored, embeddings, base, result)
            else:
                result.left_out[f"{entry.name} {entry.part}"] = (
                    "one part of several in a module, --part takes one"
                )
    return result


@dataclass(frozen=True)
class Base:
    """What the base says about how PEFT would hold the factors of its modules.

    shapes: module → shape of its weight. conv1d: True if layers of GPT-2's names are stored as W0ᵀ.
    tied: embedding → the head that shares its weight, in the base and in the tuned model.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    conv1d: bool = False
    tied: dict[str, str] = field(default_factory=dict)


def _base(entries: Sequence[Entry], options: Options | None) -> Base:
    """Return what the base says; nothing without one, or if no update is that of whole weights."""
    full = any(isinstance(e, DenseUpdate) and e.method == FULL for e in entries)
    if options is None or options.base is None or not full:
        return Base()
    place = Place(base_model.directory(options.base))
    _, tensors = base_model.open_model(place)
    shapes = {name.removesuffix(".weight"): W.shape for name, W in tensors.items()}
    embedding = ties.embedding(tensors).removesuffix(".weight")
    heads = [name.removesuffix(".weight") for name in tensors if ties.is_head(name)]
    head = heads[0] if heads else HEAD
    of_head = any(e.name == head and not isinstance(e, Other) for e in entries)
    tied = embedding and ties.is_tied(place, tensors) and not of_head
    return Base(shapes, base_model.has_conv1d(place), {embedding: head} if tied else {})


def _take(
    update: Update,
    rank: int | None,
    energy: float | None,
    dtype: np.dtype,
    embeddings: bool,
    base: Base,
    result: Extracted,
) -> None:
    """Add an update to the result, or the reason why it is left out."""
    weight = f"{update.name}.weight"
    of_weights = isinstance(update, DenseUpdate) and update.method == FULL
    is_embedding = ties.has_entries(weight) and not ties.is_head(weight)
    if is_embedding and not embeddings:
        result.left_out[update.name] = "embedding; --embeddings takes it too"
        result.norms[update.name] = _norm(update)
        return
    found = factors(update, rank, energy)
    if found is None:
        result.left_out[update.name] = "ΔW is zero"
        return
    shape = base.shapes.get(update.name, update.shape)
    if of_weights and len(found.B) < shape[0] and ties.has_entries(weight):
        # Rows of the base's vocabulary that the tuned model has no more: they do not change.
        more = np.zeros((shape[0] - len(found.B), found.r))
        found = replace(found, B=np.vstack([found.B, more]))
    conv1d = base.conv1d and kind_of(update.name) in base_model.CONV1D
    turned = of_weights and (is_embedding or conv1d)
    if head := base.tied.get(update.name) if turned else None:
        result.tied.append(head)
        _add(update, replace(found, name=head), dtype, False, adapter.LINEAR, result)
    if turned:
        # PEFT's ΔW of an embedding is (width, entries), that of a Conv1D layer (d_out, d_in).
        found = replace(found, B=found.A.T, A=found.B.T)
    layout = adapter.Layout(is_embedding and turned, tuple(shape[2:]) if of_weights else ())
    _add(update, found, dtype, turned, layout, result)


def _add(
    update: Update,
    found: LowRankUpdate,
    dtype: np.dtype,
    turned: bool,
    layout: adapter.Layout,
    result: Extracted,
) -> None:
    """Add factors to the result, with their row; turned: they are those of the transpose of ΔW."""
    kept = adapter.as_stored(found, dtype)
    size, error = compared(update, kept, turned)
    result.updates.append(kept)
    if layout != adapter.LINEAR:
        result.layouts[kept.name] = layout
    bytes_kept = kept.B.nbytes + kept.A.nbytes
    result.rows.append(
        smaller.row(
            update, kept.name, kept.r, bytes_kept, energy=1 - error**2, norm=size, error=error
        )
    )


def _norm(update: Update) -> float:
    """Return ‖ΔW‖_F."""
    if isinstance(update, LowRankUpdate):
        return compress.norm([(1.0, update)])
    dW = update.load() if isinstance(update, DenseUpdate) else update.dense()
    return float(np.linalg.norm([np.linalg.norm(float64(row)) for row in dW]))


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
    B, A = compress.factors(found, min(r or 1, found.rank))
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


def compared(update: Update, kept: LowRankUpdate, turned: bool) -> tuple[float, float]:
    """Return ‖ΔW‖ and ‖ΔW − BA‖/‖ΔW‖, measured; turned: BA is the transpose of ΔW."""
    B, A = float64(kept.B), kept.scale * float64(kept.A)
    B, A = (A.T, B.T) if turned else (B, A)
    B = B[: update.shape[0]]  # rows beyond are those of a larger vocabulary, and zero
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
    dtype = adapter.dtype_of(arguments.dtype or adapter.DTYPES[0])
    result = extract(
        run,
        options,
        rank=arguments.rank,
        energy=arguments.energy,
        dtype=dtype,
        modules=arguments.modules,
        embeddings=arguments.embeddings,
        part=arguments.part,
        progress=True,
    )
    if not result.updates:
        reasons = [*dict.fromkeys(result.left_out.values())][:3] or ["no matrix has changed"]
        raise CheckpointError(
            f"{run.path}: nothing to extract ({', '.join(reasons)}); expected a changed matrix"
        )
    config = {BASE: str(options.base)} if options.base else {}
    adapter.write(
        out,
        result.updates,
        dtype,
        config=config,
        layouts=result.layouts,
        force=arguments.force,
    )
    if arguments.csv:
        command.emit(store.csv_text(result.rows, table.COLUMNS).rstrip("\n"))
    else:
        command.show(table.lines(result.rows, result.error, str(out)), "", arguments)
    _warn_of_left_out(parser, result)
    return 0


def _warn_of_left_out(parser: argparse.ArgumentParser, result: Extracted) -> None:
    """Name what the LoRA lacks: what has no known share first, then the largest shares."""
    shares = {name: result.share(name) for name in result.left_out}
    order = sorted(shares, key=lambda name: _or(shares[name], math.inf), reverse=True)
    for name in order[:SHOWN]:
        share = shares[name]
        beside = "" if share is None else f" ({percent(share)} of the energy of all changes)"
        command.warn(parser, f"{name}: left out: {result.left_out[name]}{beside}")
    if rest := order[SHOWN:]:
        together = sum(_or(shares[name], 0.0) for name in rest)
        what = f"{len(rest)} more are left out ({percent(together)} of the energy of all changes)"
        command.warn(parser, what)
    for head in result.tied:
        command.warn(parser, f"{head}: is tied, and has factors of its own: do not merge")


def _or(share: float | None, otherwise: float) -> float:
    return otherwise if share is None else share


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
    command.add_size_options(parser, rank="rank of every module")
    parser.add_argument("--out", required=True, metavar="DIR", help="the adapter that is written")
    command.add_writing_options(parser, adapter.DTYPES, usual=adapter.DTYPES[0])
    parser.add_argument("--modules", metavar="REGEX", help="only modules whose name matches")
    parser.add_argument("--embeddings", action="store_true", help="take embeddings too")
    parser.add_argument(
        "--part", default="", metavar="P", help="of modules with several updates, such as tasks"
    )
    parser.add_argument("--csv", action="store_true", help="print the table of modules as CSV")
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
