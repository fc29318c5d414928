"""Replace one file, or several entries of a directory, whole or not at all.

    with exchange.replacing(directory, stale=["old.csv"]) as new:
        (new / "table.csv").write_text("…")

New entries are written into a directory of their own below `directory`. Renaming it to NEXT commits
them: before that nothing has changed; after it they count, even those that are not yet moved into
place. Whoever replaces entries next completes what a killed process has committed, and removes what
it has not. `read_bytes` finds an entry in either place.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from analysis import UserError
from analysis.files.regular import is_plain

NEXT = ".multilora-next"  # committed entries, on their way to their place
_NEW, _OLD = "multilora-new", "multilora-old"  # entries before the commit; entries on their way out
_STALE = ".stale"  # in NEXT: names that are removed before the new entries are moved, as JSON
_LAST = ("record.json", "run.json")  # what describes the other entries is moved after them
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)-(\d+)(?:@(.+))?", re.DOTALL)
_DAY = 86400  # seconds after which a temporary entry of another machine counts as left behind


@contextlib.contextmanager
def replacing(directory: Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty directory, whose entries then replace those of `directory`, all or none.

    directory: created if need be; entries of other names stay.
    stale: names of entries to remove with the exchange, before the new ones are moved. Entries of
        these names must lie directly in `directory`; others are refused with a ValueError.

    If the block raises or the process ends, `directory` stays as it was. Raises OSError if the new
    entries cannot be written, and UserError if NEXT exists and is not a directory of this module,
    or if a directory that is not empty stands where a file is to be.
    """
    stale = sorted(set(stale))
    if others := [name for name in stale if not is_plain(name)]:
        raise ValueError(f"{others[0]!r} is not the name of an entry of {directory}")
    if os.path.lexists(directory) and not directory.is_dir():
        raise UserError(f"{directory}: is not a directory; expected one, or a new name")
    directory.mkdir(parents=True, exist_ok=True)
    complete(directory)
    with _scratch(directory, _NEW) as new:
        yield new
        for entry in new.iterdir():
            target = directory / entry.name
            stands = target.is_dir() and not target.is_symlink() and any(target.iterdir())
            if entry.is_file() and stands:
                raise UserError(f"{target}: is a directory where a file is written; remove it")
        if stale:
            (new / _STALE).write_text(json.dumps(stale), encoding="utf-8")
        _flush(new)
        with _scratch(directory, _OLD) as old, _locked(directory):
            _complete(directory, old)
            new.rename(directory / NEXT)
            _complete(directory, old)


def complete(directory: Path) -> None:
    """Move what a killed process has committed into place, and remove what it has not.

    Raises UserError if NEXT is something else than a directory of this module.
    """
    if not directory.is_dir():
        return
    if os.path.lexists(directory / NEXT):
        with _scratch(directory, _OLD) as old, _locked(directory):
            _complete(directory, old)
    for name in (_NEW, _OLD):
        remove_left_behind(directory / name)


def _complete(directory: Path, old: Path) -> None:
    """Move the entries of NEXT into place; may be repeated after a kill at any moment.

    old: an empty directory for entries that are removed.
    """
    coming = directory / NEXT
    if not os.path.lexists(coming):
        return
    if coming.is_symlink() or not coming.is_dir():
        raise UserError(f"{coming}: is not a directory of committed files; remove it")
    listed = coming / _STALE
    names = [name for name in os.listdir(coming) if name != _STALE]
    # The list is removed after its entries and before the first move: none is removed twice.
    for name in _stale(listed):
        _move(directory / name, old / name)
    listed.unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: (name in _LAST, name)):
        target = directory / name
        if target.is_dir() or (coming / name).is_dir():  # no file is renamed onto a directory
            _move(target, old / f"{name}.")
        (coming / name).replace(target)
    coming.rmdir()
    _flush(directory, entries=False)


def _move(source: Path, target: Path) -> None:
    """Rename an entry, also a link itself; do nothing if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _stale(listed: Path) -> list[str]:
    """Return the names in the list of NEXT that lead nowhere else; none without a list."""
    if listed.is_symlink() or not listed.is_file():
        return []
    try:
        names = json.loads(listed.read_bytes())
    except (ValueError, RecursionError):
        return []
    return [name for name in names if is_plain(name)] if isinstance(names, list) else []


def read_bytes(directory: Path, name: str) -> bytes:
    """Return the content of a file of `directory`, also if it is committed and not yet moved.

    Raises OSError if there is no such regular file.
    """
    for place in (directory / NEXT, directory):
        path = place / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if path.exists() and not path.is_file():
                raise OSError(f"{path} is not a file")
            return path.read_bytes()
    raise FileNotFoundError(f"{directory / name} is missing")


# Temporary entries


def temporary(path: Path) -> Path:
    """Return the temporary path next to `path` that is unique to this process and thread."""
    thread = threading.current_thread().ident  # known to `threading` from now on
    owner = f"{os.getpid()}-{thread}@{os.uname().nodename}"
    return path.with_name(f".{path.name}.{owner}")


def remove_left_behind(path: Path) -> None:
    """Remove the temporary entries for `path` whose process has ended.

    One of another machine is removed after a day without a change, since its process is unknown.
    """
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            made = _TEMPORARY.fullmatch(entry.name)
            if made and made[1] == path.name and not _is_alive(made, entry):
                remove(Path(entry.path))


def _is_alive(made: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Return whether the process and thread that made a temporary entry still exist."""
    pid, thread, node = int(made[2]), int(made[3]), made[4]
    if node not in (None, os.uname().nodename):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime < _DAY
    if pid == os.getpid():
        return any(thread == other.ident for other in threading.enumerate())
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that it holds; do nothing if it cannot be."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def _scratch(directory: Path, name: str) -> Iterator[Path]:
    """Yield a new directory below `directory`, which is removed with what is left in it."""
    path = temporary(directory / name)
    remove(path)  # of a process that had the same number
    path.mkdir()
    try:
        yield path
    finally:
        remove(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which ends with the process."""
    import fcntl  # POSIX only

    opened = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _flush(directory: Path, entries: bool = True) -> None:
    """Have the system write a directory to the disk, and its files too if `entries`."""
    files = [path for path in directory.rglob("*") if path.is_file()] if entries else []
    for path in (*files, directory):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
                raise
        finally:
            os.close(opened)
