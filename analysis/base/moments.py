"""Read the second moments of modules' inputs that `python -m multilora.activations` wrote.

The second moment of a module is C = E[x xᵀ], (d_in, d_in), the mean over the tokens of some texts
of its inputs x. A directory holds moments.safetensors, with one matrix for modules that share an
input, moments.csv, and record.json, which says whose each matrix is.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError, UserError
from analysis.files import exchange
from analysis.files.tensors import Stored, open_file, short
from analysis.formats import base, full
from analysis.update import Update, float64

MOMENTS, TABLE, RECORD = "moments.safetensors", "moments.csv", "record.json"
COMMAND = "multilora.activations"
RUN = "run.json"
SYMMETRIC = 1e-9  # of the largest entry: a matrix that differs more from its transpose is no moment


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments in a directory, by module; each matrix is read when it is needed.

    path: the directory.
    tensors: module → its matrix; modules that share an input share it.
    sha256: file → SHA-256 of the weights of the model whose inputs they are.
    """

    path: Path
    tensors: dict[str, Stored]
    sha256: dict[str, str]
    _last: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, update: Update, names: Mapping[str, str]) -> np.ndarray | None:
        """Return C (d_in, d_in), float64, of the module of an update; None if it is not there.

        names: of `aligned`. Raises CheckpointError, naming the module, if C has another shape,
        holds NaN or Inf, is not symmetric or has a negative diagonal entry.
        """
        stored = self.tensors.get(names.get(update.name, ""))
        if stored is None:
            return None
        where, d_in = f"{self.path / MOMENTS}: {update.name}", update.shape[1]
        if stored.shape != (d_in, d_in):
            raise CheckpointError(
                f"{where}: the second moment is {stored.shape}, but ΔW is {update.shape}; expected"
                f" {(d_in, d_in)}, that of the base of {update.source or 'the update'}"
            )
        with self._lock:  # the modules that share a matrix follow one another
            if self._last.get("stored") is not stored:
                self._last.update(stored=None, C=None)
                self._last.update(C=_checked(stored.load(), where), stored=stored)
            C: np.ndarray = self._last["C"]
        return C

    def aligned(self, modules: Iterable[str]) -> dict[str, str]:
        """Return the name that each of these modules has here; those without a moment are left out.

        The names may differ by a prefix, which is found from all of them together.
        """
        ours = {f"{name}.weight": name for name in modules}
        theirs = {f"{name}.weight": name for name in self.tensors}
        return {ours[a]: theirs[b] for a, b in base.align(list(ours), list(theirs)).items()}


def _checked(values: np.ndarray, where: str) -> np.ndarray:
    """Return C in float64; CheckpointError if it is not a second moment."""
    C = float64(values)
    low, high = C.min(), C.max()  # NaN if any entry is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CheckpointError(f"{where}: the second moment holds NaN or Inf; expected numbers")
    if not np.abs(C - C.T).max() <= SYMMETRIC * max(high, -low) or np.diagonal(C).min() < 0:
        raise CheckpointError(
            f"{where}: is not symmetric, or has a negative number on its diagonal; expected a mean"
            " of x xᵀ"
        )
    return C


def open_moments(directory: str | Path) -> Moments:
    """Open what `multilora.activations` wrote into a directory.

    Raises UserError if it is not such a directory, CheckpointError if a file of it is missing, was
    edited or does not fit the record.
    """
    path = Path(directory)
    record = _record(path)
    file = path / MOMENTS
    if (path / exchange.NEXT / MOMENTS).is_file():  # committed, and not yet moved
        file = path / exchange.NEXT / MOMENTS
    known = _of_dict(record, "files", path).get(MOMENTS)
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing; run {COMMAND} again")
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != known:
            raise CheckpointError(
                f"{file}: is not the file that {RECORD} describes (its SHA-256 differs): it was"
                f" edited or damaged; run {COMMAND} again"
            )
    stored, _ = open_file(file)
    tensors = {}
    for module, facts in _of_dict(record, "modules", path).items():
        name = facts.get("tensor") if isinstance(facts, dict) else None
        if name not in stored:
            raise CheckpointError(f"{path / RECORD}: {module}: {short(name)} is not in {MOMENTS}")
        tensors[module] = stored[name]
    sha256 = _of_dict(_of_dict(record, "base", path), "sha256", path)
    return Moments(path, tensors, sha256)


def fingerprint(directory: str | Path) -> str:
    """Return the fingerprint of the moments in a directory; UserError if it has none."""
    return str(_record(Path(directory)).get("fingerprint", ""))


def _record(path: Path) -> dict[str, Any]:
    """Return the record of a directory of moments; UserError if it has none."""
    try:
        record = json.loads(exchange.read_bytes(path, RECORD))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("command") != COMMAND:
        raise UserError(
            f"{path}: is not a directory of second moments; expected one that"
            f" `python -m {COMMAND} --model BASE --text FILE --out {path}` wrote"
        )
    return record


def _of_dict(value: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return value[key]; CheckpointError unless it is an object."""
    found = value.get(key)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path / RECORD}: {key} is {short(found)}; expected an object")
    return found


def check_trained(moments: Moments, run: Path) -> None:
    """Raise UserError if files of this project say that a checkpoint has another base."""
    trained = _trained_from(run)
    if trained and set(trained.values()) != set(moments.sha256.values()):
        raise UserError(
            f"{moments.path}: has the inputs of another model than the base of {run}: their weight"
            f" files have SHA-256 {_first(moments.sha256)} and {_first(trained)}; run {COMMAND}"
            " with that base"
        )


def check_base(moments: Moments, given: Path) -> None:
    """Raise UserError if the base that the user names is another model; its weights are hashed."""
    directory = base.directory(given)
    files = {name: directory / name for name in moments.sha256}
    there = bool(files) and all(file.is_file() for file in files.values())
    if there and {name: _sha256(file) for name, file in files.items()} == moments.sha256:
        return
    raise UserError(
        f"{moments.path}: has the inputs of another model than --base {given}: their weight files"
        f" differ; run {COMMAND} with that base"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _first(sha256: Mapping[str, Any]) -> str:
    """The first digits of the first hash, and its file."""
    return next((f"{str(value)[:12]}… ({name})" for name, value in sha256.items()), "none")


def _trained_from(run: Path) -> dict[str, Any]:
    """Return file → SHA-256 of the base of a checkpoint, if files of this project say it; else {}.

    That of a checkpoint-N may lie in the directory of its run.
    """
    for directory in (run, run.parent):
        for name, keys in ((full.CONFIG, ("base_sha256",)), (RUN, ("base", "sha256"))):
            try:
                value = json.loads((directory / name).read_bytes())
                for key in keys:
                    value = value[key]
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue
            if isinstance(value, dict):
                return value
    return {}
