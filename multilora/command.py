"""What the commands have in common: how they read their arguments and how they fail."""

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import transformers
from safetensors import SafetensorError

from analysis import CheckpointError


def settings_from(types: Any, doc: str | None, argv: Sequence[str] | None) -> Any:
    """The dataclasses that the command line gives; the module's docstring is the help text."""
    parser = transformers.HfArgumentParser(types, description=doc)
    parsed = parser.parse_args_into_dataclasses(None if argv is None else list(argv))
    return parsed if isinstance(types, tuple) else parsed[0]


def targets(text: str) -> str | list[str]:
    """--target_modules for PEFT: 'all-linear', names separated by commas, or a regex.

    Raises ValueError where it is none of these.
    """
    if text == "all-linear":
        return text
    if re.fullmatch(r"[\w.,-]+", text):
        return text.split(",")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"target_modules {text!r} is no regex: {error}") from None
    return text


def run(name: str, work: Callable[[], str]) -> int:
    """Print what `work` returns; the exit status: 0, or 2 with one line on stderr.

    What libraries print on the way goes to stderr: stdout carries the result alone.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
    except (ValueError, OSError, RuntimeError, CheckpointError, SafetensorError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(result)
    return 0
