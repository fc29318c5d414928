"""Collect the updates of several checkpoints and match them by module and part."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from analysis import CheckpointError, UserError, checkpoint
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.update import Entry, LowRankUpdate, Other, Skipped, Update

# A hint about names looks at the first FEW names of one checkpoint, at MANY of the other, and at
# the first LONGEST letters of each.
FEW, MANY, LONGEST = 8, 64, 100
# So many comparisons are made of any checkpoints, and one more for every SHARE numbers in them.
COMPARED, SHARE = 2000, 512
HELD = 2  # the updates of so many checkpoints are kept in memory; those of others are read twice
Rename = tuple[str, str]  # a regular expression and its replacement
Item = TypeVar("Item")
Pairs = list[tuple[Run, Run]]


@dataclass(frozen=True, eq=False)
class Collected:
    """The updates of several checkpoints, and what could not be read or compared.

    modules: module -> run key -> its updates, one per part; low-rank ones of all runs but the
        first HELD without their numbers (`outline`), for which see `of`.
    skipped: {run, module, reason} for each update that could not be read or compared.
    zero: the entries of `skipped` that are no fault, because ΔW = 0.
    other: {run, name, what} for each tensor that is not an update.
    """

    modules: dict[str, dict[str, list[Update]]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    zero: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)
    again: dict[str, "Again"] = field(default_factory=dict)

    def of(self, module: str) -> dict[str, list[Update]]:
        """Return run key -> the updates of a module with their numbers, read again if need be.

        It takes no memory for other modules if they are asked for in the order of the files. An
        update that cannot be read again, since its file was changed meanwhile, is noted as skipped.
        """
        return {
            key: self.again[key].updates(module, updates, self.skip)
            if key in self.again
            else updates
            for key, updates in self.modules[module].items()
        }

    def add(
        self,
        run: Run,
        entry: Entry,
        wanted: re.Pattern[str],
        rename: Sequence[Rename],
        held: bool = True,
    ) -> None:
        """Add one entry of a run's checkpoint; `wanted` and `rename` as for `collect`.

        held: False to keep no numbers of low-rank updates.
        """
        if isinstance(entry, Other):
            self.other.append(entry.listed(run.key))
            return
        name = renamed(entry.name, rename)
        if not wanted.search(name):
            return
        if isinstance(entry, Skipped):
            self.skip(run, name, entry.reason)
            return
        updates = self.modules.get(name, {}).get(run.key, [])
        if any(update.part == entry.part for update in updates):
            self.skip(run, name, f"{run.path}: {name}: appears twice in the checkpoint")
        else:
            kept = entry if held else outline(entry)
            self.modules.setdefault(name, {}).setdefault(run.key, []).append(kept)

    def skip(self, run: Run, module: str, reason: str) -> None:
        """Note that a module could not be analysed; module "" stands for the whole run."""
        self.skipped.append({"run": run.key, "module": module, "reason": reason})

    def names(self, run: Run) -> list[str]:
        """Names of the modules of which the run has an update."""
        return [module for module, by_run in self.modules.items() if run.key in by_run]

    def updates(self, run: Run) -> list[Update]:
        """All updates of the run."""
        return [u for by_run in self.modules.values() for u in by_run.get(run.key, [])]


def collect(
    runs: Sequence[Run],
    options: Options,
    wanted: re.Pattern[str],
    rename: Sequence[Rename] = (),
    most: int | None = None,
) -> Collected:
    """Return the updates of all runs; low-rank ones of `most` of them with their numbers.

    runs: the checkpoints to read; one that cannot be read is noted as skipped.
    options: what a checkpoint does not say of itself.
    wanted: only modules whose name has a match.
    rename: (pattern, replacement), applied in turn to the names of every checkpoint, so that
        modules with different names can be matched. Raises UserError for an invalid pattern.
    most: the number of runs of which all numbers are kept; HELD by default.
    """
    collected = Collected()
    most = HELD if most is None else most
    for i, run in enumerate(runs):
        try:
            for entry in checkpoint.scan(run, options):
                collected.add(run, entry, wanted, rename, held=i < most)
            if i >= most:
                scan = partial(checkpoint.scan, run, options)
                collected.again[run.key] = Again(run, scan, wanted, rename)
        except CheckpointError as error:
            collected.skip(run, "", str(error))
        except MemoryError:
            collected.skip(run, "", f"{run.path}: does not fit into memory")
    return collected


def outline(update: Update) -> Update:
    """Return an update without its numbers, of equal shape, rank and dtype; for a low-rank one."""
    if not isinstance(update, LowRankUpdate):
        return update
    B, A = (np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in (update.B, update.A))
    return replace(update, B=B, A=A, sizes=None, inner=None)


class Again:
    """The low-rank updates of one run, read a second time, each module when it is asked for.

    run: whose updates they are.
    scan: returns the entries of its checkpoint.
    wanted, rename: as for `collect`.
    """

    def __init__(
        self,
        run: Run,
        scan: Callable[[], Iterator[Entry]],
        wanted: re.Pattern[str],
        rename: Sequence[Rename],
    ) -> None:
        self._run, self._scan, self._wanted, self._rename = run, scan, wanted, rename
        self._left: Iterator[Entry] = iter(())
        self._passed: dict[str, list[LowRankUpdate]] = {}  # read on the way to another module

    def updates(
        self, module: str, outlines: Sequence[Update], skip: Callable[[Run, str, str], object]
    ) -> list[Update]:
        """Return the updates of a module whose outlines are given, in their order.

        skip: is called with the run, the module and a reason for each that cannot be read.
        """
        missing = {update.part for update in outlines if isinstance(update, LowRankUpdate)}
        found = self._read(module, missing) if missing else {}
        complete: list[Update] = []
        for update in outlines:
            same = found.get(update.part, update)
            if isinstance(update, LowRankUpdate) and (same is update or same.shape != update.shape):
                reason = "has changed or cannot be read any more; expected it as at the start"
                skip(self._run, module, f"{self._run.path}: {module}: {reason}")
            else:
                complete.append(same)
        return complete

    def _read(self, module: str, parts: set[str]) -> dict[str, LowRankUpdate]:
        """Return part -> update, the first of each part; from the start if it was passed before."""
        for _ in range(2):
            found: dict[str, LowRankUpdate] = {}
            for update in self._passed.pop(module, []):
                found.setdefault(update.part, update)
            try:
                while not parts <= found.keys() and (entry := next(self._left, None)) is not None:
                    if not isinstance(entry, LowRankUpdate):
                        continue
                    name = renamed(entry.name, self._rename)
                    if name == module:
                        found.setdefault(entry.part, entry)
                    elif self._wanted.search(name):
                        self._passed.setdefault(name, []).append(entry)
                if parts <= found.keys():
                    return found
                self._passed, self._left = {}, self._scan()
            except CheckpointError:
                self._passed, self._left = {}, iter(())
        return found


def refuse_many(pairs: Pairs, runs: Sequence[Run], collected: Collected) -> None:
    """Raise UserError if far more comparisons would be made than there are numbers to compare.

    pairs: the runs that are compared; runs: those whose parts are compared with one another. A
    small file can hold thousands of parts, of which millions of pairs could be made.
    """
    count = stored = 0
    for by_run in collected.modules.values():
        several = {key: sum(_parts_of(update) for update in u) for key, u in by_run.items()}
        most = {key: max(len(u), 1) for key, u in by_run.items()}
        count += sum(most[a.key] for a, b in pairs if a.key in by_run and b.key in by_run)
        inside = [several[run.key] for run in runs if run.key in by_run]
        count += sum(n * (n - 1) // 2 for n in inside)
        stored += sum(numbers(update) for u in by_run.values() for update in u)
    most_compared = COMPARED + stored // SHARE
    if count > most_compared:
        raise UserError(
            f"{count} comparisons of updates that have {stored} numbers together; expected at"
            f" most {most_compared}: name fewer checkpoints, or choose with --modules"
        )


def _parts_of(update: Update) -> int:
    """Return how many parts `parts` makes of an update."""
    if isinstance(update, LowRankUpdate):
        return max(update.stacked, int(bool(update.part)))
    return int(bool(update.part))


def numbers(update: Update) -> int:
    """Return how many numbers an update has, in its factors or in its matrix."""
    if isinstance(update, LowRankUpdate):
        return update.B.size + update.A.size
    return math.prod(update.shape)


def renamed(name: str, rename: Sequence[Rename]) -> str:
    """Return `name` after every replacement; UserError if a pattern or replacement is invalid."""
    for pattern, replacement in rename:
        try:
            name = re.sub(pattern, replacement, name)
        except (re.error, IndexError) as error:
            raise UserError(f"--map {pattern!r} {replacement!r}: {error}") from None
    return name


def sharing(pairs: Pairs, collected: Collected) -> Pairs:
    """Return the pairs of runs that have a module in common.

    A module that only one run of a pair has is noted as skipped in `collected`. A pair without a
    common module is noted once, with the most similar names as a hint.
    """
    faults = {(skip["run"], skip["module"]) for skip in collected.skipped}
    kept = []
    lacking: dict[tuple[Run, str], list[str]] = {}
    for a, b in pairs:
        if (a.key, "") in faults or (b.key, "") in faults:
            continue
        names_a, names_b = collected.names(a), collected.names(b)
        if set(names_a).isdisjoint(names_b):
            reason = f"{a.path} and {b.path} share no module; {_closest(names_a, names_b)}"
            collected.skip(a, "", reason)
            continue
        kept.append((a, b))
        for here, names, there in ((a, names_a, b), (b, names_b, a)):
            for module in set(names) - set(collected.names(there)):
                lacking.setdefault((there, module), []).append(str(here.path))
    for (there, module), having in sorted(lacking.items(), key=lambda item: item[0][1]):
        if (there.key, module) not in faults:
            paths = ", ".join(dict.fromkeys(having))
            collected.skip(there, module, f"{there.path}: {module}: is missing, but is in {paths}")
    return kept


def _closest(names_a: Sequence[str], names_b: Sequence[str]) -> str:
    """Return a hint for two checkpoints without a common module: the most similar names."""
    if not names_a or not names_b:
        return "one of them has no update at all"
    # The comparison of two names takes a time that grows with the product of their lengths.
    others = {name[:LONGEST]: name for name in names_b[:MANY]}
    for name in names_a[:FEW]:
        near = difflib.get_close_matches(name[:LONGEST], others, n=1, cutoff=0.5)
        if near:
            return f"the closest names are {name} and {others[near[0]]}: see --map"
    return f"their names look like {names_a[0]} and {names_b[0]}"


def match_parts(
    a: Sequence[Item], b: Sequence[Item], part: Callable[[Item], str | None]
) -> tuple[list[tuple[Item, Item]], list[Item], list[Item]]:
    """Match what two runs have of one module by part.

    a, b: the items of each run; `part` returns the part of an item. Returns the pairs of equal
    parts, the items that only a has and the items that only b has. If one run has the module
    without parts, its item is paired with each part of the other.
    """
    of_a, of_b = ({part(item) or "": item for item in items} for items in (a, b))
    if a and b and set(of_a).isdisjoint(of_b) and {""} in (set(of_a), set(of_b)):
        return [(x, y) for x in a for y in b], [], []
    pairs = [(item, of_b[name]) for name, item in of_a.items() if name in of_b]
    only_a = [item for name, item in of_a.items() if name not in of_b]
    return pairs, only_a, [item for name, item in of_b.items() if name not in of_a]


def parts(updates: Sequence[Update]) -> Iterator[Update]:
    """Yield the parts of one module in one run that have the same inputs and outputs.

    Stacked modules are yielded one by one. Left out are blocks of the layer's rows, updates that
    are computed from the other parts (a mean of heads), and an update without parts.
    """
    for update in updates:
        if isinstance(update, LowRankUpdate) and update.stacked > 1:
            yield from update.unstacked()
        elif update.part and not (
            isinstance(update, LowRankUpdate) and (update.of_rows or update.of_parts)
        ):
            yield update
