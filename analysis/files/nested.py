"""The state dict in a pickled checkpoint, and the settings next to it.

    {"epoch": 3, "model_state_dict": {<name>: tensor}}       the one dict that holds matrices
    {"checkpoint": {"model": {<name>: tensor}}}              the same, two levels down
    {"q": {"lora_A": tensor, …}, "v": {…}}                   a tree: q.lora_A, …

Optimizers and the like are not looked into. If several dicts hold matrices (a model and its moving
average), nothing says which one is meant.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis import CheckpointError

LEVELS = 2  # of dicts around a state dict
DEEPEST = 8  # levels that are looked into, for a tree or a message
LONGEST = 10_000  # letters of a setting
# Keys of a trainer's own state.
STATE = re.compile(r"optimizer|optim_|_optim|^optim$|scheduler|scaler|rng", re.IGNORECASE)


def state_dict(saved: dict[Any, Any], axes: Callable[[Any], int], path: Path) -> dict[str, Any]:
    """Return name → value of the dict in `saved` that holds matrices, or of a tree of such dicts.

    saved: what a file holds.
    axes: returns the number of axes of a tensor, and -1 for any other value.
    path: the file, for messages.

    If none holds matrices, vectors do, and else numbers. Returns `saved` itself if it has no
    tensors. Raises CheckpointError if several dicts hold some, or if they are deeper than LEVELS.
    """
    most = {where: max(map(axes, held.values()), default=-1) for where, held in _dicts(saved)}
    least = min(2, max(most.values()))
    if least < 0:
        return saved
    holding = {where: held for where, held in _dicts(saved) if most[where] >= least}
    if len(holding) == 1 and len(next(iter(holding))) <= LEVELS:
        (found,) = holding.values()
        return {str(name): value for name, value in found.items()}
    if all("." not in str(name) for found in holding.values() for name in found):
        return _flat(holding)
    named = [".".join(where)[:100] or "the top level" for where in holding]
    if len(named) == 1:
        raise CheckpointError(
            f"{path}: its tensors are under {named[0]}; expected them at most {LEVELS} levels down:"
            " save that dict as a file of its own"
        )
    raise CheckpointError(
        f"{path}: holds {len(named)} dicts of tensors, {named[0]} and {named[1]}"
        f"{' and others' if len(named) > 2 else ''}; expected one: save the one that you mean as a"
        " file of its own"
    )


def settings(saved: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """Return the numbers and short strings in each dict of `saved`, by the path of the dict."""
    found: dict[str, dict[str, Any]] = {}
    for where, held in _dicts(saved):
        plain = {
            name: value
            for name, value in held.items()
            if isinstance(name, str)
            and (
                isinstance(value, bool | int | float)
                or (isinstance(value, str) and len(value) <= LONGEST)
            )
        }
        if plain:
            found[".".join(where)] = plain
    return found


def _dicts(saved: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield path → dict of `saved` and the dicts in it, each once, without a trainer's state."""
    seen = {id(saved)}
    level = [((), saved)]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for where, found in level:
            yield where, found
            for key, value in found.items():
                if isinstance(value, dict) and id(value) not in seen and not STATE.search(str(key)):
                    seen.add(id(value))
                    below.append(((*where, str(key)), value))
        level = below


def _flat(holding: Mapping[tuple[str, ...], dict[Any, Any]]) -> dict[str, Any]:
    """Return the values of a tree by their paths, without what all the paths begin with."""
    paths = list(holding)
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return {
        ".".join((*where[shared:], str(name))): value
        for where, found in holding.items()
        for name, value in found.items()
    }
