"""Draw the order in which examples are trained on, before training starts.

The order depends only on the tasks and lengths of the examples, the batch size and the seed: not
on the method, on the number of workers or processes, or on where a run was interrupted.
"""

import itertools
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence

from analysis import UserError

_WINDOW = 50  # number of batches within which `bucket` sorts examples by length
_PACKED = 200  # number of rows, about, within which `pack` places examples
PROPORTIONAL, EQUAL, FAMILIES = "proportional", "equal", "families"


def temperature(mixture: str) -> float:
    """Temperature T of a mixture: a task of N examples is drawn with probability ∝ N^(1/T).

    'proportional' is 1, 'equal' and 'families' (of families instead of tasks) are infinity, and a
    number stands for itself. Raises UserError for anything else.
    """
    named = {PROPORTIONAL: 1.0, EQUAL: math.inf, FAMILIES: math.inf}
    try:
        value = named.get(mixture) or float(mixture)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(
            f"mixture is {mixture!r}; expected {PROPORTIONAL}, {EQUAL}, {FAMILIES} or a temperature"
            " above 0"
        )
    return value


def draw(tasks: Sequence[Hashable], rng: random.Random, temperature: float = 1) -> Iterator[int]:
    """Yield indices of examples without end; `tasks[i]` is the task of example i.

    At temperature 1, epoch follows epoch; each of them has every example once, in random order.
    At another temperature T, each draw first chooses a task, with probability ∝ N^(1/T) for a task
    of N examples, and every task goes through epochs of its own.
    """
    if not tasks:
        return
    if temperature == 1:
        while True:
            yield from rng.sample(range(len(tasks)), len(tasks))
    members: dict[Hashable, list[int]] = {}
    for i, task in enumerate(tasks):
        members.setdefault(task, []).append(i)
    names = list(members)
    largest = max(map(len, members.values()))
    weights = [(len(members[task]) / largest) ** (1 / temperature) for task in names]
    left: dict[Hashable, list[int]] = {task: [] for task in names}  # of the task's epoch
    while True:
        task = rng.choices(names, weights)[0]
        if not left[task]:
            left[task] = rng.sample(members[task], len(members[task]))
        yield left[task].pop()


def bucket(
    indices: Sequence[int], lengths: Sequence[int], batch: int, rng: random.Random
) -> list[int]:
    """Reorder the indices so that the examples of a batch have similar lengths.

    Within each window of batches, examples are sorted by length, which saves padding, and the
    batches are shuffled. A batch that is not full comes last in its window.
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
    """Yield packed rows, each a list of examples that have at most `size` tokens together.

    indices: examples in the order in which they are drawn; consumed window by window
    lengths: number of tokens of each example
    size: number of tokens of a row
    rng: shuffles the examples of a row and the rows of a window
    groups: group of each example; a row has examples of one group only

    Within a window of about 200 rows, each row starts with the longest example left and is filled
    with those that leave the least room. Raises UserError if an example is longer than a row.
    """
    if max(lengths, default=0) > size:
        raise UserError(
            f"an example has {max(lengths)} tokens; expected at most {size}, the size of a "
            "packed row"
        )
    group_of = groups or [None] * len(lengths)
    window = max(1, _PACKED * size * len(lengths) // max(sum(lengths), 1))
    while chosen := list(itertools.islice(indices, window)):
        members: dict[Hashable, list[int]] = {}
        for i in chosen:
            members.setdefault(group_of[i], []).append(i)
        rows = [row for of_group in members.values() for row in _rows(of_group, lengths, size)]
        for row in rows:
            rng.shuffle(row)
        rng.shuffle(rows)
        yield from rows


def _rows(examples: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield rows of at most `size` tokens that together have each example once."""
    left: dict[int, list[int]] = {}  # examples not yet in a row, by length
    for i in examples:
        left.setdefault(lengths[i], []).append(i)
    while left:
        longest = max(left)
        row = []
        for length in (longest, *_best_fill(left, longest, size - longest)):
            row.append(left[length].pop())
            if not left[length]:
                del left[length]
        yield row


def _best_fill(left: Mapping[int, Sequence[int]], first: int, room: int) -> list[int]:
    """Lengths of the examples that best fill the `room` next to one of length `first`.

    left: examples by length, among them the one of length `first`

    Bit k of a number says whether some lengths sum to k; adding a length shifts the bits. Among
    equally good fills the longest lengths are taken, because short ones fit anywhere.
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
