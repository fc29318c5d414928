"""Parse arguments, report problems and print results, the same way in every command.

Results go to stdout, everything else to stderr. Exit status: 0 if everything was analysed; 1 if
something was skipped, each with a line that says why; 2 if nothing was analysed, or for bad usage;
130 after Ctrl-C.
"""

import argparse
import contextlib
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis import UserError, __version__, checkpoint, store
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.names import printable
from analysis.numerics import parallel
from analysis.process import interrupts, streams
from analysis.results import AgainstBase, Row, Similarity, Spectra
from analysis.tables import text
from analysis.tables.text import Block
from analysis.work.cluster import Cluster, at, of_workers
from analysis.work.kept import Facts, Kept
from analysis.work.kept import about as kept_about

NEGATIVE = re.compile(r"-\.?\d")
# What text becomes where the encoding of stdout lacks its characters.
ASCII = str.maketrans(text.SPARKS, "_.:-=+*#") | {
    ord(character): plain
    for character, plain in {
        "Δ": "d", "‖": "|", "φ": "phi", "Σ": "sum ", "₁": "1", "₂": "2", "ₖ": "k", "ᵢ": "i",
        "²": "^2", "⁴": "^4", "ᵀ": "^T", "√": "sqrt ", "×": "x", "·": "*", "⊗": "(x)", "σ": "s",
        "−": "-", "–": "-", "…": "~", "≥": ">=", "≤": "<=", "≠": "!=", "∞": "inf", "→": "->",
        "’": "'", "“": '"', "”": '"',
    }.items()
}  # fmt: skip

# Running a command


class HelpFormatter(argparse.HelpFormatter):
    """Wrap the prose of a command's help; examples and tables keep their lines.

    A paragraph with an indented line, or with two blanks in a row, is an example or a table.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
        return "\n\n".join(
            paragraph
            if re.search(r"^ |  ", paragraph, re.MULTILINE)
            else super(HelpFormatter, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
) -> int:
    """Add --version, parse `argv`, call `work` and return the exit status; see `exit_status`.

    An argument that begins with a negative number, such as -1e-3 or -1:path, is a value and no
    option.
    """
    parser.add_argument("--version", action="version", version=__version__)
    # The expression of Python 3.14; older ones know neither exponents nor what follows a number.
    parser._negative_number_matcher = NEGATIVE
    return exit_status(_name(parser), lambda: work(parser.parse_args(argv)))


def exit_status(name: str, work: Callable[[], int]) -> int:
    """Return what `work` returns, 2 after an error that the user can mend, or 130 after Ctrl-C.

    Either is reported as one line on stderr that starts with the command's `name`. Text that cannot
    be written to stdout, `--help` included, is such an error; a reader of stdout that stops early,
    such as `head`, is none. Any other exception is a fault of the program and keeps its traceback.
    """
    streams.prepare()
    try:
        with interrupts.raised():
            try:
                return work()
            finally:
                _flush()
    except (UserError, OSError) as error:
        _say(name, " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _say(name, "interrupted")
        return interrupts.STATUS


def _flush() -> None:
    """Write what stdout still holds; raise OSError if it cannot be written, but not for `head`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(sys.stdout, streams.Plain):
            sys.stdout.failed = None
        if not isinstance(error, BrokenPipeError):
            raise OSError(f"stdout cannot be written: {error.strerror}") from error


def _say(name: str, message: str) -> None:
    """Print one line on stderr that starts with `name`; nobody is left to tell if that fails."""
    with contextlib.suppress(OSError):
        print(f"{name}: {printable(message)}", file=sys.stderr)


# Reporting and printing


def warn(parser: argparse.ArgumentParser, message: str) -> None:
    """Print one line on stderr that starts with the command's name."""
    _say(_name(parser), message)


def warn_of_remarks(parser: argparse.ArgumentParser, others: Iterable[Mapping[str, str]]) -> None:
    """Print one line for what was assumed of each file; others: as results list them."""
    for other in others:
        if "kind" in other:
            run, name = other["run"], other["name"]
            warn(parser, f"{run if run.endswith(name) else f'{run}: {name}'}: {other['what']}")


def warn_of_unread_steps(parser: argparse.ArgumentParser, runs: Iterable[Run]) -> None:
    """Print one line for each run that is a checkpoint and contains further ones, not read."""
    for run in runs:
        below, path = checkpoint.passed_over(run), run.path
        if below:
            warn(
                parser,
                f"{path}: is a checkpoint; {below} more below it not read;"
                f" to read them, pass {path}/checkpoint-*",
            )


def emit(lines: str) -> None:
    """Print `lines` on stdout, with control characters escaped in every line.

    Raises OSError if it cannot be written; a reader that stops early, such as `head`, is no error.
    """
    with contextlib.suppress(OSError):  # which the flush repeats
        print("\n".join(map(printable, lines.split("\n"))))
    _flush()


