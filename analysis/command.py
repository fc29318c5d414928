"""What the commands share: how checkpoints are chosen and read, and where things are printed.

Results go to stdout, everything else to stderr. Exit status: 0, everything was analysed; 1, some
things were skipped, each with a line that says why; 2, nothing was analysed, or bad usage.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from analysis import UserError, __version__, checkpoint
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.names import printable

Item = TypeVar("Item")


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
) -> int:
    """Parse `argv`, run `work` on it and return the exit status; see `exit_status`."""
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return exit_status(_name(parser), lambda: work(arguments))


def exit_status(name: str, work: Callable[[], int]) -> int:
    """Return what `work` returns, or 2 after an error that the user can mend, or 130 after Ctrl-C.

    Both are told in one line on stderr, under the command's `name`. Every other exception is a
    fault of the program: it keeps its traceback.
    """
    try:
        return work()
    except (UserError, OSError) as error:
        print(f"{name}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _name(parser: argparse.ArgumentParser) -> str:
    return parser.prog.removeprefix("python -m ")


def complain(parser: argparse.ArgumentParser, message: str) -> None:
    """Print a line on stderr, under the command's name."""
    print(f"{_name(parser)}: {printable(message)}", file=sys.stderr)


def complain_of_steps(parser: argparse.ArgumentParser, runs: Iterable[Run]) -> None:
    """A line for each checkpoint below which further ones lie that are not read."""
    for run in runs:
        below = checkpoint.passed_over(run)
        if below:
            message = f"is a checkpoint; {below} below it not read: {run.path}/checkpoint-*"
            complain(parser, f"{run.path}: {message}")


def emit(text: str) -> None:
    """Print `text`; a reader that stops early, as `head` does, is no error."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def printable_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they can be printed to a terminal; a file keeps their names as they are."""
    return [
        {column: printable(cell) if isinstance(cell, str) else cell for column, cell in row.items()}
        for row in rows
    ]


def add_output(parser: argparse.ArgumentParser, files: str) -> None:
    """--out, --json and --csv, --modules, --formats."""
    parser.add_argument("--formats", action=_Formats, help="list what can be read, and stop")
    parser.add_argument("--modules", metavar="REGEX", help="only modules whose name has a match")
    parser.add_argument("--out", metavar="DIR", help=f"write {files}")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object on stdout")
    output.add_argument("--csv", action="store_true", help="the rows of the table on stdout")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The options that say of a checkpoint what it does not say itself."""
    group = parser.add_argument_group("what a checkpoint does not say of itself")
    group.add_argument("--base", metavar="DIR", help="the model that was trained (or its hub name)")
    group.add_argument(
        "--base-rounded",
        action="store_true",
        help="the base was itself rounded from what training started with: count its noise too",
    )
    group.add_argument(
        "--initial", metavar="DIR", help="the adapter before its training (PiSSA, OLoRA, …)"
    )
    group.add_argument(
        "--direction-only", action="store_true", help="of DoRA, B·A alone, which needs no base"
    )
    group.add_argument(
        "--factors",
        nargs=2,
        metavar=("A", "B"),
        help="patterns of the names of A (r, d_in) and B (d_out, r), paired by their groups",
    )
    group.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="ΔW = X · B A, where no file says it"
    )


def options(arguments: argparse.Namespace) -> Options:
    """What `add_reading` was given."""
    return Options(
        base=Path(arguments.base) if arguments.base else None,
        base_rounded=arguments.base_rounded,
        initial=Path(arguments.initial) if arguments.initial else None,
        direction_only=arguments.direction_only,
        factors=tuple(arguments.factors) if arguments.factors else None,
        scale=arguments.scale,
    )


def inputs(arguments: argparse.Namespace, runs: Iterable[Run]) -> list[Path | Run]:
    """Everything that was read for the arguments: the runs, base, initial."""
    return [*runs, *(Path(path) for path in (arguments.base, arguments.initial) if path)]


class _Formats(argparse.Action):
    """--formats: as --help, it stands alone."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        emit("\n".join(checkpoint.formats()))
        parser.exit()
