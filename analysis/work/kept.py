"""Keep the finished pieces of long work on disk, so that a killed command goes on where it was.

    DIR/.multilora-work/FINGERPRINT/about.json    what the pieces depend on
                                    3f1c….piece   one finished piece each

The fingerprint is the hash of about.json: the command, its options, the versions and the code of
this package, and the input files. These enter by path, size and times of change (mtime and ctime),
not by their content: to hash 280 GB takes minutes, which every start would cost. A ctime cannot be
set back as an mtime can, by `cp -p` or `rsync`; a copied or touched input is computed anew, which
errs on the safe side. (The record of the final result has the SHA-256 of the contents.)

Pieces are renamed into place, whole or not at all, and carry their own SHA-256: processes that
work for one output at the same time use each other's pieces, and a damaged one is made again. A
lock tells an unfinished command from one that is running; it ends with the process.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as deserialised
from safetensors.numpy import save as serialised

from analysis import UserError, checkpoint, store
from analysis.checkpoint import Run

DIRECTORY, ABOUT = ".multilora-work", "about.json"
PIECE = ".piece"
_FACTS, _ARRAY = "facts", "array:"
_DIGEST = hashlib.sha256().digest_size
Facts = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Piece:
    """A finished part of a result: arrays by name, and whatever JSON can hold."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


class Kept:
    """The pieces of one command for one output.

    out: the directory of the result; None keeps the pieces in memory only.
    about: returns what the pieces depend on, JSON-ready; called when the first piece is asked for.
    say: is called with a line about pieces of an earlier command.
    """

    def __init__(
        self,
        out: Path | None,
        about: Callable[[], Facts],
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.out = out
        self._about, self._say = about, say
        self._memory: dict[str, Piece] = {}
        self._place: Path | None = None
        self._unlock: Callable[[], object] = lambda: None

    def get(self, name: str) -> Piece | None:
        """Return the piece of this name; None if it is not finished, or damaged."""
        if self.out is None:
            return self._memory.get(name)
        with contextlib.suppress(OSError, ValueError, SafetensorError):
            return _piece((self._opened() / _file(name)).read_bytes())
        return None

    def put(self, name: str, piece: Piece) -> None:
        """Keep a finished piece; UserError if it cannot be written, as on a full disk."""
        if self.out is None:
            self._memory[name] = piece
            return
        place, content = self._opened(), _content(piece)
        try:
            place.mkdir(parents=True, exist_ok=True)  # also if it was removed meanwhile
            store.replace(place / _file(name), lambda path: path.write_bytes(content))
        except OSError as error:
            raise UserError(
                f"{place}: a result cannot be kept: {error.strerror}; {self.count()} are kept:"
                " make room and repeat the command"
            ) from None

    def count(self) -> int:
        """Return the number of pieces that are kept."""
        if self.out is None:
            return len(self._memory)
        return sum(1 for _ in self._opened().glob(f"*{PIECE}"))

    def finish(self) -> None:
        """Remove the pieces, after the result is written, and those of unfinished commands.

        Those of a command that is running stay, of this one too if another process runs it.
        """
        self._unlock()
        if self.out is None or not (self.out / DIRECTORY).is_dir():
            return
        for place in _places(self.out):
            if not _in_use(place):
                shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # another command has pieces there
            (self.out / DIRECTORY).rmdir()
        self._place = None

    def _opened(self) -> Path:
        """Return the directory of the pieces, made and locked at the first call."""
        if self._place is None:
            about = json.dumps(self._about(), indent=1, sort_keys=True)
            assert self.out is not None
            home = self.out / DIRECTORY
            place = home / hashlib.sha256(about.encode()).hexdigest()[:16]
            self._tell(place, about)
            try:
                place.mkdir(parents=True, exist_ok=True)
                store.write_text(place / ABOUT, about)
            except OSError as error:
                raise UserError(f"{place}: cannot be written: {error.strerror}") from None
            opened = os.open(place, os.O_RDONLY)
            _flock(opened, exclusive=False)
            self._unlock = weakref.finalize(self, os.close, opened)  # at the end of either
            self._place = place
        return self._place

    def _tell(self, place: Path, about: str) -> None:
        """Say how many pieces there are, or why those of an unfinished command do not fit."""
        kept = len(list(place.glob(f"*{PIECE}")))
        if kept:
            self._say(f"{self.out}: goes on with {kept} results of an interrupted command")
            return
        for other in _places(place.parent.parent):
            if any(other.glob(f"*{PIECE}")) and not _in_use(other):
                self._say(
                    f"{self.out}: the results of an interrupted command do not fit, since"
                    f" {_difference(other, about)}; everything is computed anew"
                )


def about(command: str, read: Iterable[Path | Run], options: Mapping[str, Any]) -> Facts:
    """Return what the pieces of a command depend on, JSON-ready.

    read: the checkpoints and models that it reads; options: by name, as text is made of them.
    """
    files = {}
    for path in read:
        for file in checkpoint.inputs(path):
            status = file.stat()
            files[str(file.absolute())] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return {
        "command": command,
        "options": {name: repr(value) for name, value in options.items()},
        "versions": versions(),
        "files": files,
    }


@functools.cache
def versions() -> dict[str, str | None]:
    """Return the versions of what computes a piece, and the hash of this package's code."""
    home = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        code.update(file.read_bytes())
    return store.versions() | {"code": code.hexdigest()[:16]}


def _file(name: str) -> str:
    """The file of a piece; names are a stranger's, of any length and with any character."""
    return hashlib.sha256(name.encode()).hexdigest()[:32] + PIECE


def _content(piece: Piece) -> bytes:
    facts = np.frombuffer(json.dumps(piece.facts).encode(), np.uint8)
    arrays = {_ARRAY + name: np.ascontiguousarray(x) for name, x in piece.arrays.items()}
    content: bytes = serialised({_FACTS: facts, **arrays})
    return hashlib.sha256(content).digest() + content


def _piece(content: bytes) -> Piece:
    """Return the piece in the content of a file; ValueError if it is damaged."""
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("is damaged")
    arrays = deserialised(content)
    facts = json.loads(arrays.pop(_FACTS).tobytes())
    return Piece({name.removeprefix(_ARRAY): x for name, x in arrays.items()}, facts)


def _difference(place: Path, about: str) -> str:
    """Return in words the first difference between the pieces at `place` and what is wanted."""
    try:
        before = json.loads((place / ABOUT).read_bytes())
        now = json.loads(about)
        for part in ("command", "options", "versions", "files"):
            if before[part] != now[part]:
                return _words(part, before[part], now[part])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "nothing says what they depend on"


def _words(part: str, before: Any, now: Any) -> str:
    if part == "command":
        return f"they are of {before}"
    name = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    if part == "files":
        both = name in before and name in now
        return f"{name} has changed" if both else f"{name} is an input of only one of them"
    return f"{name} was {before.get(name)} and is {now.get(name)}"


def _places(out: Path) -> list[Path]:
    """The directories of pieces for one output."""
    return [path for path in (out / DIRECTORY).glob("*") if path.is_dir()]


def _in_use(place: Path) -> bool:
    """Return whether a running process works with the pieces at `place`."""
    try:
        opened = os.open(place, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _flock(opened, exclusive=True)
    finally:
        os.close(opened)


def _flock(opened: int, exclusive: bool) -> bool:
    """Lock a directory without waiting; False if another process holds a lock that excludes it."""
    import fcntl  # POSIX only

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
