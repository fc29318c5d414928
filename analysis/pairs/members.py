"""Cache of one module's decomposed updates, shared by all comparisons of that module."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from analysis import CheckpointError
from analysis.checkpoint import Run
from analysis.names import kind_of, layer_of, update_key
from analysis.numerics import decompose, parallel
from analysis.numerics.decompose import Decomposition
from analysis.pairs import meeting
from analysis.pairs.meeting import Collected, Pairs
from analysis.results import Row
from analysis.update import DenseUpdate, Update
from analysis.work.cluster import Cluster, Lost
from analysis.work.kept import Kept, Piece

# Columns that name one update,
ONE = (
    "key", "run", "step", "part", "method",
    "module", "layer", "kind", "d_out", "d_in", "capacity",
)  # fmt: skip
# and columns that name two updates of one module.
PAIR = (
    "key", "run_a", "step_a", "part_a", "method_a", "run_b", "step_b", "part_b", "method_b",
    "module", "layer", "kind", "d_out", "d_in", "capacity_a", "capacity_b",
)  # fmt: skip
OF_EITHER = ("run", "step", "part", "method", "capacity")  # columns of ONE that PAIR has twice
Result = TypeVar("Result")
HELD = 2**27  # bytes for the updates of the modules that are compared at the same time


@dataclass(frozen=True, eq=False)
class Listed:
    """An update of a run.

    module: its name after --map, by which the updates of different runs are matched.
    """

    run: Run
    module: str
    update: Update

    @property
    def columns(self) -> Row:
        """The columns ONE of this update; the key has its name before --map."""
        d_out, d_in = self.update.shape
        return {
            "key": update_key(self.run.key, self.update.name, self.update.part),
            "run": self.run.name,
            "step": self.run.step,
            "part": self.update.part or None,
            "method": self.update.method,
            "module": self.module,
            "layer": layer_of(self.module),
            "kind": kind_of(self.module),
            "d_out": d_out,
            "d_in": d_in,
            "capacity": self.update.capacity,
        }


@dataclass(frozen=True, eq=False)
class Member(Listed):
    """An update of a run with its decomposition."""

    decomposition: Decomposition


def pair_columns(a: Member, b: Member) -> Row:
    """Return the columns PAIR of two members; the key is that of a, ~ and that of b."""
    columns_a, columns_b = a.columns, b.columns
    row = columns_a | {"key": f"{columns_a['key']}~{columns_b['key']}"}
    for name in OF_EITHER:
        row |= {f"{name}_a": columns_a[name], f"{name}_b": columns_b[name]}
    return {column: row[column] for column in PAIR}


class Members:
    """The updates of one module; each is decomposed once, when it is first needed.

    skipped: {run, module, reason} for each update that cannot be compared.
    zero: the entries of `skipped` that are no fault, because ΔW = 0.
    """

    def __init__(self, module: str, collected: Collected) -> None:
        self.module = module
        self.skipped: list[dict[str, str]] = []
        self.zero: list[dict[str, str]] = []
        self._by_run = collected.of(module)
        self._members: dict[Update, Member | None] = {}  # None: could not be decomposed

    @property
    def size(self) -> int:
        """The number of entries of all its updates, by which the largest module is chosen."""
        return sum(math.prod(u.shape) for updates in self._by_run.values() for u in updates)

    def close(self) -> None:
        """Let go of the updates and their decompositions; what was skipped stays."""
        self._by_run, self._members = {}, {}

    def of(self, run: Run) -> list[Member]:
        """Return all members of a run, those with ΔW = 0 too."""
        return self._decomposed(run, self._by_run.get(run.key, []))

    def listed(self, run: Run) -> list[Listed]:
        """Return the updates of a run without decomposing them."""
        return [Listed(run, self.module, update) for update in self._by_run.get(run.key, [])]

    def parts(self, run: Run) -> list[Member]:
        """Return the parts of the module in a run that can be compared with one another."""
        parts = list(meeting.parts(self._by_run.get(run.key, [])))
        return self._nonzero(run, parts) if len(parts) > 1 else []

    def pairs(self, pairs: Pairs) -> Iterator[tuple[Member, Member]]:
        """Yield the members of each two runs that match in part and shape and are not zero."""
        for a, b in pairs:
            if a.key not in self._by_run or b.key not in self._by_run:
                continue
            matches, only_a, only_b = meeting.match_parts(
                self._by_run[a.key], self._by_run[b.key], lambda update: update.part
            )
            for here, only, there in ((a, only_a, b), (b, only_b, a)):
                for update in only:
                    name = self._name(update)
                    self.skip(there, f"{there.path}: {name}: is missing, but is in {here.path}")
            for x, y in matches:
                if x.shape != y.shape:
                    shapes = f"is {x.shape} in {a.path} and {y.shape} in {b.path}"
                    self.skip(a, f"{self._name(x)}: {shapes}; expected equal shapes")
                else:
                    yield from itertools.product(self._nonzero(a, [x]), self._nonzero(b, [y]))

    def skip(self, run: Run, reason: str) -> None:
        """Note why the module of a run is not compared; the same note is kept once."""
        note = {"run": run.key, "module": self.module, "reason": reason}
        if note not in self.skipped:
            self.skipped.append(note)

    def _nonzero(self, run: Run, updates: Sequence[Update]) -> list[Member]:
        """Return the members whose ΔW is not zero; note the others."""
        members = self._decomposed(run, updates)
        for member in members:
            if member.decomposition.rank == 0:
                name = self._name(member.update)
                reason = f"{run.path}: {name}: ΔW is zero; it has no directions"
                self.skip(run, reason)
                self.zero += [note for note in self.skipped if note["reason"] == reason]
        return [member for member in members if member.decomposition.rank > 0]

    def _name(self, update: Update) -> str:
        return f"{self.module} {update.part}".strip()

    def _decomposed(self, run: Run, updates: Sequence[Update]) -> list[Member]:
        """Return the members of these updates, without those that cannot be decomposed."""
        for update in updates:
            if update not in self._members:
                self._members[update] = self._decompose(run, update)
        return [member for update in updates if (member := self._members[update])]

    def _decompose(self, run: Run, update: Update) -> Member | None:
        try:
            decomposition = decompose.decomposition(update)
        except CheckpointError as error:
            self.skip(run, str(error))
        except MemoryError:
            self.skip(run, f"{run.path}: {self.module}: does not fit into memory")
        else:
            return Member(run, self.module, update, decomposition)
        return None


@dataclass(frozen=True, eq=False)
class Finished(Generic[Result]):
    """What a job made of a module, and what it could not compare.

    skipped, zero: as in `Members`.
    """

    result: Result
    skipped: list[dict[str, str]]
    zero: list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Pieces(Generic[Result]):
    """How the comparisons of dense modules are kept and spread over processes.

    encode, decode: from what is finished to a piece, and back bit for bit.
    kept: the modules that are finished.
    cluster: processes that compare; None compares here.
    """

    encode: Callable[[Finished[Result]], Piece]
    decode: Callable[[Piece], Finished[Result]]
    kept: Kept
    cluster: Cluster | None = None


def over_modules(
    job: Callable[[Members], Result],
    collected: Collected,
    progress: bool,
    pieces: Pieces[Result] | None = None,
) -> Iterator[Result]:
    """Yield job(members) for each module: low-rank ones in parallel, then dense ones one by one.

    What the job could not compare is added to `collected`. progress: show a bar. pieces: None
    keeps nothing of dense modules, and computes them here.
    """

    def noted(finished: Finished[Result]) -> Result:
        collected.skipped.extend(finished.skipped)
        collected.zero.extend(finished.zero)
        return finished.result

    dense = [module for module in collected.modules if _is_dense(module, collected)]
    factored = [module for module in collected.modules if module not in set(dense)]
    work = partial(_finished, job)
    opened = (Members(module, collected) for module in factored)
    small = parallel.in_order(work, opened, _at_once(factored, collected))
    for _, done in parallel.with_bar(small, progress, "comparing", "module", len(factored)):
        yield noted(done)
    lost: dict[str, str] = {}
    if pieces is not None and pieces.cluster is not None:
        lost = _spread(work, dense, collected, pieces, pieces.cluster, progress)
    for module in parallel.with_bar(dense, progress, "comparing", "module"):
        if module in lost:
            for run in collected.modules[module]:
                note = {"run": run, "module": module, "reason": f"{module}: {lost[module]}"}
                collected.skipped.append(note)
            continue
        piece = pieces.kept.get(module) if pieces is not None else None
        if pieces is not None and piece is not None:
            yield noted(pieces.decode(piece))
            continue
        finished = work(Members(module, collected))
        if pieces is not None:
            pieces.kept.put(module, pieces.encode(finished))
        yield noted(finished)


def _finished(job: Callable[[Members], Result], members: Members) -> Finished[Result]:
    """Return what a job makes of a module, of which nothing else stays in memory."""
    result = job(members)
    members.close()
    return Finished(result, members.skipped, members.zero)


def _spread(
    work: Callable[[Members], Finished[Result]],
    modules: Sequence[str],
    collected: Collected,
    pieces: Pieces[Result],
    cluster: Cluster,
    progress: bool,
) -> dict[str, str]:
    """Let other processes compare the modules that are not kept; return why some are lost."""
    missing = [Members(module, collected) for module in modules if not pieces.kept.get(module)]
    done = cluster.each(work, missing, lambda members: members.size)
    lost = {}
    for members, finished in parallel.with_bar(done, progress, "comparing", "module", len(missing)):
        if isinstance(finished, Lost):
            lost[members.module] = finished.reason
        else:
            pieces.kept.put(members.module, pieces.encode(finished))
    return lost


def _at_once(modules: Sequence[str], collected: Collected) -> int:
    """Return how many modules may be in memory at once, so that their updates fit into HELD."""
    sizes = [
        sum(meeting.numbers(update) for updates in by_run.values() for update in updates)
        for by_run in (collected.modules[module] for module in modules)
    ]
    # Stored, and decomposed in float64.
    return max(1, HELD // (12 * max(sizes, default=1) or 1))


def _is_dense(module: str, collected: Collected) -> bool:
    """Return whether any run has the module as a matrix."""
    updates = itertools.chain.from_iterable(collected.modules[module].values())
    return any(isinstance(update, DenseUpdate) for update in updates)