def show(blocks: Iterable[Block], legend: str, arguments: argparse.Namespace) -> None:
    """Print lines and tables on stdout in the terminal's width, or 80 columns, COLUMNS if set.

    legend: what the columns mean; printed with --explain, else a line names that option and the
        columns that the width left out. "" if the blocks say it themselves.

    In colour on a terminal, if rich is installed; not if NO_COLOR is set or TERM is "dumb". Signs
    become ASCII where the encoding of stdout lacks them. Raises OSError as `emit`.
    """
    width = shutil.get_terminal_size().columns
    explained = bool(legend) and arguments.explain
    blocks = [*blocks, *([legend] if explained else [])]
    if not _has_sparks():
        # An ellipsis that `fit` sets where it shortens a label has one character of room.
        signs = ASCII | {ord("…"): "..."}
        blocks = [text.translated(block, signs) for block in blocks]
    fitted, left_out = text.fit(blocks, width)
    if not explained:
        note = ["--explain says what the columns mean."] if legend else []
        note += [f"Not in {width} columns: {', '.join(left_out)}."] if left_out else []
        fitted += text.fit([" ".join(note)], width)[0] if note else []
    if _shows_colours():
        with contextlib.suppress(ImportError):  # rich is not installed
            _emit_own(text.coloured(fitted, width))
            return
    emit("\n".join(text.plain(fitted)).translate({} if _has_sparks() else ASCII))


def _shows_colours() -> bool:
    """Whether stdout is a terminal, and the user has not asked for plain text."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain and _has_sparks()


def _has_sparks() -> bool:
    """Whether the encoding of stdout has the characters of a sparkline."""
    try:
        text.SPARKS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _emit_own(coloured: str) -> None:
    """Print text of our own with its colours; otherwise as `emit`."""
    stream = sys.stdout
    with contextlib.suppress(OSError):  # which the flush repeats
        stream.write_own(coloured) if isinstance(stream, streams.Plain) else stream.write(coloured)
    _flush()


def printable_rows(rows: Iterable[Row]) -> list[Row]:
    """Copy rows for a terminal, with control characters escaped; files keep the exact names."""
    return [
        {column: printable(cell) if isinstance(cell, str) else cell for column, cell in row.items()}
        for row in rows
    ]


def _name(parser: argparse.ArgumentParser) -> str:
    """The name of a command in its messages, such as analysis.spectrum."""
    return parser.prog.removeprefix("python -m ")


# The page, which several commands write


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add --page and --force of a command that also writes the page of its checkpoints."""
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="write a page of these checkpoints, to open in a browser; see analysis.page",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the FILE of --page also if it is no page of this tool",
    )


def check_page(out: Path, option: str, *, force: bool) -> None:
    """Raise UserError if a page must not be written to `out`, which `option` gave."""
    from analysis.pages.document import is_page

    store.check_target(out, is_page, option, force=force)


def lacks(parser: argparse.ArgumentParser, spectra: Spectra, runs: Iterable[Run]) -> bool:
    """Return whether nothing of some of the checkpoints was analysed, and say of which.

    A page without one of the checkpoints that it should compare would mislead.
    """
    analysed = {(row["run"], row["step"]) for row in spectra.rows}
    missing = [run for run in runs if (run.name, run.step) not in analysed]
    for run in missing:
        warn(parser, f"{run.path}: no update to show; no page is written without it")
    return bool(missing)


def write_page(
    out: Path,
    spectra: Spectra,
    similarity: Similarity | None = None,
    against: AgainstBase | None = None,
) -> int:
    """Write the page of these results, whole or not at all; return its size in bytes."""
    from analysis.pages.text import page

    text = page(spectra, similarity, against)
    store.write_text(out, text)
    return len(text.encode())


# Options that the commands share


def add_output_options(parser: argparse.ArgumentParser, files: str) -> None:
    """Add the options of every analysis that choose and write results; files: those of --out."""
    parser.add_argument(
        "--formats", action=_Formats, help="list the formats that can be read, and exit"
    )
    parser.add_argument(
        "--modules", metavar="REGEX", help="analyse only modules whose name contains a match"
    )
    parser.add_argument(
        "--explain", action="store_true", help="say what the columns mean; needs no PATH"
    )
    parser.add_argument("--out", metavar="DIR", help=f"write {files} to this directory")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--csv", action="store_true", help="print the table as CSV")


