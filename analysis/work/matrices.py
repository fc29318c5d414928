"""Decompose dense updates: with the next one read ahead, kept when done, or on many processes.

Low-rank updates are never sent here: they take milliseconds.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from analysis import CheckpointError
from analysis.checkpoint import Run
from analysis.numerics import decompose, device, parallel
from analysis.numerics.decompose import Method, Spectrum
from analysis.update import DenseUpdate, Entry, Other, Skipped, Update
from analysis.work import cluster
from analysis.work.cluster import Cluster
from analysis.work.kept import Facts, Kept, Piece

Decomposed = tuple[Update, Spectrum] | Skipped | Other
Listed = tuple[Run, DenseUpdate]


def decomposed(entry: Entry, method: str | Method) -> Decomposed:
    """An update with its spectrum, or why it has none; an entry that is not an update as it is."""
    if isinstance(entry, Skipped | Other):
        return entry
    try:
        with device.told():
            return entry, decompose.spectrum(entry, method)
    except CheckpointError as error:
        return Skipped(entry.name, str(error))
    except MemoryError:
        return Skipped(entry.name, f"{entry.source}: {entry.name}: does not fit into memory")


@dataclass(eq=False)
class Matrices:
    """How dense updates are decomposed.

    method: as for `decompose.spectrum`.
    kept: the spectra that are finished; None keeps none.
    cluster: processes that compute them; None computes them here.
    device: on which they compute (`numerics.device`); dense updates only.
    """

    method: str | Method = "auto"
    kept: Kept | None = None
    cluster: Cluster | None = None
    device: str = device.CPU
    _failed: dict[str, Skipped] = field(default_factory=dict)

    def ahead(self, listed: Callable[[], Iterable[Listed]], progress: bool) -> None:
        """Let the processes decompose the updates in `listed` that are not kept, largest first.

        What they find waits in `kept` for `in_order`. Nothing happens without a cluster.
        """
        if self.cluster is None:
            return
        self.kept = self.kept or Kept(None, dict)
        missing = [(run, update) for run, update in listed() if not self._known(run, update)]
        work = partial(_spectrum_of, method=self.method, name=self.device)
        done = self.cluster.each(work, [update for _, update in missing], _cost)
        runs = {id(update): run for run, update in missing}
        for update, result in parallel.with_bar(
            done, progress, "decomposing", "matrix", len(missing)
        ):
            run = runs[id(update)]
            if isinstance(result, cluster.Lost):
                where = f"{update.source}: {update.name}"
                result = Skipped(update.name, f"{where}: {result.reason}")
            if isinstance(result, Skipped):
                self._failed[_name(run, update)] = result
            else:
                self.kept.put(_name(run, update), piece(result))

    def in_order(self, run: Run, entries: Iterable[Entry]) -> Iterator[Decomposed]:
        """Yield each entry decomposed, in order; while one is computed, the next one is read."""
        for entry, found in parallel.one_ahead(partial(self._prepared, run), entries):
            if isinstance(found, Skipped):
                yield found
            elif found is not None:
                assert not isinstance(entry, Skipped | Other)
                yield entry, found
            else:
                with device.using(self.device):
                    result = decomposed(entry, self.method)
                if self.kept is not None and isinstance(result, tuple):
                    self.kept.put(_name(run, result[0]), piece(result[1]))
                yield result
            del entry, found  # the next one is waiting, and the one after it will be read

    def _known(self, run: Run, update: DenseUpdate) -> bool:
        return self.kept is not None and self.kept.get(_name(run, update)) is not None

    def _prepared(self, run: Run, entry: Entry) -> tuple[Entry, Spectrum | Skipped | None]:
        """Return an entry with its result, if that is known; else with its matrix read."""
        if isinstance(entry, Skipped | Other):
            return entry, None
        name = _name(run, entry)
        if name in self._failed:
            return entry, self._failed[name]
        if self.kept is not None and (found := self.kept.get(name)) is not None:
            return entry, spectrum_of(found)
        return (_read(entry) if isinstance(entry, DenseUpdate) else entry), None


class _Once:
    """A matrix that was read ahead: handed out once, and read again if asked for again."""

    def __init__(self, W: np.ndarray, load: Callable[[], np.ndarray]) -> None:
        self.W: np.ndarray | None = W
        self.load = load

    def __call__(self) -> np.ndarray:
        W, self.W = self.W, None
        return self.load() if W is None else W


def _read(update: DenseUpdate) -> DenseUpdate:
    """Return the update with its matrix in memory, or as it is if that fails.

    It is then read when it is due, and fails in the right place; by then there may be room for it.
    """
    try:
        return replace(update, load=_Once(update.load(), update.load))
    except (CheckpointError, MemoryError):
        return update


def _spectrum_of(update: DenseUpdate, method: str | Method, name: str) -> Spectrum | Skipped:
    """Return the spectrum alone: the update need not travel back; name: of the device."""
    with device.using(name):
        result = decomposed(update, method)
    if isinstance(result, tuple):
        return result[1]
    assert isinstance(result, Skipped)
    return result


def _cost(update: DenseUpdate) -> int:
    """The work of a decomposition up to a factor: d_out · d_in · min(d_out, d_in)."""
    d_out, d_in = update.shape
    return d_out * d_in * min(d_out, d_in)


def _name(run: Run, update: Update) -> str:
    return json.dumps([run.key, update.name, update.part])


def piece(spectrum: Spectrum) -> Piece:
    """Return a spectrum as a piece that can be kept."""
    fields = {f.name: getattr(spectrum, f.name) for f in dataclasses.fields(spectrum)}
    arrays = {name: x for name, x in fields.items() if isinstance(x, np.ndarray)}
    return Piece(arrays, {name: x for name, x in fields.items() if name not in arrays})


def spectrum_of(piece: Piece) -> Spectrum:
    """Return the spectrum that `piece` made a piece of, bit for bit."""
    fields: Facts = {**piece.arrays, **piece.facts}
    return Spectrum(**fields)
