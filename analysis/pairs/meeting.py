"""Checkpoints → the updates that meet: by the name of the module, then by the part."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from analysis import CheckpointError, UserError, checkpoint
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.update import LowRankUpdate, Other, Skipped, Update

Rename = tuple[str, str]
Item = TypeVar("Item")
Pairs = list[tuple[Run, Run]]


@dataclass(frozen=True, eq=False)
class Collected:
    """What several checkpoints hold.

    modules: module -> run key -> its updates, one a part; skipped: {run, module, reason} of what
    could not be read or compared; zero: those of them where ΔW = 0, which is no fault; other:
    {run, name, what} of tensors that are no updates.
    """

    modules: dict[str, dict[str, list[Update]]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    zero: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)

    def skip(self, run: Run, module: str, reason: str) -> None:
        """Note that a module, or "", a whole run, could not be analysed."""
        self.skipped.append({"run": run.key, "module": module, "reason": reason})

    def names(self, run: Run) -> list[str]:
        """The modules that a run has."""
        return [module for module, by_run in self.modules.items() if run.key in by_run]

    def updates(self, run: Run) -> list[Update]:
        """The updates that a run has, in all modules."""
        return [u for by_run in self.modules.values() for u in by_run.get(run.key, [])]


def collect(
    runs: Sequence[Run], options: Options, wanted: re.Pattern[str], rename: Sequence[Rename] = ()
) -> Collected:
    """The updates of all checkpoints, those of a low rank in memory as they are stored.

    wanted: what a module's name must contain. rename: patterns and their replacements, applied in
    turn to the names of every checkpoint, so that modules of other names can meet. Raises
    ValueError for a pattern that is none.
    """
    found = Collected()
    for run in runs:
        try:
            _collect_run(run, options, wanted, rename, found)
        except CheckpointError as error:
            found.skip(run, "", str(error))
        except MemoryError:
            found.skip(run, "", f"{run.path}: does not fit into memory")
    return found


def _collect_run(
    run: Run,
    options: Options,
    wanted: re.Pattern[str],
    rename: Sequence[Rename],
    found: Collected,
) -> None:
    seen = set()
    for entry in checkpoint.scan(run, options):
        if isinstance(entry, Other):
            found.other.append({"run": run.key, "name": entry.name, "what": entry.what})
            continue
        name = renamed(entry.name, rename)
        if not wanted.search(name):
            continue
        if isinstance(entry, Skipped):
            found.skip(run, name, entry.reason)
        elif (name, entry.part) in seen:
            found.skip(run, name, f"{run.path}: {name}: stands twice in the checkpoint")
        else:
            seen.add((name, entry.part))
            found.modules.setdefault(name, {}).setdefault(run.key, []).append(entry)


def renamed(name: str, rename: Sequence[Rename]) -> str:
    """`name` after every replacement; ValueError for a pattern that is no regular expression."""
    for pattern, replacement in rename:
        try:
            name = re.sub(pattern, replacement, name)
        except (re.error, IndexError) as error:
            raise UserError(f"--map {pattern!r} {replacement!r}: {error}") from None
    return name


def sharing(pairs: Pairs, found: Collected) -> Pairs:
    """The pairs that have a module in common; what one lacks and another has is noted in `found`.

    A pair that shares nothing is noted once, with the names that are most alike as a hint.
    """
    faults = {(skip["run"], skip["module"]) for skip in found.skipped}
    kept = []
    lacking: dict[tuple[Run, str], list[str]] = {}
    for a, b in pairs:
        if (a.key, "") in faults or (b.key, "") in faults:
            continue
        names_a, names_b = found.names(a), found.names(b)
        if set(names_a).isdisjoint(names_b):
            reason = f"{a.path} and {b.path} share no module; {_closest(names_a, names_b)}"
            found.skip(a, "", reason)
            continue
        kept.append((a, b))
        for here, names, there in ((a, names_a, b), (b, names_b, a)):
            for module in set(names) - set(found.names(there)):
                lacking.setdefault((there, module), []).append(str(here.path))
    for (there, module), having in sorted(lacking.items(), key=lambda item: item[0][1]):
        if (there.key, module) not in faults:
            where = ", ".join(dict.fromkeys(having))
            found.skip(there, module, f"{there.path}: {module}: is not in it, but in {where}")
    return kept


def _closest(names_a: Sequence[str], names_b: Sequence[str]) -> str:
    """A hint for two checkpoints that share no module: the names that are most alike."""
    if not names_a or not names_b:
        return "one of them has no update at all"
    for name in names_a:
        near = difflib.get_close_matches(name, names_b, n=1, cutoff=0.5)
        if near:
            return f"the closest names are {name} and {near[0]}: see --map"
    return f"they have names as {names_a[0]} and {names_b[0]}"


def meeting(
    a: Sequence[Item], b: Sequence[Item], part: Callable[[Item], str | None]
) -> tuple[list[tuple[Item, Item]], list[Item], list[Item]]:
    """Of what two runs have of one module, the pairs of equal parts; what only a has; only b.

    Where one side has no parts, it meets each part of the other.
    """
    of_a, of_b = ({part(item) or "": item for item in items} for items in (a, b))
    if a and b and set(of_a).isdisjoint(of_b) and {""} in (set(of_a), set(of_b)):
        return [(x, y) for x in a for y in b], [], []
    pairs = [(item, of_b[name]) for name, item in of_a.items() if name in of_b]
    only_a = [item for name, item in of_a.items() if name not in of_b]
    return pairs, only_a, [item for name, item in of_b.items() if name not in of_a]


def parts(updates: Sequence[Update]) -> Iterator[Update]:
    """The parts of one module in one run that read the same input and write the same output.

    A stack of modules is taken apart. A block of the layer's rows is no such part; neither is what
    is made of the other parts, as a mean of heads, nor the only update of a module.
    """
    for update in updates:
        if isinstance(update, LowRankUpdate) and update.stacked > 1:
            yield from update.unstacked()
        elif update.part and not (
            isinstance(update, LowRankUpdate) and (update.of_rows or update.of_parts)
        ):
            yield update