class _Formats(argparse.Action):
    """Print the formats that can be read and exit, without requiring PATH, as --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        emit("\n".join(checkpoint.formats()))
        parser.exit()


def add_map_option(parser: argparse.ArgumentParser) -> None:
    """Add --map, by which modules with other names are matched."""
    parser.add_argument(
        "--map",
        nargs=2,
        action="append",
        default=[],
        metavar=("REGEX", "REPLACEMENT"),
        help="rename modules before they are matched by name",
    )


def add_size_options(
    parser: argparse.ArgumentParser, rank: str
) -> argparse._MutuallyExclusiveGroup:
    """Add the options that say how small an adapter is to be, and return their group.

    rank: what --rank gives.
    """
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--energy", type=float, metavar="Q", help="share of Σs² in each module")
    size.add_argument("--rank", type=int, metavar="R", help=rank)
    return size


def add_writing_options(parser: argparse.ArgumentParser, dtypes: Sequence[str], usual: str) -> None:
    """Add the options of commands that write an adapter; usual: the dtype without --dtype."""
    parser.add_argument("--dtype", choices=dtypes, help=f"of the factors (default: {usual})")
    parser.add_argument("--force", action="store_true", help="replace what is at --out")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that supply what the files of a checkpoint do not say."""
    group = parser.add_argument_group("what the files of a checkpoint do not say")
    group.add_argument(
        "--base", metavar="DIR", help="the model that was fine-tuned, or its name on the hub"
    )
    group.add_argument(
        "--base-rounded",
        action="store_true",
        help="the base itself was rounded after training started from it: count its noise too",
    )
    group.add_argument(
        "--initial", metavar="DIR", help="the adapter before training (PiSSA, OLoRA, …)"
    )
    group.add_argument(
        "--direction-only", action="store_true", help="for DoRA, B·A alone, which needs no base"
    )
    group.add_argument(
        "--factors",
        nargs=2,
        metavar=("A", "B"),
        help="regular expressions for the tensors A (r, d_in) and B (d_out, r); equal groups"
        " make a pair",
    )
    group.add_argument(
        "--transposed",
        action="store_true",
        help="the factors are stored for x @ A @ B: A (d_in, r) and B (r, d_out)",
    )
    group.add_argument(
        "--blocks",
        type=_sizes,
        default=(),
        metavar="N,N",
        help="the rows of each block of a fused layer, such as 64,16 for query and value",
    )
    group.add_argument(
        "--experts-first",
        action="store_true",
        help="the columns of B of stacked experts are grouped by expert (Unsloth until 2026-09)",
    )
    group.add_argument(
        "--scale", type=float, metavar="X", help="the scale of B·A, α/r, where no file gives it"
    )
    group.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit of a checkpoint on the hub"
    )


def _sizes(given: str) -> tuple[int, ...]:
    """Return the numbers of --blocks; ArgumentTypeError unless each is at least 1."""
    sizes = given.split(",")
    if not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{given!r}: expected whole numbers, such as 64,16")
    return tuple(map(int, sizes))


def reading_options(arguments: argparse.Namespace) -> Options:
    """Return the values of `add_reading_options`."""
    return Options(
        base=Path(arguments.base) if arguments.base else None,
        base_rounded=arguments.base_rounded,
        initial=Path(arguments.initial) if arguments.initial else None,
        direction_only=arguments.direction_only,
        factors=tuple(arguments.factors) if arguments.factors else None,
        transposed=arguments.transposed,
        blocks=arguments.blocks,
        experts_first=arguments.experts_first,
        scale=arguments.scale,
        revision=arguments.revision,
    )


def add_work_options(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add the options that say which processes do long work; return their group."""
    group = parser.add_argument_group("long work (docs/scale.md)")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=_workers,
        default=0,
        metavar="N",
        help="compute the matrices of full fine-tunes in N processes of one thread each",
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute them on the workers of a dask scheduler, such as tcp://host:8786",
    )
    return group


def _workers(given: str) -> int:
    """Return the number of --workers; ArgumentTypeError unless it is at least 1."""
    if not (given.isascii() and given.isdigit() and int(given)):
        raise argparse.ArgumentTypeError(f"{given!r}: expected a whole number of at least 1")
    return int(given)


def kept(
    parser: argparse.ArgumentParser,
    name: str,
    read: Callable[[], Sequence[Path | Run]],
    settings: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> Kept | None:
    """Return where a command keeps what is finished, below --out; None without --out.

    name: that of the command.
    read: returns its checkpoints and models.
    settings: all else that a finished piece depends on.
    """
    if not arguments.out:
        return None

    def about() -> Facts:
        # The number of threads changes last digits (`parallel.reproducible`); workers use one.
        spread = bool(arguments.workers or arguments.scheduler)
        threads = 1 if spread else parallel.threads()
        return kept_about(name, read(), {**settings, "threads": threads})

    return Kept(Path(arguments.out), about, partial(warn, parser))


@contextlib.contextmanager
def cluster(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Iterator[Cluster | None]:
    """Yield the processes of --workers or --scheduler; None without these options."""
    say = partial(warn, parser)
    if arguments.workers:
        with of_workers(arguments.workers, say) as found:
            yield found
    elif arguments.scheduler:
        with at(arguments.scheduler, say) as found:
            yield found
    else:
        yield None


# What changes no result.
UNRECORDED = ("explain", "workers", "scheduler")


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a record holds: all but UNRECORDED."""
    return {name: value for name, value in vars(arguments).items() if name not in UNRECORDED}


def paths_read(runs: Iterable[Run], arguments: argparse.Namespace) -> list[Path | Run]:
    """List everything that a command read: its checkpoints, --base and --initial."""
    given = [Path(path) for path in (arguments.base, arguments.initial) if path]
    return [*runs, *given]
