"""Make one HTML page that compares the updates in checkpoints: to open, mail or attach.

PATH is what analysis.spectrum reads: a checkpoint directory, a file of factors, or a run directory
of checkpoint-N. The page holds everything that it shows, works without a network or a server, and
fetches nothing: spectra of any selection of modules, a map of any measure by layer and projection,
a table of modules, φ(i, j) between checkpoints and, with --base, where ΔW lands in W0.

  python -m analysis.page adapter/
  python -m analysis.page lora/ multilora/ --out lora-and-multilora.html
  python -m analysis.page run/ --modules 'q_proj|v_proj' --force
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from analysis import UserError, checkpoint, command, names, spectrum, store
from analysis.checkpoint import Run
from analysis.pages.data import Results, phi_pairs, skipped_by_base
from analysis.pages.document import is_page
from analysis.pages.text import page
from analysis.process import start
from analysis.results import AgainstBase, Similarity, Spectra

OUT = "page.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: everything was analysed; 1: some updates were skipped; 2: no page was written, or bad usage.
    """
    parser = _parser()
    return command.run(parser, argv, partial(_run, parser))


def write(
    out: Path,
    spectra: Spectra,
    similarity: Similarity | None = None,
    against: AgainstBase | None = None,
) -> None:
    """Write the page of these results, whole or not at all, and print its name and size."""
    text = page(spectra, similarity, against)
    store.write_text(out, text)
    command.emit(f"{out}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Read results, or analyse checkpoints; write the page; the exit status."""
    if bool(arguments.paths) == bool(arguments.results):
        parser.error("expected the PATH of a checkpoint, or --results, and not both")
    out = Path(arguments.out)
    store.check_target(out, is_page, "--out", force=arguments.force)
    if arguments.results:
        return _of_results(Path(arguments.results), arguments.modules, out)
    return _of_checkpoints(parser, arguments, out)


def _of_results(directory: Path, modules: str | None, out: Path) -> int:
    """Write the page of results on disk; the exit status."""
    spectra, _ = store.load(directory)
    wanted = names.expression(modules)
    rows = [row for row in spectra.rows if wanted.search(row["module"])]
    if not rows:
        raise UserError(f"{directory}: no update to show; expected at least one")
    s = {row["key"]: spectra.s[row["key"]] for row in rows}
    write(out, Spectra(rows, s, spectra.skipped, spectra.other))
    return 1 if spectra.skipped else 0


def _of_checkpoints(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, out: Path
) -> int:
    """Analyse, report what was skipped, write the page; the exit status."""
    runs = checkpoint.runs(arguments.paths, arguments.revision)
    options = command.reading_options(arguments)
    spectra = spectrum.of_runs(runs, options=options, modules=arguments.modules, progress=True)
    for skip in spectra.skipped:
        command.warn(parser, skip["reason"])
    command.warn_of_remarks(parser, spectra.other)
    command.warn_of_unread_steps(parser, runs)
    if not _complete(parser, spectra, runs):
        return 2
    similarity = None if arguments.no_phi else _similarity(spectra, runs, arguments)
    against = _against_base(parser, runs, arguments) if arguments.base else None
    for skip in (further := skipped_by_base(Results(spectra, against=against))):
        command.warn(parser, skip["reason"])
    write(out, spectra, similarity, against)
    return 1 if spectra.skipped or further else 0


def _complete(parser: argparse.ArgumentParser, spectra: Spectra, runs: Sequence[Run]) -> bool:
    """Return whether something of each checkpoint was analysed; say of which it was not.

    A page without one of the checkpoints that it should compare would mislead.
    """
    missing = spectrum.without_update(spectra, runs)
    for run in missing:
        command.warn(parser, f"{run.path}: no update to show; no page is written without it")
    return not missing


def _similarity(
    spectra: Spectra, runs: Sequence[Run], arguments: argparse.Namespace
) -> Similarity | None:
    """Compare the directions of those pairs of checkpoints whose φ a page can hold."""
    # Its import takes time that a page of one checkpoint does not need.
    from analysis import similarity

    by_name = {(run.name, run.step): run for run in runs}
    pairs = [(by_name[a], by_name[b]) for a, b in phi_pairs(spectra.rows)]
    if not pairs:
        return None
    return similarity.of_runs(
        runs,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        pairs=pairs,
        parts=False,
        progress=True,
    )


def _against_base(
    parser: argparse.ArgumentParser, runs: Sequence[Run], arguments: argparse.Namespace
) -> AgainstBase:
    """Return the comparison of each checkpoint with --base."""
    from analysis.base import landing, vectors

    return landing.analyse(
        runs,
        arguments.base,
        options=command.reading_options(arguments),
        modules=arguments.modules,
        rename=(),
        landing=arguments.landing,
        intruders=False,
        cache=vectors.default_cache(),
        say=partial(command.warn, parser),
        progress=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=start.program("analysis.page"),
        description=__doc__,
        formatter_class=command.HelpFormatter,
        epilog="Exit status: 0 if every update was analysed; 1 if some were skipped, which the page"
        " names; 2 if no page was written: a checkpoint could not be read, the file must not be"
        " replaced, or bad usage.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a checkpoint or run directory")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="show what analysis.spectrum --out wrote to DIR, instead of a PATH; without φ(i, j)",
    )
    parser.add_argument(
        "--out", default=OUT, metavar="FILE", help=f"the page to write (default {OUT})"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace FILE also if it is no page of this tool"
    )
    parser.add_argument(
        "--modules", metavar="REGEX", help="show only modules whose name contains a match"
    )
    parser.add_argument(
        "--no-phi", action="store_true", help="leave out φ(i, j), which reads everything twice"
    )
    parser.add_argument(
        "--landing",
        action="store_true",
        help="with --base, where ΔW lands in W0 also if that takes more than a minute",
    )
    command.add_reading_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
