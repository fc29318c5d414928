"""Run many small computations in parallel, with results in the order of the items."""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from threadpoolctl import threadpool_limits

from analysis import extras
from analysis.names import printable

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], most: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with function(item), computed in several threads with one BLAS thread each.

    Only a few items are held at once, so that memory does not grow with the checkpoint; `most` of
    them, if it is given. An exception in `function` is raised when its item is due.

    >>> list(in_order(len, ["q", "up_proj"]))
    [('q', 1), ('up_proj', 7)]
    """
    threads = min(8, os.cpu_count() or 1)  # each holds an item's matrices in float64
    held = 2 * threads + 1 if most is None else min(most, 2 * threads + 1)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    torch = sys.modules.get("torch")
    # A new thread does not know how many threads of torch its maker has asked for.
    inherit = partial(torch.set_num_threads, torch.get_num_threads()) if torch else None
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, initializer=inherit) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= held:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield function(item) of each item, computed in another thread, one item ahead at most.

    While the caller works on one result, the next one is made. A caller that is to hold no more
    than these two drops a result before it asks for another. An exception in `function` is raised
    when its item is due.

    >>> list(one_ahead(len, ["q", "up_proj"]))
    [1, 7]
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Let numpy and torch compute with one thread, so that no last digit depends on their number.

    A sum is split among threads, and each split rounds in its own way. Imports torch.

    >>> import torch
    >>> with reproducible():
    ...     torch.get_num_threads()
    1
    """
    with extras.named():
        import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def threads() -> int:
    """Return the number of threads that torch computes one matrix with; imports it.

    >>> threads() >= 1
    True
    """
    with extras.named():
        import torch

    return int(torch.get_num_threads())


def with_bar(
    items: Iterable[Item], progress: bool, label: str, unit: str, total: int | None = None
) -> Iterable[Item]:
    """Return the items, with a progress bar on stderr if they take longer than two seconds.

    progress: False shows no bar, as does a stderr that is not a terminal.
    label: text before the bar; unit: what is counted, singular.
    total: the number of items where they have no length; without it, they are only counted.

    >>> list(with_bar([1, 2], progress=False, label="comparing", unit="module"))
    [1, 2]
    """
    if not (progress and sys.stderr and sys.stderr.isatty()):
        return items
    from tqdm import tqdm

    label, unit = printable(label), f" {unit}"
    return tqdm(items, desc=label, unit=unit, total=total, delay=2, leave=False)
