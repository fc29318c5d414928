"""Show how the update in each checkpoint is spread over its singular directions.

PATH is a checkpoint directory (a PEFT adapter, MultiLoRA, a stored full fine-tuning; a whole model
with --base), a file of factors, or a run directory of checkpoint-N; --formats lists what can be
read. Says in words what was found. Prints a table with one line per kind of module, or with one
column per checkpoint, of medians over modules; then compares every two runs, and the steps of each
run, module by module.
ΔW = W_tuned − W0 has singular values s₁ ≥ s₂ ≥ … and energy Σs².
"""

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from analysis import (
    CheckpointError,
    UserError,
    checkpoint,
    command,
    extras,
    names,
    results,
    store,
)
from analysis.base import deciles, moments
from analysis.base import vectors as base_vectors
from analysis.base.moments import Moments
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.names import kind_of, layer_of
from analysis.numerics import (
    decompose,
    denoise,
    device,
    function_space,
    metrics,
    null,
    parallel,
    tails,
    topk,
)
from analysis.numerics import partial as part_of
from analysis.numerics.decompose import Method
from analysis.pairs import combine, dominance
from analysis.pairs.dominance import Finding
from analysis.process import start
from analysis.results import AgainstBase, Row, Spectra
from analysis.tables import dominance as dominance_table
from analysis.tables import function as function_table
from analysis.tables import spectrum as spectrum_table
from analysis.tables.text import Block, counted
from analysis.update import DenseUpdate, Entry, Other, Skipped, Update
from analysis.work import matrices
from analysis.work.matrices import Decomposed, Matrices

Source = tuple[Run, Callable[[], Iterator[Entry]]]
LEGENDS = (
    spectrum_table.EXPLANATION,
    dominance_table.EXPLANATION,
    function_table.EXPLANATION,
    function_table.BASE_EXPLANATION,
)
BASE_TABLE, BOUNDS = "base_deciles.csv", "bounds.csv"
# The row of an update, its singular values and its rows of bounds.csv; or why it was not analysed;
# or another tensor.
Result = tuple[Row, np.ndarray, list[Row]] | Skipped | Other


