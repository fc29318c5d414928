"""Parse the command line into settings, and turn errors into one line and an exit status."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import transformers

from analysis import UserError, __version__
from analysis.command import exit_status

Given = TypeVar("Given")


def settings_from(types: Any, doc: str | None, argv: Sequence[str] | None) -> Any:
    """Parse the command line into one dataclass or a tuple of dataclasses.

    types: the dataclass or dataclasses; doc: the help text; argv: sys.argv[1:] if None. Raises
    UserError for an unknown argument and for a value that a dataclass refuses.
    """
    parser = transformers.HfArgumentParser(types, description=doc)
    parser.add_argument("--version", action="version", version=__version__)
    try:
        parsed = parser.parse_args_into_dataclasses(None if argv is None else list(argv))
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None
    return parsed if isinstance(types, tuple) else parsed[0]


def run(name: str, parse: Callable[[], Given], work: Callable[[Given], str]) -> int:
    """Print what `work` returns; return the exit status (see `analysis.command.exit_status`).

    name: the command, which begins the line of an error.
    parse: reads the arguments; --help and --version print to stdout here.
    work: takes what `parse` returns. What libraries print meanwhile goes to stderr, so that stdout
        carries the result alone.
    """

    def printed() -> int:
        given = parse()
        with contextlib.redirect_stdout(sys.stderr):
            result = work(given)
        print(result)
        return 0

    return exit_status(name, printed)
