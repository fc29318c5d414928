"""Checkpoints → the updates that meet: by the name of the module, then by the part."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from analysis import CheckpointError, checkpoint
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.update import Other, Skipped, Update

Rename = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Collected:
    """What several checkpoints hold.

    modules: module -> run key -> its updates, one a part; skipped: {run, module, reason} of what
    could not be read; other: {run, name, what} of tensors that are no updates.
    """

    modules: dict[str, dict[str, list[Update]]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)

    def skip(self, run: str, module: str, reason: str) -> None:
        """Note that a module could not be analysed."""
        self.skipped.append({"run": run, "module": module, "reason": reason})


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
            found.skip(run.key, "", str(error))
        except MemoryError:
            found.skip(run.key, "", f"{run.path}: does not fit into memory")
    return found


def _collect_run(
    run: Run,
    options: Options,
    wanted: re.Pattern[str],
    rename: Sequence[Rename],
    found: Collected,
) -> None:
    seen = set()
    for entry in checkpoint.scan(run.path, options):
        if isinstance(entry, Other):
            found.other.append({"run": run.key, "name": entry.name, "what": entry.what})
            continue
        name = renamed(entry.name, rename)
        if not wanted.search(name):
            continue
        if isinstance(entry, Skipped):
            found.skip(run.key, name, entry.reason)
        elif (name, entry.part) in seen:
            found.skip(run.key, name, f"{run.path}: {name}: stands twice in the checkpoint")
        else:
            seen.add((name, entry.part))
            found.modules.setdefault(name, {}).setdefault(run.key, []).append(entry)


def renamed(name: str, rename: Sequence[Rename]) -> str:
    """`name` after every replacement; ValueError for a pattern that is no regular expression."""
    for pattern, replacement in rename:
        try:
            name = re.sub(pattern, replacement, name)
        except (re.error, IndexError) as error:
            raise ValueError(f"--map {pattern!r} {replacement!r}: {error}") from None
    return name


def meeting(a: Sequence[Update], b: Sequence[Update]) -> Iterator[tuple[Update, Update]]:
    """The pairs of updates of one module that are compared: equal parts.

    Where one side has no parts, it is compared with each part of the other.
    """
    parts = {update.part: update for update in b}
    common = [(update, parts[update.part]) for update in a if update.part in parts]
    if common:
        yield from common
    elif {update.part for update in a} == {""} or set(parts) == {""}:
        yield from ((x, y) for x in a for y in b)


def closest(found: Collected, a: Run, b: Run) -> str:
    """A hint for two checkpoints that share no module: the names that are most alike."""
    names_a, names_b = (
        [module for module, by_run in found.modules.items() if run.key in by_run] for run in (a, b)
    )
    for name in names_a:
        near = difflib.get_close_matches(name, names_b, n=1, cutoff=0.3)
        if near:
            return f"the closest names are {name} and {near[0]}: see --map"
    return f"one has {names_a[0]}, the other {names_b[0]}" if names_a and names_b else ""