def analyse(
    paths: str | Path | Iterable[str | Path | checkpoint.Run],
    *,
    base: str | Path | None = None,
    options: Options | None = None,
    terms: Sequence[combine.Term] = (),
    modules: str | None = None,
    method: str | Method = "auto",
    activations: str | Path | None = None,
    progress: bool = False,
) -> Spectra:
    """Return the spectrum of every update in the checkpoints at `paths`.

    paths: one path or several; a directory of checkpoint-N stands for all of its checkpoints.
    base: the model that was fine-tuned; short for `options.base`.
    options: what the files of the checkpoints do not say.
    terms: checkpoints with weights; their weighted sum becomes a further run, "combined", and the
        average of their factors another, "factors" (with -2, … if a run has that name).
    modules: regular expression that is searched for in the names of modules.
    method: how dense updates are decomposed, by name or with settings (`decompose.Method`).
    activations: directory of the inputs' second moments (`multilora.activations`); the rows then
        also have the columns FUNCTION, None for a module that has no moment there.
    progress: show a bar on stderr, if that is a terminal, if a checkpoint takes over two seconds.

    What cannot be analysed is listed in `skipped`, a whole checkpoint with module "". Raises
    CheckpointError if a path does not exist, UserError if `base` and `options.base` differ,
    `modules` is not a regular expression or `activations` are those of another base, and ValueError
    for an unknown `method`.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    options = checkpoint.with_base(options, base)
    return of_runs(
        checkpoint.runs(listed, options.revision),
        options=options,
        terms=terms,
        modules=modules,
        method=method,
        activations=activations,
        progress=progress,
    )


def of_runs(
    runs: Sequence[Run],
    *,
    options: Options,
    terms: Sequence[combine.Term] = (),
    modules: str | None = None,
    method: str | Method = "auto",
    activations: str | Path | None = None,
    progress: bool = False,
    dense: Matrices | None = None,
) -> Spectra:
    """Return the spectra of `runs`, which `checkpoint.runs` gave; otherwise as `analyse`.

    dense: how dense updates are decomposed; by default by `method`, here, keeping nothing.
    """
    wanted = names.expression(modules)
    method = Method(method) if isinstance(method, str) else method
    sources: list[Source] = [(run, partial(checkpoint.scan, run, options)) for run in runs]
    sources += _combined(terms, options, taken={run.name for run in runs})
    inputs = None
    if activations is not None:
        inputs = moments.open_moments(activations)
        for path in dict.fromkeys([*(run.path for run in runs), *(term.path for term in terms)]):
            moments.check_trained(inputs, Path(path))
        if options.base is not None:
            moments.check_base(inputs, options.base)
    dense = dense or Matrices(method)
    dense.ahead(partial(_dense, sources, wanted), progress)
    return _gathered(
        (run, result)
        for run, read in sources
        for result in _with_reason(
            run, _results(run, read, wanted, method, progress, dense, inputs)
        )
    )


def of_updates(entries: Iterable[Entry], run: Run) -> Spectra:
    """Return the spectra of updates in memory, in the form that `analyse` returns."""
    analysed = _results(
        run,
        lambda: iter(entries),
        names.expression(None),
        Method(),
        progress=False,
        dense=Matrices(),
    )
    return _gathered((run, result) for result in analysed)


# Steps of the analysis


def _combined(terms: Sequence[combine.Term], options: Options, taken: set[str]) -> list[Source]:
    """The weighted sum of `terms` and the average of their factors, under names not in `taken`."""
    if not terms:
        return []
    path = terms[0].path
    return [
        (Run(path, names.unique("combined", taken), None), partial(combine.sums, terms, options)),
        (
            Run(path, names.unique("factors", taken), None),
            partial(combine.averages, terms, options),
        ),
    ]


def _gathered(analysed: Iterable[tuple[Run, Result]]) -> Spectra:
    """The results of all runs as one `Spectra`, each key once."""
    spectra = Spectra()
    for run, result in analysed:
        if isinstance(result, Other):
            spectra.other.append(result.listed(run.key))
        elif isinstance(result, Skipped):
            spectra.skipped.append(_skip(run, result.name, result.reason))
        else:
            line, s, bounds = result
            if line["key"] in spectra.s:
                reason = f"{run.path}: {line['module']}: appears twice in the checkpoint"
                spectra.skipped.append(_skip(run, line["module"], reason))
            else:
                spectra.rows.append(line)
                spectra.s[line["key"]] = s
                spectra.bounds.extend(bounds)
    whole = [row for row in spectra.rows if row["algorithm"] not in results.PARTIAL]
    drawn = null.drawn(whole)
    for line in whole:
        if (line["d_out"], line["d_in"], line["r"]) in drawn and line["spectral_norm"] > 0:
            line |= _against_null(spectra.s[line["key"]], line)
    return spectra


def _against_null(s: np.ndarray, line: Row) -> Row:
    """The columns that compare the singular values of a row with those of random updates."""
    d_out, d_in, r = line["d_out"], line["d_in"], line["r"]
    dense = r is None
    of_matrix = dense and line["algorithm"] != "kronecker"  # which has no null of its own
    return {
        "democracy": null.democracy(s, d_out, d_in, r or min(d_out, d_in), dense=dense),
        "outliers": null.outliers(s, d_out, d_in) if of_matrix else None,
    }


def _skip(run: Run, module: str, reason: str) -> dict[str, str]:
    return {"run": run.key, "module": module, "reason": reason}


def _with_reason(run: Run, analysed: Iterator[Result]) -> Iterator[Result]:
    """Yield the results of a checkpoint and, if reading it fails, the reason as the last one."""
    try:
        yield from analysed
    except CheckpointError as error:
        yield Skipped("", str(error))
    except MemoryError:
        yield Skipped("", f"{run.path}: does not fit into memory")


def _dense(sources: Sequence[Source], wanted: re.Pattern[str]) -> Iterator[matrices.Listed]:
    """Yield the dense updates of all checkpoints, as far as these can be read."""
    for run, read in sources:
        with contextlib.suppress(CheckpointError, MemoryError):  # which `_with_reason` tells
            for entry in read():
                if isinstance(entry, DenseUpdate) and wanted.search(entry.name):
                    yield run, entry


def _results(
    run: Run,
    read: Callable[[], Iterator[Entry]],
    wanted: re.Pattern[str],
    method: Method,
    progress: bool,
    dense: Matrices,
    inputs: Moments | None = None,
) -> Iterator[Result]:
    """Yield the results of one checkpoint in the order of its file.

    run: names the rows.
    read: yields the entries of the checkpoint.
    wanted: is searched for in the names of updates; the others are left out.
    method, progress, dense: as for `of_runs`.
    inputs: the second moments of the modules' inputs, if the columns FUNCTION are asked for.
    """
    of_inputs = _of_inputs(read, inputs)
    entries = (e for e in read() if isinstance(e, Other) or wanted.search(e.name))
    for is_dense, group in itertools.groupby(_marked(entries), key=itemgetter(0)):
        of_group = (entry for _, entry in group)
        decomposed: Iterable[Decomposed]
        if is_dense:
            # To list dense updates takes little memory: each matrix is loaded when it is needed.
            listed = parallel.with_bar(list(of_group), progress, run.key, "matrix")
            decomposed = dense.in_order(run, listed)
        else:
            small = parallel.in_order(partial(matrices.decomposed, method=method), of_group)
            counted = parallel.with_bar(small, progress, run.key, "module")
            decomposed = (result for _, result in counted)
        for result in decomposed:
            if isinstance(result, Skipped | Other):
                yield result
                continue
            update, spectrum = result
            try:
                function = (
                    {} if of_inputs is None else _function_row(update, of_inputs, method.name)
                )
            except CheckpointError as error:
                yield Skipped(update.name, str(error))
            except MemoryError:
                what = f"{update.source}: {update.name}: does not fit into memory"
                yield Skipped(update.name, what)
            else:
                line = row(update, spectrum, run) | function
                yield line, spectrum.s, part_of.bounds(line["key"], spectrum)


def _marked(entries: Iterable[Entry]) -> Iterator[tuple[bool, Entry]]:
    """Mark each entry: True from a dense update up to the next low-rank one, else False."""
    dense = False
    for entry in entries:
        if not isinstance(entry, Skipped | Other):
            dense = isinstance(entry, DenseUpdate)
        yield dense, entry


def _of_inputs(
    read: Callable[[], Iterator[Entry]], inputs: Moments | None
) -> Callable[[Update], np.ndarray | None] | None:
    """Return update → the second moment of its inputs, None if that is missing; None without any.

    The names of modules are matched for all updates of a checkpoint together.
    """
    if inputs is None:
        return None
    names = inputs.aligned(e.name for e in read() if not isinstance(e, Skipped | Other))
    return partial(inputs.of, names=names)


def _function_row(
    update: Update, of_inputs: Callable[[Update], np.ndarray | None], method: str
) -> Row:
    """The columns FUNCTION of an update, empty if the second moment of its inputs is missing."""
    empty: Row = dict.fromkeys(results.FUNCTION)
    C = of_inputs(update)
    if C is None:
        return empty
    found = function_space.function_space(decompose.decomposition(update, method), C)
    return empty if found is None else empty | function_space.columns(found, C)


def row(update: Update, spectrum: decompose.Spectrum, run: Run) -> Row:
    """Return the row of one update, keyed by `results.COLUMNS`; None if a number is undefined.

    The columns that need random updates are filled when all rows are there (`null.drawn`).
    """
    d_out, d_in = update.shape
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
        "r": None if isinstance(update, DenseUpdate) else update.r,
        "capacity": update.capacity,
        "floor": spectrum.floor,
        "algorithm": spectrum.algorithm,
        "error_bound": spectrum.error_bound,
    }
    known = _whole if spectrum.norm is None else part_of.columns
    line |= known(update, spectrum)
    return {column: line.get(column) for column in results.COLUMNS}


def _whole(update: Update, spectrum: decompose.Spectrum) -> Row:
    """The columns that are known from all singular values."""
    s, (d_out, d_in), floor = spectrum.s, update.shape, spectrum.floor
    rank = decompose.rank(s, spectrum.error_bound, update, floor)
    line: Row = {
        "rank": rank,
        "spectral_norm": metrics.spectral_norm(s),
        "frobenius_norm": metrics.frobenius_norm(s),
        "nuclear_norm": metrics.nuclear_norm(s),
        "above_floor": rank if floor is None else metrics.rank(s, floor),
    }
    if s[0] > 0:
        line |= _concentration(s, d_out, d_in)
        line |= _denoised(spectrum, d_out=d_out, d_in=d_in)
        if isinstance(update, DenseUpdate):
            tail = tails.hill(s, max(floor or 0.0, spectrum.error_bound))
            line |= zip(results.HILL, tail or (), strict=False)
    return line


def _concentration(s: np.ndarray, d_out: int, d_in: int) -> Row:
    """The columns that are ratios, undefined for ΔW = 0."""
    d = min(d_out, d_in)
    return {
        **{name: metrics.top_share(s, j) for name, j in topk.counted(d).items()},
        "effective_rank": metrics.effective_rank(s),
        "energy_entropy_rank": metrics.energy_entropy_rank(s),
        "stable_rank": metrics.stable_rank(s),
        "participation_ratio": metrics.participation_ratio(s),
        "gini": metrics.gini(s),
        "energy_rank_50": int(metrics.energy_rank(s, 0.5)),
        "energy_rank_90": int(metrics.energy_rank(s, 0.9)),
        "energy_rank_99": int(metrics.energy_rank(s, 0.99)),
        "utilisation": metrics.utilisation(s, s.size),
    }


def _denoised(spectrum: decompose.Spectrum, d_out: int, d_in: int) -> Row:
    """The columns `results.DENOISED`; empty without a floor, or if nothing can be estimated."""
    if spectrum.floor is None:
        return {}
    estimate = denoise.denoised(spectrum.s, d_out, d_in, spectrum.floor, spectrum.noise)
    if estimate is None or not estimate[0] > 0:
        return {}
    return {
        "effective_rank_denoised": metrics.effective_rank(estimate),
        "gini_denoised": metrics.gini(estimate),
        "top_share_1_denoised": metrics.top_share(estimate, 1),
    }


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: everything was analysed; 1: some updates were skipped; 2: nothing was analysed, or bad usage.
    """
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Analyse, report what was skipped, write the results; the exit status."""
    if not arguments.paths and not arguments.combine:
        if arguments.explain:
            command.show([], "\n\n".join(LEGENDS), arguments)
            return 0
        parser.error("the following arguments are required: PATH, or --combine")
    method = _method(arguments)
    if arguments.base_deciles and not arguments.base:
        parser.error("--base-deciles compares with the base; expected --base too")
    if arguments.page:
        command.check_page(Path(arguments.page), "--page", force=arguments.force)
    runs = checkpoint.runs(arguments.paths, arguments.revision)
    terms = [combine.parse(text) for text in arguments.combine]
    read = partial(_read, runs, terms, arguments)
    options = command.reading_options(arguments)
    settings = {
        "options": options,
        "method": method.name,
        "k": method.k,
        "seconds": method.seconds,
        "combine": arguments.combine,
        "device": arguments.device,
    }
    kept = command.kept(parser, "analysis.spectrum", read, settings, arguments)
    with command.cluster(parser, arguments) as cluster:
        spectra = of_runs(
            runs,
            options=options,
            terms=terms,
            modules=arguments.modules,
            method=method,
            activations=arguments.activations,
            progress=True,
            dense=Matrices(method, kept, cluster, arguments.device),
        )
    for skip in spectra.skipped:
        command.warn(parser, skip["reason"])
    _warn_of_unknown_inputs(parser, spectra, arguments)
    command.warn_of_remarks(parser, spectra.other)
    command.warn_of_unread_steps(parser, runs)
    if arguments.strict and spectra.skipped:
        return 2
    unread = False
    if spectra.rows or arguments.json:
        against = _against_base(parser, runs, arguments) if arguments.base_deciles else None
        _write(spectra, read(), arguments, against)
        unread = against is not None and bool(against.skipped)
        if kept and spectra.rows:
            kept.finish()
    lacking = bool(arguments.page and spectra.rows) and command.lacks(parser, spectra, runs)
    if arguments.page and spectra.rows and not lacking:
        command.write_page(Path(arguments.page), spectra)
    if arguments.figures and spectra.rows:
        _draw(parser, spectra, Path(arguments.figures), arguments.metric)
    _warn_of_empty(parser, spectra, runs, arguments)
    if not spectra.rows:
        return 2
    return 1 if spectra.skipped or lacking or unread else 0


def _method(arguments: argparse.Namespace) -> Method:
    """Return how dense updates are to be decomposed; UserError if options contradict."""
    name, k, seconds = arguments.method, arguments.k, arguments.seconds
    if k is not None and name != "topk" and seconds is None:
        raise UserError(f"--k {k}: is for --method topk; expected that, or --seconds")
    if k is not None and k < 1:
        raise UserError(f"--k {k}; expected at least 1")
    if seconds is not None and (name != "auto" or not seconds > 0):
        raise UserError(f"--seconds {seconds:g}: expected more than 0, and --method auto")
    partly = f"--method {name}" if seconds is None else f"--seconds {seconds:g}"
    if name in results.PARTIAL or seconds is not None:
        for option in ("page", "figures", "activations"):
            if getattr(arguments, option):
                raise UserError(f"--{option}: needs whole spectra; {partly} does not compute them")
        if arguments.device != device.CPU:
            raise UserError(f"--device {arguments.device}: {partly} computes on the CPU")
    return Method(name, k or decompose.K, seconds)


def _read(
    runs: Sequence[Run], terms: Sequence[combine.Term], arguments: argparse.Namespace
) -> list[Path | Run]:
    """List everything that the command reads."""
    combined = (checkpoint.at(term.path, arguments.revision) for term in terms)
    return [*command.paths_read(runs, arguments), *combined]


def _warn_of_unknown_inputs(
    parser: argparse.ArgumentParser, spectra: Spectra, arguments: argparse.Namespace
) -> None:
    """Name the modules that have no second moment; UserError if none has one."""
    moved = [row for row in spectra.rows if row["spectral_norm"] > 0]
    if not arguments.activations or not moved:
        return
    missing = list(dict.fromkeys(r["module"] for r in moved if r["function_norm"] is None))
    if len(missing) == len({row["module"] for row in moved}) and not spectra.skipped:
        raise UserError(
            f"--activations {arguments.activations}: has no second moment of {missing[0]}, nor of"
            " any other module of the checkpoints; expected that of their base"
        )
    if missing:
        command.warn(
            parser,
            f"--activations {arguments.activations}: has no second moment of"
            f" {counted(len(missing), 'module')}, such as {missing[0]}: empty columns",
        )


def _against_base(
    parser: argparse.ArgumentParser, runs: Sequence[Run], arguments: argparse.Namespace
) -> AgainstBase:
    """What the updates do to the spectrum of their base; what is skipped is said."""
    against = deciles.analyse(
        runs,
        arguments.base,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        cache=base_vectors.default_cache(),
        say=partial(command.warn, parser),
        progress=True,
    )
    for skip in against.skipped:
        command.warn(parser, skip["reason"])
    return against


def _write(
    spectra: Spectra,
    read: Sequence[Path | Run],
    arguments: argparse.Namespace,
    against: AgainstBase | None,
) -> None:
    """Write the results to --out and to stdout.

    read: the inputs to record; against: of `_against_base`, None if it was not asked for.
    """
    several = len(dominance.checkpoints(spectra.rows)) > 1 and not spectra.bounds
    compared = several and (arguments.out or not arguments.csv)
    findings = dominance.findings(spectra) if compared else []
    made_by: dict[str, Any] = {}
    if arguments.out or arguments.json:
        made_by = store.record("analysis.spectrum", read, command.recorded(arguments))
        if arguments.activations:
            made_by["activations"] = moments.fingerprint(arguments.activations)
    if arguments.out and spectra.rows:
        further = {}
        if findings:
            further[dominance.TABLE] = store.csv_text(dominance.rows(findings), dominance.COLUMNS)
        if spectra.bounds:
            further[BOUNDS] = store.csv_text(spectra.bounds, results.BOUNDS)
        if against is not None:
            further[BASE_TABLE] = store.csv_text(against.rows, deciles.ROW_COLUMNS)
        store.save(arguments.out, spectra, made_by, further)
    if arguments.json:
        base = {} if against is None else {"base_deciles": against.rows}
        command.emit(store.strict_json(_json(spectra, findings, made_by) | base))
    elif arguments.csv:
        rows = command.printable_rows(spectra.rows)
        command.emit(store.csv_text(rows, results.columns(rows)).rstrip("\n"))
    else:
        shown = (True, findings, arguments.activations, against is not None)
        legends = [legend for legend, wanted in zip(LEGENDS, shown, strict=True) if wanted]
        blocks = list(_blocks(spectra, findings))
        if arguments.activations:
            blocks += ["", *function_table.lines(spectra.rows)]
        if against is not None:
            blocks += ["", *function_table.base_lines(against.rows)]
        command.show(blocks, "\n\n".join(legends), arguments)


def _json(spectra: Spectra, findings: Sequence[Finding], made_by: dict[str, Any]) -> Row:
    """The object that --json prints."""
    result: Row = {
        "record": made_by,
        "rows": spectra.rows,
        "summary": spectrum_table.summary(spectra.rows),
    }
    if spectra.bounds:
        result["bounds"] = spectra.bounds
    if findings:
        result["comparison"] = dominance.rows(findings)
        result["verdicts"] = [dominance.as_json(finding) for finding in findings]
    return {**result, "skipped": spectra.skipped, "other": spectra.other}


def _blocks(spectra: Spectra, findings: Sequence[Finding]) -> Iterator[Block]:
    """Yield what is printed by default: the result in words, the table, the comparisons."""
    if findings:
        yield dominance_table.statement(findings)
        yield str(spectrum_table.statement(spectra.rows))
        yield from dominance_table.contrary(findings)
    elif spectra.rows:
        yield spectrum_table.statement(spectra.rows)
    yield ""
    yield from spectrum_table.lines(spectra)
    yield ""
    yield from spectrum_table.remarks(spectra.rows, spectra.other)
    if findings:
        yield ""
        yield from dominance_table.lines(findings)


def _draw(parser: argparse.ArgumentParser, spectra: Spectra, directory: Path, metric: str) -> None:
    """Draw the spectra of all checkpoints, and `metric` by layer and kind."""
    if not any(row["rank"] > 0 for row in spectra.rows):
        command.warn(parser, "--figures: no update has a value above 0; nothing to draw")
        return
    # Importing matplotlib takes longer than most analyses.
    with extras.named():
        from analysis.figures import spectrum as spectrum_figures

    store.save_figure(spectrum_figures.compare_spectra(spectra), directory / "spectra")
    if any(row["layer"] is not None and row[metric] is not None for row in spectra.rows):
        store.save_figure(spectrum_figures.by_layer(spectra.rows, metric), directory / "layers")


def _warn_of_empty(
    parser: argparse.ArgumentParser,
    spectra: Spectra,
    runs: Sequence[Run],
    arguments: argparse.Namespace,
) -> None:
    """Name each checkpoint in which nothing was analysed or skipped; or all, if none had any."""
    reason = "no update to analyse; expected at least one"
    if spectra.rows:
        analysed = {(row["run"], row["step"]) for row in spectra.rows}
        skipped = {skip["run"] for skip in spectra.skipped}
        for run in runs:
            if (run.name, run.step) not in analysed and run.key not in skipped:
                command.warn(parser, f"{run.path}: {reason}")
    elif not spectra.skipped:
        paths = ", ".join([*arguments.paths, *arguments.combine]) or "no path"
        command.warn(parser, f"{paths}: {reason}")


EPILOG = """\
Examples:
  python -m analysis.spectrum runs/lora/checkpoint-500
  python -m analysis.spectrum adapters/a adapters/b --explain
  python -m analysis.spectrum tuned/ --base base/ --modules q_proj --out dw/

