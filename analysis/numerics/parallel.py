"""Many small computations at a time, in the order they are asked for."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from analysis.names import printable

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item with function(item): small kernels, one BLAS thread each, several at a time.

    Only a few items are held at once, so that memory does not grow with the checkpoint.
    """
    threads = min(8, os.cpu_count() or 1)  # each holds an item's matrices in float64
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def with_bar(items: list[Item], progress: bool, label: str, unit: str) -> Iterable[Item]:
    """The items, with a bar on stderr where they take over two seconds."""
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=printable(label), unit=unit, delay=2, disable=None, leave=False)
