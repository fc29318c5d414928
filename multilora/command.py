"""What the commands have in common: how they read their arguments and how they fail."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import transformers

from analysis import UserError, __version__
from analysis.command import exit_status


def settings_from(types: Any, doc: str | None, argv: Sequence[str] | None) -> Any:
    """Parse the command line into the dataclasses `types`; `doc` is the help text.

    Raises UserError for an argument that is unknown or that a dataclass refuses.
    """
    parser = transformers.HfArgumentParser(types, description=doc)
    parser.add_argument("--version", action="version", version=__version__)
    try:
        parsed = parser.parse_args_into_dataclasses(None if argv is None else list(argv))
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None
    return parsed if isinstance(types, tuple) else parsed[0]


def run(name: str, work: Callable[[], str]) -> int:
    """Print what `work` returns and return the exit status, as `analysis.command.exit_status` does.

    What libraries print meanwhile goes to stderr: stdout carries the result alone.
    """

    def printed() -> int:
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
        print(result)
        return 0

    return exit_status(name, printed)
