"""Merge adapters of one base into one PEFT adapter, after a report of what that keeps and cancels.

    python -m analysis.merge 1:adapters/a 1:adapters/b --out merged/ --method tsv --rank 16

W:PATH is an adapter with its weight; every method merges the W·ΔW of each module:

    sum    Σ ΔW, exact: factors side by side (task arithmetic, arXiv 2212.04089)
    ties   the largest entries of each ΔW; where signs differ, the stronger one (arXiv 2306.01708)
    dare   entries dropped at random and the rest rescaled, then added (arXiv 2311.03099)
    knots  ties in the space of the SVD of all ΔW side by side (arXiv 2410.19735)
    tsv    top directions of each, made orthogonal to the others' (arXiv 2412.00081)
    iso    the sum with equal singular values, Iso-C (arXiv 2502.04959)
    core   ties on the small cores in common bases of B and A (arXiv 2509.17786)

ties and dare change entries of ΔW, one module at a time in memory; the others never form ΔW.
Without --out only the report is made.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError, UserError, checkpoint, command, names, store
from analysis.checkpoint import Run
from analysis.formats import Options, peft
from analysis.merging import methods, report, saved
from analysis.merging.methods import METHODS
from analysis.merging.settings import DENSITY, Settings
from analysis.numerics import compress
from analysis.pairs import combine, meeting
from analysis.pairs.combine import Term
from analysis.pairs.meeting import Collected
from analysis.process import start
from analysis.results import Merging
from analysis.tables import merging as merging_table
from analysis.tables.text import Statement, counted
from analysis.update import LowRankUpdate, Update
from analysis.writing import peft as writer

BASE = "base_model_name_or_path"
COMMON = (BASE, "revision", "task_type", "modules_to_save", "bias")  # of all PEFT methods
EXTRACT = "make a LoRA of it first with python -m analysis.extract"


@dataclass(frozen=True, eq=False)
class Result:
    """A merge, before it is written.

    found: the report. updates: the merged updates, one per module. runs: the adapters, in order.
    config: settings of the first that the merged adapter takes over. carried: tensors besides the
    updates, see `saved.carried`. layouts: module → how its factors are stored. dtype: in which the
    first adapter stores its factors.
    """

    found: Merging
    updates: list[LowRankUpdate]
    runs: list[Run]
    config: dict[str, Any]
    carried: dict[str, np.ndarray]
    layouts: dict[str, writer.Layout]
    dtype: np.dtype


def merge(
    terms: Sequence[Term],
    method: str = "sum",
    settings: Settings | None = None,
    *,
    options: Options | None = None,
    rename: Sequence[meeting.Rename] = (),
    partly: bool = False,
    same_base: bool = False,
    keep_saved: str | None = None,
    progress: bool = False,
) -> Result:
    """Return the merge of two or more adapters, and what it keeps and cancels.

    terms: the adapters with their weights.
    method, settings: as for `methods.merge`.
    options: what the files of the adapters do not say.
    rename: (pattern, replacement), applied to the names of modules before they are matched.
    partly: whether a module may be missing in some adapters, where it counts as ΔW = 0.
    same_base: whether to take bases with different names for the same.
    keep_saved: `saved` of `saved.carried`.
    progress: show a bar on stderr if dense modules take longer than two seconds.

    Raises UserError or CheckpointError, naming the adapter and the module, if the adapters cannot
    be merged as a whole: another base, another shape, a module that is missing or in parts, an
    update that is not low-rank or cannot be read, NaN, a rank that no module can have.
    """
    settings, options = settings or Settings(), options or Options()
    runs = _runs(terms, options)
    config = _config(runs, same_base)
    everything = names.expression(None)
    collected = meeting.collect(runs, options, everything, rename, most=len(runs))
    _check(runs, collected, partly)
    _check_rank(settings.rank, collected)
    dtype = compress.stored_dtype(
        [update for update in collected.updates(runs[0]) if isinstance(update, LowRankUpdate)]
    )
    _weigh(runs, terms, collected)
    carried = saved.carried(runs, collected.other, keep_saved)
    found, updates = report.of_collected(
        runs, collected, partial(_merge_one, method, settings), method, progress
    )
    failed = [skip for skip in found.skipped if not _is_remark(skip, collected)]
    if failed:
        raise CheckpointError(_first_of([skip["reason"] for skip in failed]))
    low_rank = [update for update in updates if isinstance(update, LowRankUpdate)]
    if not carried:
        config |= {"bias": "none", "modules_to_save": None}
    return Result(found, low_rank, runs, config, carried, _layouts(runs, rename), dtype)


def _merge_one(method: str, settings: Settings, updates: Sequence[Update]) -> tuple[Update, float]:
    """Return the merged update of one module and the relative error of its cut."""
    factored = [update for update in updates if isinstance(update, LowRankUpdate)]
    merged = methods.merge(method, factored, settings)
    return merged.update, merged.error


# What adapters must have in common


def _runs(terms: Sequence[Term], options: Options) -> list[Run]:
    """Return the adapters; UserError for fewer than two, a weight of 0, or a path with several."""
    if len(terms) < 2:
        raise UserError(f"{counted(len(terms), 'adapter')}; expected two or more, as 0.5:adapter/")
    for term in terms:
        if term.weight == 0:
            raise UserError(f"0:{term.path}: a weight of 0 leaves it out; remove the argument")
    runs = checkpoint.runs([term.path for term in terms], options.revision)
    if len(runs) != len(terms):
        several = next(
            term.path for term in terms if len(checkpoint.runs([term.path], options.revision)) > 1
        )
        raise UserError(f"{several}: holds several checkpoints; expected the path of one")
    return runs


def _config(runs: Sequence[Run], same_base: bool) -> dict[str, Any]:
    """Return the settings of the first adapter that a LoRA takes over, {} if it has no config.

    Raises UserError if two adapters name different bases, unless `same_base`.
    """
    configs = [_json(run) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        bases = configs[0].get(BASE), config.get(BASE)
        if all(bases) and bases[0] != bases[1] and not same_base:
            raise UserError(
                f"{run.path}: {BASE} is {bases[1]}, that of {runs[0].path} is {bases[0]}; expected"
                " adapters of one base (pass --same-base if these are two names of one)"
            )
    first = configs[0]
    plain = first.get("peft_type") == "LORA"
    return {name: value for name, value in first.items() if plain or name in COMMON}


def _layouts(runs: Sequence[Run], rename: Sequence[meeting.Rename]) -> dict[str, writer.Layout]:
    """Return how the factors of each module are stored, by the first adapter that has the module.

    Raises CheckpointError for an adapter of PEFT's LoRA with a module that is no plain product.
    """
    layouts: dict[str, writer.Layout] = {}
    for run in runs:
        if run.source and run.source.family is peft and _json(run).get("peft_type") == "LORA":
            for module, layout in writer.layouts(run.source.place).items():
                layouts.setdefault(meeting.renamed(module, rename), layout)
    return layouts


def _json(run: Run) -> dict[str, Any]:
    place = run.source.place if run.source else None
    if place is None or not (place.path / peft.CONFIG).is_file():
        return {}
    return place.json(peft.CONFIG)


def _check(runs: Sequence[Run], collected: Collected, partly: bool) -> None:
    """Raise CheckpointError unless each module has a low-rank update in all adapters, of one shape.

    partly: whether a module may be missing.
    """
    if collected.skipped:
        reason = _first_of([skip["reason"] for skip in collected.skipped])
        # With a base it would be read as a matrix.
        advice = f"; a merge takes factors alone: {EXTRACT}" if "--base" in reason else ""
        raise CheckpointError(reason + advice)
    for run in runs:
        if not collected.updates(run):
            raise CheckpointError(f"{run.path}: has no update; expected an adapter")
    if not any(len(by_run) > 1 for by_run in collected.modules.values()):
        # The report notes it with the closest names as a hint.
        meeting.sharing([(runs[0], runs[1])], collected)
        raise CheckpointError(collected.skipped[0]["reason"])
    for module, by_run in collected.modules.items():
        _check_module(module, by_run, runs, partly)
    for name in (other["name"] for other in collected.other):
        if name.endswith("lora_B.bias"):
            raise CheckpointError(
                f"{name}: a bias of lora_B (lora_bias) is a part of the update; adapters with one"
                " are not merged"
            )


def _check_module(
    module: str, by_run: dict[str, list[Update]], runs: Sequence[Run], partly: bool
) -> None:
    """Raise CheckpointError unless the module's updates are low-rank, whole and of one shape."""
    shapes = {}
    for run in runs:
        updates = by_run.get(run.key, [])
        if not updates and not partly:
            having = next(other.path for other in runs if other.key in by_run)
            raise CheckpointError(
                f"{run.path}: {module}: is missing, but is in {having}; expected the same modules"
                " in all (see --map for other names, --partly to count it as ΔW = 0)"
            )
        for update in updates:
            if update.part or len(updates) > 1:
                raise CheckpointError(
                    f"{run.path}: {module}: has parts ({update.part}); expected one update of the"
                    " module"
                )
            if not isinstance(update, LowRankUpdate):
                raise CheckpointError(
                    f"{run.path}: {module}: ΔW is no product of two factors ({update.method});"
                    f" expected LoRA: {EXTRACT}"
                )
            shapes[run] = update.shape
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{run.path} has {shape}" for run, shape in shapes.items())
        raise CheckpointError(f"{module}: shapes differ, {each}; expected equal shapes")


