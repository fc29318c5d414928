"""The order in which examples are trained on, fixed before training starts.

A run's data order depends on nothing but the examples' tasks and lengths, the batch and the seed:
not on the method, the number of workers or of processes, or where a run was interrupted.
"""

import itertools
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence

from analysis import UserError

_WINDOW = 50  # batches within which examples of like length are put together
_PACKED = 200  # rows, likewise, among which examples are packed
PROPORTIONAL, EQUAL = "proportional", "equal"


def temperature(mixture: str) -> float:
    """T of a mixture, by which a task of N examples is drawn with probability ∝ N^(1/T).

    'proportional' is 1, 'equal' infinity, a number itself. Raises ValueError for anything else.
    """
    try:
        value = {PROPORTIONAL: 1.0, EQUAL: math.inf}.get(mixture) or float(mixture)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(
            f"mixture is {mixture!r}; expected {PROPORTIONAL}, {EQUAL} or a temperature above 0"
        )
    return value


def draw(tasks: Sequence[Hashable], rng: random.Random, temperature: float = 1) -> Iterator[int]:
    """Endless indices of examples, of which example i belongs to `tasks[i]`.

    At temperature 1 epoch follows epoch, each of them every example once in random order. Else
    each draw first chooses a task, with probability ∝ N^(1/T) for one of N examples, and every
    task goes through epochs of its own.
    """
    if temperature == 1:
        while tasks:
            yield from rng.sample(range(len(tasks)), len(tasks))
    members: dict[Hashable, list[int]] = {}
    for i, task in enumerate(tasks):
        members.setdefault(task, []).append(i)
    names = list(members)
    largest = max(map(len, members.values()), default=0)
    weights = [(len(members[task]) / largest) ** (1 / temperature) for task in names]
    left: dict[Hashable, list[int]] = {task: [] for task in names}
    while names:
        task = rng.choices(names, weights)[0]
        if not left[task]:
            left[task] = rng.sample(members[task], len(members[task]))
        yield left[task].pop()


def bucket(
    indices: Sequence[int], lengths: Sequence[int], batch: int, rng: random.Random
) -> list[int]:
    """The indices in batches of like length.

    Within a window of batches examples are sorted by length, which saves padding, and the batches
    shuffled again.
    """
    batches = []
    for start in range(0, len(indices), _WINDOW * batch):
        window = sorted(indices[start : start + _WINDOW * batch], key=lambda i: -lengths[i])
        whole = len(window) // batch * batch
        groups = [window[i : i + batch] for i in range(0, whole, batch)]
        rng.shuffle(groups)
        batches += groups + ([window[whole:]] if whole < len(window) else [])
    return [i for group in batches for i in group]


def pack(
    indices: Iterator[int],
    lengths: Sequence[int],
    size: int,
    rng: random.Random,
    groups: Sequence[Hashable] = (),
) -> Iterator[list[int]]:
    """Rows of at most `size` tokens, each several examples one behind another.

    Within a window of rows each begins with the longest example left and is filled with those
    that leave least room. groups: of each example; no row holds examples of two. Raises
    ValueError where an example is longer than a row.
    """
    if max(lengths, default=0) > size:
        raise UserError(f"an example has {max(lengths)} tokens; a packed row has {size}")
    of = groups or [None] * len(lengths)
    window = max(1, _PACKED * size * len(lengths) // max(sum(lengths), 1))
    while chosen := list(itertools.islice(indices, window)):
        left: dict[Hashable, dict[int, list[int]]] = {}  # group -> length -> examples
        for i in chosen:
            left.setdefault(of[i], {}).setdefault(lengths[i], []).append(i)
        rows = [row for of_group in left.values() for row in _fill(of_group, size)]
        for row in rows:
            rng.shuffle(row)
        rng.shuffle(rows)
        yield from rows


def _fill(left: dict[int, list[int]], size: int) -> Iterator[list[int]]:
    """Rows of `size` tokens out of the examples of each length, which are used up."""
    while left:
        longest = max(left)
        row = []
        for length in (longest, *_best(left, longest, size - longest)):
            row.append(left[length].pop())
            if not left[length]:
                del left[length]
        yield row


def _best(left: Mapping[int, Sequence[int]], first: int, room: int) -> list[int]:
    """The lengths, of those that are left beside `first`, that fill the room best.

    A sum that can be reached is a bit: adding a length shifts them all. Of equals the longest
    lengths are taken, because short ones go in anywhere.
    """
    items: list[int] = []
    for length in sorted(length for length in left if length <= room):
        count = len(left[length]) - (length == first)
        items += [length] * min(count, room // length)
    within = (1 << room + 1) - 1
    reached = [1]
    for length in items:
        reached.append(reached[-1] | reached[-1] << length & within)
    total = reached[-1].bit_length() - 1
    chosen = []
    for length, before in zip(reversed(items), reversed(reached[:-1]), strict=True):
        if length <= total and before >> (total - length) & 1:
            chosen.append(length)
            total -= length
    return chosen


# NEEDIMPORT
