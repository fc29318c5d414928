"""Streams that never fail on a letter and never carry a stranger's control character."""

import io
import os
import re
import sys
import warnings
from typing import Any

from analysis import UserError
from analysis.names import printable

COLOUR = re.compile("\x1b\\[[0-9;]*m")
UP = "\x1b[A"  # by which a progress bar returns to its line


class Plain(io.TextIOWrapper):
    """A text stream on which control characters are shown as escapes, those of a bar excepted.

    failed: the error of the first text that could not be written, which argparse keeps to itself.
    """

    failed: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text` as `plain` gives it; the length of `text`."""
        self.write_own(plain(text))
        return len(text)

    def write_own(self, text: str) -> None:
        """Write `text`, whose control characters are our own colours, as it is."""
        try:
            super().write(text)
        except OSError as error:
            self.failed = self.failed or error
            raise

    def flush(self) -> None:
        """Write what is buffered; raise the error of an earlier text that was not written."""
        super().flush()
        if self.failed:
            raise self.failed


def plain(text: str) -> str:
    r"""Return `text` without colours and with control characters escaped.

    Ends of lines, tabs and what a progress bar writes (a carriage return at either end; movements
    up, alone) stay as they are.

    >>> print(plain("\x1b[31mred\x1b[0m \x1b[2J"))
    red \x1b[2J
    """
    if text.isprintable() or not text.replace(UP, "").strip("\r\n"):
        return text
    bare = COLOUR.sub("", text)
    inner = bare.strip("\r")
    start = len(bare) - len(bare.lstrip("\r"))
    lines = ["\t".join(map(printable, line.split("\t"))) for line in inner.split("\n")]
    return bare[:start] + "\n".join(lines) + bare[start + len(inner) :]


def prepare() -> None:
    """Open the streams that are closed, and make stdout and stderr take every letter.

    What is written to a stream that was closed (`>&-`) is lost, as that asks for. A stream that is
    the process's own becomes `Plain`.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file would take its place
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _plain_stream(stream))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _plain_stream(stream: io.TextIOWrapper) -> Plain:
    """Return a `Plain` stream that writes to where `stream` does."""
    stream.flush()
    return Plain(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def shorten_warnings(name: str) -> None:
    """Show warnings that are meant for users as one line that begins with `name`, and no others.

    Those are of the category UserWarning. The options -W and PYTHONWARNINGS show all as usual.
    """
    if sys.warnoptions:
        return

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{name}: {printable(' '.join(str(message).split()))}", file=sys.stderr)

    warnings.showwarning = show
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", UserWarning)


def shorten_user_errors(name: str) -> None:
    """Show a UserError that nobody caught, as one of an import, as one line; exit with status 2."""
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not isinstance(error, UserError):
            before(kind, error, trace)
            return
        print(f"{name}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)

    sys.excepthook = show