def _check_rank(rank: int | None, collected: Collected) -> None:
    """Raise UserError if no module can have this rank after merging."""
    if rank is None:
        return
    largest = max(
        methods.capacity([u for updates in by_run.values() for u in updates])  # type: ignore[misc]
        for by_run in collected.modules.values()
    )
    if rank > largest:
        raise UserError(
            f"--rank {rank}; expected at most {largest}, the largest rank that the sum of these"
            " adapters can have in any module"
        )


def _weigh(runs: Sequence[Run], terms: Sequence[Term], collected: Collected) -> None:
    """Multiply every update by the weight of its adapter, and call it as its module is called."""
    for module, by_run in collected.modules.items():
        for run, term in zip(runs, terms, strict=True):
            by_run[run.key] = [
                replace(update, name=module, scale=term.weight * update.scale)
                for update in by_run.get(run.key, [])
                if isinstance(update, LowRankUpdate)
            ]
            if not by_run[run.key]:
                del by_run[run.key]


def _is_remark(skip: dict[str, str], collected: Collected) -> bool:
    """Return whether a note of the report is no obstacle, after what `_check` has refused.

    ΔW = 0; a module that may be missing in some adapters; two adapters of several that share none.
    """
    return skip in collected.zero or not skip["module"] or "is missing, but is in" in skip["reason"]


