"""Names and files that come from a stranger: only plain names, and only regular files are opened.

A name may lead out of its directory, a named pipe waits forever, and a device may never end.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from analysis import CheckpointError, UserError

LONGEST_TEXT = 10**8  # bytes


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading in binary; links are followed.

    Raises CheckpointError if it is a named pipe, a socket or a device, OSError as `open` does. The
    file that was opened is the one that is looked at, so that it cannot be exchanged in between.
    """
    # Without O_NONBLOCK, to open a named pipe would wait for a writer.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path}: is a directory; expected a file")
        if not stat.S_ISREG(mode):
            raise CheckpointError(
                f"{path}: is a named pipe, a socket or a device; expected a regular file"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path) -> str:
    """Return the text of a file; UserError if it is not one, too long, or not UTF-8."""
    try:
        with open_regular(path) as file:
            content = file.read(LONGEST_TEXT + 1)
        if len(content) > LONGEST_TEXT:
            raise ValueError(f"is over {LONGEST_TEXT} bytes long")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text: {error}") from None


def is_plain(name: object) -> bool:
    """Return whether `name` is the name of an entry of a directory, which leads nowhere else.

    >>> [is_plain(name) for name in ("a.csv", "", ".", "..", "a/b", "/etc", 3)]
    [True, False, False, False, False, False, False]
    """
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
