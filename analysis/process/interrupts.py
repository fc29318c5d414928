"""End a command on Ctrl-C with one line and status 130, at any moment.

While libraries are imported and while Python shuts down, the process ends at once; while a command
works, KeyboardInterrupt is raised, so that it can tidy up. SIGTERM ends it at once and silently, as
usual.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

STATUS = 130


class _End:
    """Signal handler that ends the process at once, with one line."""

    def __init__(self, name: str) -> None:
        self.line = f"{name}: interrupted\n".encode()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, self.line)
        os._exit(STATUS)


def end_quietly(name: str) -> None:
    """End the process `name` at once on Ctrl-C, unless Ctrl-C is ignored or handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _End(name))


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, which can then tidy up."""
    before: Any = signal.getsignal(signal.SIGINT)
    if not isinstance(before, _End):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