def _first_of(reasons: Sequence[str]) -> str:
    """Return the first reason, and how many more there are."""
    more = len(reasons) - 1
    return reasons[0] + (f" (and {counted(more, 'more module')})" if more else "")


def write(
    result: Result,
    out: Path,
    dtype: str | None = None,
    *,
    record: dict[str, Any] | None = None,
    force: bool = False,
) -> float:
    """Write the merged adapter into the directory `out` as PEFT does: all of it or nothing.

    dtype: one of writer.DTYPES; None for that in which the first adapter stores its factors.
    record: written as record.json, if given.
    force: whether to replace what is there. What was written is read again and compared.

    Returns ‖ΔW − stored‖_F/‖ΔW‖_F over all modules, of the rounding to the dtype.
    """
    stored = writer.write(
        out,
        result.updates,
        writer.dtype_of(dtype) if dtype else result.dtype,
        config=result.config,
        carried=result.carried,
        layouts=result.layouts,
        record=record,
        force=force,
    )
    pairs = [*zip(result.updates, stored, strict=True)]
    whole = np.linalg.norm([compress.norm([(1.0, update)]) for update, _ in pairs])
    lost = np.linalg.norm([compress.norm([(1.0, update), (-1.0, kept)]) for update, kept in pairs])
    return float(lost / whole) if whole else 0.0


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 if nothing was merged."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Merge, report and write; the exit status."""
    if arguments.explain and not arguments.terms:
        command.show([], merging_table.EXPLANATION, arguments)
        return 0
    terms = [combine.parse(text, "") for text in arguments.terms]
    if arguments.out:
        writer.check_free(Path(arguments.out), arguments.force)
    result = merge(
        terms,
        arguments.method,
        Settings(arguments.density, arguments.seed, arguments.keep, arguments.rank),
        options=command.reading_options(arguments),
        rename=arguments.map,
        partly=arguments.partly,
        same_base=arguments.same_base,
        keep_saved=arguments.saved,
        progress=True,
    )
    for skip in result.found.skipped:
        command.warn(parser, skip["reason"])
    command.warn_of_remarks(parser, result.found.other)
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.report or arguments.json:
        read = command.paths_read(result.runs, arguments)
        made_by = store.record("analysis.merge", read, command.recorded(arguments))
    words = []
    if arguments.out:
        out = Path(arguments.out)
        error = write(result, out, arguments.dtype, record=made_by, force=arguments.force)
        words = [_written(result, out, error)]
    _show(result, words, made_by, arguments)
    return 0