Exit status: 0 if every update was analysed; 1 if some were skipped; 2 if nothing was analysed, or
for bad usage."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.spectrum"),
        description=__doc__,
        formatter_class=command.HelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    parser.add_argument(
        "--combine",
        nargs="+",
        action="extend",
        default=[],
        metavar="WEIGHT:PATH",
        help="also analyse the weighted sum of these checkpoints, 1:a -1:b for a difference, and"
        " the average of their factors",
    )
    parser.add_argument(
        "--method",
        choices=decompose.METHODS,
        default="auto",
        help="of dense updates: svd, slower, but accurate far below s₁; topk, the --k largest"
        " values; density, estimates for matrices that are too large to decompose",
    )
    parser.add_argument(
        "--k", type=int, metavar="K", help=f"values of --method topk (default {decompose.K})"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="use density, or topk, for a dense update whose whole spectrum would take longer on"
        f" one core of {decompose.RATE / 1e9:g} GFlop/s",
    )
    parser.add_argument(
        "--activations",
        metavar="DIR",
        help="also the spectrum of ΔW C^½, from the second moments C of the modules' inputs that"
        " multilora.activations wrote there",
    )
    parser.add_argument(
        "--base-deciles",
        action="store_true",
        help="with --base, also how the singular values and directions of W0 change, by decile, and"
        " what bfloat16 would not show of ΔW; takes long",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail with status 2 if anything was skipped"
    )
    parser.add_argument(
        "--figures", metavar="DIR", help="draw spectra and layers, .png and .pdf, there"
    )
    command.add_page_options(parser)
    parser.add_argument(
        "--metric",
        choices=spectrum_table.MEASURES,
        default="top_share_1",
        metavar="COLUMN",
        help="the number of --csv that --figures draws by layer and kind (default top_share_1)",
    )
    files = f"{store.TABLE}, {store.SPECTRA}, {store.RECORD}"
    command.add_output_options(parser, f"{files} (and {dominance.TABLE} of several checkpoints)")
    command.add_reading_options(parser)
    command.add_work_options(parser).add_argument(
        "--device",
        choices=device.NAMES,
        default=device.CPU,
        help="decompose them on the CPU (the default) or on a GPU",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
