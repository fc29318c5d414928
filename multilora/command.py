"""Parse the command line into settings, and turn errors into one line and an exit status."""

import argparse
import contextlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import transformers

from analysis import UserError, __version__
from analysis.command import HelpFormatter, emit, exit_status
from analysis.process import start

Given = TypeVar("Given")

ALL = "--help-all"


class _Help(HelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """State the default of an option, unless it is empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def parser_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command `name` with a help text and --version."""
    parser = argparse.ArgumentParser(
        prog=start.program(name),
        description=doc,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def settings_from(
    types: Any, doc: str | None, argv: Sequence[str] | None, *, first: str = ""
) -> Any:
    """Parse the command line into one dataclass or a tuple of dataclasses.

    types: the dataclass or dataclasses. The help leaves out fields that one inherits unchanged,
        such as those of transformers' TrainingArguments; --help-all shows all.
    doc: the help text.
    argv: sys.argv[1:] if None. A leading "--" is ignored: torchrun takes --r for one of its own
        options unless "--" stands before it.
    first: the field that the first word sets if it is not an option; "" for none.

    Raises UserError for an unknown argument and for a value that a dataclass refuses.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words = words[1:] if words[:1] == ["--"] else words
    if first and words and not words[0].startswith("-"):
        words.insert(0, f"--{first}")
    parser = transformers.HfArgumentParser(
        types,
        prog=_program(),
        description=doc,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    inherited = _inherited(types if isinstance(types, tuple) else (types,))
    if inherited:
        parser.add_argument(ALL, action="help", help=f"show all, {len(inherited)} more")
    if ALL not in words:
        for action in parser._actions:
            if action.dest in inherited:
                action.help = argparse.SUPPRESS
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(
            f"unknown arguments: {' '.join(unknown)}; --help lists those that there are"
        )
    return tuple(parsed) if isinstance(types, tuple) else parsed[0]


def _program() -> str | None:
    """Return how the user called this command; None leaves the name to argparse."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return start.program(spec.name) if spec else start.called or None


def _inherited(types: Sequence[Any]) -> set[str]:
    """The names of the fields that the dataclasses take over from others unchanged."""
    return {
        field.name
        for one in types
        for field in fields(one)
        if field.name not in inspect.get_annotations(one)
    }


def run(name: str, parse: Callable[[], Given], work: Callable[[Given], str]) -> int:
    """Print what `work` returns; return the exit status (see `analysis.command.exit_status`).

    name: the command's module; how it was called begins the line of an error.
    parse: reads the arguments; --help and --version print to stdout here.
    work: takes what `parse` returns. What libraries print meanwhile goes to stderr, so that stdout
        carries the result alone.
    """

    def printed() -> int:
        given = parse()
        with contextlib.redirect_stdout(sys.stderr):
            result = work(given)
        emit(result)
        return 0

    return exit_status(start.called or name, printed)