def _show(
    result: Result,
    words: Sequence[Statement],
    made_by: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    """Print the report, followed by `words`, and write it to --report with the record."""
    found = result.found
    if arguments.report:
        tables = {name: store.csv_text(*table) for name, table in report.tables(found).items()}
        notes = {"skipped": found.skipped, "other": found.other}
        store.write(arguments.report, report.tensors(found), tables, {**made_by, **notes})
    if arguments.json:
        whole = {"record": made_by, **report.listed(found), "skipped": found.skipped}
        command.emit(store.strict_json(whole))
        return
    blocks = [*merging_table.lines(found), *words]
    command.show(blocks, merging_table.EXPLANATION, arguments)


def _written(result: Result, out: Path, error: float) -> Statement:
    """Say what was written, and what of the adapters besides their updates was not.

    error: of the rounding to the stored dtype.
    """
    ranks = sorted({update.r for update in result.updates})
    of_rank = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    words = f"{out}: {counted(len(result.updates), 'module')} of {of_rank}"
    if any(row["error"] for row in result.found.merged):
        words += f", relative error of the cut {_cut_error(result):.3g}"
    words += f", relative error of rounding {error:.1g}"
    if result.carried:
        words += f", with {counted(len(result.carried), 'tensor')} of {result.runs[0].path}"
    left = {
        other["name"]
        for other in result.found.other
        if "kind" not in other and other["name"] not in result.carried
    }
    if left:
        words += f"; without {counted(len(left), 'tensor')} that the adapters save besides updates"
    return Statement(words + ".")


def _cut_error(result: Result) -> float:
    """Return the relative error of the cut over all modules: ‖ΔW − exact‖_F/‖exact‖_F."""
    # A best cut is orthogonal to what it loses: ‖exact‖² (1 − error²) = ‖ΔW‖².
    rows = [row for row in result.found.merged if row["error"] < 1]
    kept = np.array([row["frobenius_norm"] for row in rows])
    errors = np.array([row["error"] for row in rows])
    exact = kept / np.sqrt(1 - errors**2)
    return float(np.linalg.norm(exact * errors) / np.linalg.norm(exact))


EPILOG = """\
Examples:
  python -m analysis.merge 1:adapters/a 1:adapters/b
  python -m analysis.merge 0.5:adapters/a 0.5:adapters/b --out average/ --rank 16
  python -m analysis.merge 1:a 1:b 1:c --out merged/ --method knots --density 0.3

Exit status: 0 if everything was merged; 2 if nothing was, or for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.merge"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=command.HelpFormatter,
    )
    parser.add_argument("terms", nargs="*", metavar="W:PATH", help="an adapter with its weight")
    parser.add_argument("--out", metavar="DIR", help="write the merged adapter there")
    parser.add_argument("--method", choices=METHODS, default="sum", help="see above (default sum)")
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="cut every module to the best update of this rank; without it the result is kept"
        " whole, but that of ties and dare, which has full rank, is cut to the sum of the ranks",
    )
    shares = ", ".join(f"{share:g} of {method}" for method, share in DENSITY.items())
    parser.add_argument(
        "--density",
        type=float,
        metavar="X",
        help=f"share of the entries that are kept (default {shares})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice that dare makes")
    parser.add_argument(
        "--keep",
        type=int,
        metavar="K",
        help="directions of each adapter that tsv keeps (default the layer's share, d/n of n"
        " adapters)",
    )
    command.add_map_option(parser)
    parser.add_argument(
        "--partly",
        action="store_true",
        help="allow modules that some adapters lack; there they count as ΔW = 0",
    )
    parser.add_argument(
        "--same-base",
        action="store_true",
        help="the adapters have one base although they name it differently",
    )
    parser.add_argument(
        "--saved",
        choices=(saved.FIRST, saved.NONE),
        help="heads, biases and other tensors that are saved whole and differ: take those of the"
        " first adapter, or none (default: an error; equal ones are taken over)",
    )
    command.add_writing_options(parser, writer.DTYPES, usual="that of the first adapter")
    parser.add_argument(
        "--report",
        metavar="DIR",
        help=f"write {', '.join(report.FILES)} and {store.RECORD} there",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--explain", action="store_true", help="say what the columns mean; needs no adapter"
    )
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
