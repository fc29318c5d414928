"""The updates that meet, decomposed once each: what every comparison walks over."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from analysis import CheckpointError
from analysis.checkpoint import Run
from analysis.names import kind_of, layer_of, update_key
from analysis.numerics import decompose, parallel
from analysis.numerics.decompose import Decomposition
from analysis.pairs import meeting as pairing
from analysis.pairs.meeting import Collected, Pairs
from analysis.results import Row
from analysis.update import DenseUpdate, Update

ONE = (
    *("key", "run", "step", "part", "method"),
    *("module", "layer", "kind", "d_out", "d_in", "capacity"),
)
PAIR = (
    *("key", "run_a", "step_a", "part_a", "method_a", "run_b", "step_b", "part_b", "method_b"),
    *("module", "layer", "kind", "d_out", "d_in", "capacity_a", "capacity_b"),
)
OF_EITHER = ("run", "step", "part", "method", "capacity")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Member:
    """An update of a run, decomposed; module: its name where modules meet, --map applied."""

    run: Run
    module: str
    update: Update
    found: Decomposition

    @property
    def columns(self) -> Row:
        """Which update this is, by ONE; key is run[@step]/module[#part], as the run calls it."""
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


def pair_columns(a: Member, b: Member) -> Row:
    """Which updates are compared, by PAIR; key is the keys of both with a ~ between."""
    of_a, of_b = a.columns, b.columns
    line = of_a | {"key": f"{of_a['key']}~{of_b['key']}"}
    for name in OF_EITHER:
        line |= {f"{name}_a": of_a[name], f"{name}_b": of_b[name]}
    return {column: line[column] for column in PAIR}


class Members:
    """The updates of one module, each decomposed once; what cannot be compared is noted.

    skipped: {run, module, reason}; zero: those of them that are no fault, where ΔW = 0.
    """

    def __init__(self, module: str, collected: Collected) -> None:
        self.module = module
        self.skipped: list[dict[str, str]] = []
        self.zero: list[dict[str, str]] = []
        self._by_run = collected.modules[module]
        self._found: dict[Update, Member | None] = {}

    def of(self, run: Run) -> list[Member]:
        """All updates of a run, ΔW = 0 too."""
        return self._known(run, self._by_run.get(run.key, []))

    def parts(self, run: Run) -> list[Member]:
        """The parts of the module in a run that can be compared with one another."""
        parts = list(pairing.parts(self._by_run.get(run.key, [])))
        return self._moved(run, parts) if len(parts) > 1 else []

    def pairs(self, pairs: Pairs) -> Iterator[tuple[Member, Member]]:
        """The updates of two runs that meet, have one shape, and are not zero."""
        for a, b in pairs:
            if a.key not in self._by_run or b.key not in self._by_run:
                continue
            meeting, only_a, only_b = pairing.meeting(
                self._by_run[a.key], self._by_run[b.key], lambda update: update.part
            )
            for here, only, there in ((a, only_a, b), (b, only_b, a)):
                for update in only:
                    where = f"{there.path}: {self._name(update)}: is not in it, but in {here.path}"
                    self.skip(there, where)
            for x, y in meeting:
                if x.shape != y.shape:
                    where = f"{self._name(x)}: is {x.shape} in {a.path} and {y.shape} in {b.path}"
                    self.skip(a, f"{where}; expected one shape")
                else:
                    yield from itertools.product(self._moved(a, [x]), self._moved(b, [y]))

    def skip(self, run: Run, reason: str) -> None:
        """Note why the module of a run is not compared; the same is noted once."""
        note = {"run": run.key, "module": self.module, "reason": reason}
        if note not in self.skipped:
            self.skipped.append(note)

    def _moved(self, run: Run, updates: Sequence[Update]) -> list[Member]:
        """Those that are not zero."""
        known = self._known(run, updates)
        for member in known:
            if member.found.rank == 0:
                name = self._name(member.update)
                reason = f"{run.path}: {name}: ΔW is zero; it has no direction"
                self.skip(run, reason)
                self.zero += [note for note in self.skipped if note["reason"] == reason]
        return [member for member in known if member.found.rank]

    def _name(self, update: Update) -> str:
        return f"{self.module} {update.part}".strip()

    def _known(self, run: Run, updates: Sequence[Update]) -> list[Member]:
        for update in updates:
            if update not in self._found:
                self._found[update] = self._decomposed(run, update)
        return [member for update in updates if (member := self._found[update])]

    def _decomposed(self, run: Run, update: Update) -> Member | None:
        try:
            found = decompose.decomposition(update)
        except CheckpointError as error:
            self.skip(run, str(error))
        except MemoryError:
            self.skip(run, f"{run.path}: {self.module}: does not fit into memory")
        else:
            return Member(run, self.module, update, found)
        return None


def over_modules(
    job: Callable[[Members], Result], collected: Collected, progress: bool
) -> Iterator[Result]:
    """What `job` makes of each module: low-rank ones several at a time, then the dense ones."""

    def work(module: str) -> tuple[Members, Result]:
        members = Members(module, collected)
        return members, job(members)

    def noted(members: Members, result: Result) -> Result:
        collected.skipped.extend(members.skipped)
        collected.zero.extend(members.zero)
        return result

    dense = [module for module in collected.modules if _is_dense(module, collected)]
    factored = [module for module in collected.modules if module not in set(dense)]
    for _, done in parallel.in_order(work, factored):
        yield noted(*done)
    for module in parallel.with_bar(dense, progress, "comparing", "module"):
        yield noted(*work(module))


def _is_dense(module: str, collected: Collected) -> bool:
    updates = itertools.chain.from_iterable(collected.modules[module].values())
    return any(isinstance(update, DenseUpdate) for update in updates)
