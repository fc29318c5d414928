"""Kill or fail a function at each of its calls that touch files below a directory.

The calls are those that Python audits: open, rename, mkdir, remove, rmdir, listing.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def at_every_call(
    work: Callable[[], object], below: Path, full: bool = False, most: int = 400
) -> Iterator[int]:
    """Run `work` in child processes, the k-th killed at its k-th call; yield k after each.

    below: only calls with a path in this directory count. full: the call and all later ones that
    could write fail as on a full disk, instead of a kill. Ends when `work` finishes undisturbed.
    """
    for k in range(most):
        if _survived(work, str(below), k, full):
            return
        yield k
    raise AssertionError(f"not finished after {most} calls")


def _survived(work: Callable[[], object], below: str, k: int, full: bool) -> bool:
    """Return whether a child finished `work` before its k-th call."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal calls
            if event not in EVENTS or not str(args[0]).startswith(below):
                return
            calls += 1
            if calls <= k:
                return
            if not full:
                os.kill(os.getpid(), signal.SIGKILL)
            writes = event in ("os.mkdir", "os.rename") or (
                event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if writes:
                raise OSError(errno.ENOSPC, "No space left on device")

        sys.addaudithook(hook)
        status = 1
        try:
            work()
            status = 0
        except OSError:
            pass
        finally:
            os._exit(status if calls <= k or full else 9)
    return os.waitpid(pid, 0)[1] == 0
