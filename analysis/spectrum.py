"""Show how the update in a checkpoint is spread over its singular directions.

PATH is a checkpoint directory (a PEFT adapter, MultiLoRA, a stored full fine-tuning; a whole model
with --base), a file of factors, or a run directory of checkpoint-N; --formats lists what can be
read. One table a checkpoint, one line a projection, medians over its modules; then every two runs,
and the steps of a run, are compared module by module. ΔW = W_tuned − W0 has singular values
s₁ ≥ s₂ ≥ …, and energy Σs².
"""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError, checkpoint, command, names, results, store
from analysis.formats import Options
from analysis.names import kind_of, layer_of
from analysis.numerics import decompose, metrics, null, parallel
from analysis.pairs import combine, dominance
from analysis.results import Row, Spectra
from analysis.tables import dominance as dominance_table
from analysis.tables import spectrum as spectrum_table
from analysis.update import DenseUpdate, Entry, LowRankUpdate, Other, Skipped, Update

SpectrumOrError = decompose.Spectrum | CheckpointError
Source = tuple[checkpoint.Run, Callable[[], Iterator[Entry]]]


def analyse(
    paths: str | Path | Iterable[str | Path | checkpoint.Run],
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    terms: Sequence[combine.Term] = (),
    modules: str | None = None,
    method: str = "auto",
    progress: bool = False,
) -> Spectra:
    """The spectrum of every update in the checkpoints at `paths`.

    paths: one path or several; a directory of checkpoint-N stands for all of them. base: the
    model that was trained; options: that, and all else there is to say about reading. terms: of a
    weighted sum of checkpoints, a run "combined", with the average of their factors, a run
    "factors". modules: a
    regular expression that a module's name must contain. method: see `decompose.spectrum`.
    progress: a bar on stderr where it takes over two seconds. What cannot be analysed stands in
    `skipped`, a whole checkpoint under module "". Raises CheckpointError for a path that does
    not exist, ValueError for a method or an expression that is none.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = options or Options(base=None if base is None else Path(base))
    wanted = names.expression(modules)
    found = Spectra()
    sources: list[Source] = [
        (run, partial(checkpoint.scan, run, options)) for run in checkpoint.runs(listed)
    ]
    if terms:
        place = terms[0].path
        for name, method_of in (("combined", combine.sums), ("factors", combine.averages)):
            sources.append((checkpoint.Run(place, name, None), partial(method_of, terms, options)))
    for run, entries in sources:
        try:
            _analyse_run(run, entries, wanted, method, progress, found)
        except CheckpointError as error:
            found.skipped.append({"run": run.key, "module": "", "reason": str(error)})
        except MemoryError:
            reason = f"{run.path}: does not fit into memory"
            found.skipped.append({"run": run.key, "module": "", "reason": reason})
    return found


def of_updates(entries: Iterable[Entry], run: checkpoint.Run) -> Spectra:
    """The spectra of updates that are at hand, as `analyse` gives those of a checkpoint."""
    found = Spectra()
    _analyse_run(run, lambda: iter(entries), names.expression(None), "auto", False, found)
    return found


def _analyse_run(
    run: checkpoint.Run,
    entries: Callable[[], Iterator[Entry]],
    wanted: re.Pattern[str],
    method: str,
    progress: bool,
    found: Spectra,
) -> None:
    """Add what is in one checkpoint to `found`."""

    def updates() -> Iterator[Update]:
        for entry in entries():
            if isinstance(entry, Other):
                found.other.append({"run": run.key, "name": entry.name, "what": entry.what})
            elif wanted.search(entry.name):
                if isinstance(entry, Skipped):
                    skip(entry.name, entry.reason)
                else:
                    yield entry

    def skip(module: str, reason: str) -> None:
        found.skipped.append({"run": run.key, "module": module, "reason": reason})

    for update, result in _spectra(updates(), method, progress, run.key):
        if isinstance(result, CheckpointError):
            skip(update.name, str(result))
            continue
        line = row(update, result, run)
        if line["key"] in found.s:
            skip(update.name, f"{run.path}: {update.name}: stands twice in the checkpoint")
            continue
        found.rows.append(line)
        found.s[line["key"]] = result.s


def _spectra(
    updates: Iterable[Update], method: str, progress: bool, label: str
) -> Iterator[tuple[Update, SpectrumOrError]]:
    """Each update with its spectrum, or the error that it raised; in order."""
    for kind, group in itertools.groupby(updates, type):
        if kind is LowRankUpdate:
            yield from parallel.in_order(partial(_outcome, method=method), group)
        else:
            # To read is to know the size: the matrices themselves are loaded one by one.
            for update in parallel.with_bar(list(group), progress, label, "matrix"):
                yield update, _outcome(update, method)


def _outcome(update: Update, method: str) -> SpectrumOrError:
    try:
        return decompose.spectrum(update, method)
    except CheckpointError as error:
        return error
    except MemoryError:
        return CheckpointError(f"{update.source}: {update.name}: does not fit into memory")


def row(update: Update, spectrum: decompose.Spectrum, run: checkpoint.Run) -> Row:
    """The line of one update in the table, by store.COLUMNS; None where a number is undefined."""
    s, (d_out, d_in) = spectrum.s, update.shape
    floor = spectrum.floor
    rank = decompose.rank(s, spectrum.error_bound, update, floor)
    line: Row = {
        "key": names.update_key(run.key, update.name, update.part),
        "run": run.name,
        "method": update.method,
        "step": run.step,
        "module": update.name,
        "layer": layer_of(update.name),
        "kind": kind_of(update.name),
        "part": update.part or None,
        "d_out": d_out,
        "d_in": d_in,
        "capacity": update.capacity,
        "rank": rank,
        "spectral_norm": metrics.spectral_norm(s),
        "frobenius_norm": metrics.frobenius_norm(s),
        "nuclear_norm": metrics.nuclear_norm(s),
        "floor": floor,
        "above_floor": rank if floor is None else metrics.rank(s, floor),
        "algorithm": spectrum.algorithm,
        "error_bound": spectrum.error_bound,
    }
    if s[0] > 0:
        line |= _concentration(s, d_out, d_in, dense=isinstance(update, DenseUpdate))
    return {column: line.get(column) for column in results.COLUMNS}


def _concentration(s: np.ndarray, d_out: int, d_in: int, dense: bool) -> Row:
    """The ratios, which are undefined for ΔW = 0."""
    d = min(d_out, d_in)
    return {
        **{f"top_share_{k}": metrics.top_share(s, k) for k in (1, 4, 16)},
        "top_share_1pct": metrics.top_share(s, max(1, math.ceil(d / 100))),
        "top_share_10pct": metrics.top_share(s, max(1, math.ceil(d / 10))),
        "effective_rank": metrics.effective_rank(s),
        "energy_entropy_rank": metrics.energy_entropy_rank(s),
        "stable_rank": metrics.stable_rank(s),
        "participation_ratio": metrics.participation_ratio(s),
        "gini": metrics.gini(s),
        **{f"energy_rank_{q}": int(metrics.energy_rank(s, q / 100)) for q in (50, 90, 99)},
        "utilisation": metrics.utilisation(s, s.size),
        "democracy": null.democracy(s, d_out, d_in),
        "outliers": null.outliers(s, d_out, d_in) if dense else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, all analysed; 1, some skipped; 2, nothing."""
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Analyse, complain of what was skipped, write the rest; the exit status."""
    if not arguments.paths and not arguments.combine:
        parser.error("the following arguments are required: PATH, or --combine")
    runs = checkpoint.runs(arguments.paths)
    found = analyse(
        runs,
        options=command.options(arguments),
        terms=[combine.parse(text) for text in arguments.combine],
        modules=arguments.modules,
        method=arguments.method,
        progress=True,
    )
    for skip in found.skipped:
        command.complain(parser, skip["reason"])
    command.complain_of_steps(parser, runs)
    if arguments.strict and found.skipped:
        return 2
    if found.rows or arguments.json:
        _write(found, arguments, runs)
    if arguments.figures and any(row["rank"] > 0 for row in found.rows):
        _draw(found, Path(arguments.figures), arguments.metric)
    elif arguments.figures and found.rows:
        command.complain(parser, "--figures: no update has a value above 0; nothing to draw")
    for path in _empty(found, runs) if found.rows else ():
        command.complain(parser, f"{path}: no update to analyse; expected at least one")
    if not found.rows and not found.skipped:
        paths = ", ".join([*arguments.paths, *arguments.combine]) or "no path"
        command.complain(parser, f"{paths}: no update to analyse; expected at least one")
    return 2 if not found.rows else 1 if found.skipped else 0


def _empty(found: Spectra, runs: Iterable[checkpoint.Run]) -> list[Path]:
    """The checkpoints with nothing analysed and nothing skipped."""
    analysed = {(row["run"], row["step"]) for row in found.rows}
    skipped = {skip["run"] for skip in found.skipped}
    return [
        run.path for run in runs if (run.name, run.step) not in analysed and run.key not in skipped
    ]


def _write(found: Spectra, arguments: argparse.Namespace, runs: Sequence[checkpoint.Run]) -> None:
    """The results, to --out and to stdout."""
    several = len(dominance.checkpoints(found.rows)) > 1
    compared = dominance.findings(found) if several and (arguments.out or not arguments.csv) else []
    if arguments.out or arguments.json:
        terms = [combine.parse(text).path for text in arguments.combine]
        read = [*command.inputs(arguments, runs), *terms]
        made_by = store.record("analysis.spectrum", read, vars(arguments))
    if arguments.out and found.rows:
        store.save(arguments.out, found, made_by)
        if several:
            text = store.csv_text(dominance.rows(compared), dominance.COLUMNS)
            store.write_text(Path(arguments.out) / dominance.TABLE, text)
    if arguments.json:
        result = {
            "record": made_by,
            "rows": found.rows,
            "summary": spectrum_table.summary(found.rows),
        }
        if several:
            result["comparison"] = dominance.rows(compared)
            result["verdicts"] = [dominance.as_json(finding) for finding in compared]
        command.emit(store.strict_json({**result, "skipped": found.skipped, "other": found.other}))
    elif arguments.csv:
        command.emit(store.csv_text(command.printable_rows(found.rows)).rstrip("\n"))
    else:
        lines = [
            *spectrum_table.lines(found.rows),
            *spectrum_table.EXPLANATION.splitlines(),
            *_remarks(found),
        ]
        if several:
            lines += ["", *dominance_table.lines(compared)]
        command.emit("\n".join(map(names.printable, lines)))


def _draw(found: Spectra, directory: Path, metric: str) -> None:
    """The spectra of all checkpoints, and one number by layer and projection."""
    from analysis.figures import (
        spectrum as spectrum_figures,  # matplotlib takes longer to import than most to analyse
    )

    spectrum_figures.save(spectrum_figures.compare_spectra(found), directory / "spectra")
    if any(row["layer"] is not None and row[metric] is not None for row in found.rows):
        spectrum_figures.save(spectrum_figures.by_layer(found.rows, metric), directory / "layers")


def _remarks(found: Spectra) -> Iterator[str]:
    faint = sum(_mostly_below_floor(row) for row in found.rows)
    if faint:
        yield f"In {faint} modules more than half of the values lie below the rounding noise."
    if found.other:
        why = "heads, biases, what the base lacks"
        yield f"{len(found.other)} tensors are not analysed ({why}): see --json."


def _mostly_below_floor(row: Row) -> bool:
    moved = row["spectral_norm"] > 0
    return row["floor"] is not None and moved and 2 * row["above_floor"] < row["capacity"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.spectrum",
        description=__doc__,
        epilog=spectrum_table.EXPLANATION
        + " Exit status: 0, every update was analysed; 1, some were skipped;"
        " 2, nothing was analysed, or bad usage.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    parser.add_argument(
        "--combine",
        nargs="+",
        default=[],
        metavar="WEIGHT:PATH",
        help="also the weighted sum of these checkpoints, and the average of their factors",
    )
    parser.add_argument(
        "--method",
        choices=("auto", "svd"),
        default="auto",
        help="svd: slower, and exact far below s₁ for dense updates too",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail, status 2, where anything was skipped"
    )
    parser.add_argument(
        "--figures", metavar="DIR", help="draw spectra and layers, .png and .pdf, there"
    )
    parser.add_argument(
        "--metric",
        choices=spectrum_table.MEASURES,
        default="top_share_1",
        metavar="COLUMN",
        help="what --figures draws by layer and projection: a number of --csv (top_share_1)",
    )
    files = f"{store.TABLE}, {store.SPECTRA}, {store.RECORD} there"
    command.add_output(parser, f"{files}, and {dominance.TABLE} of several checkpoints")
    command.add_reading(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
