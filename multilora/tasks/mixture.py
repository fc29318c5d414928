"""The order in which examples are trained on, fixed before training starts.

A run's data order depends on nothing but the examples' lengths, the batch and the seed: not on
the method, the number of workers or of processes, or where a run was interrupted.
"""

import random
from collections.abc import Sequence

_WINDOW = 50  # batches within which examples of like length are put together


def order(lengths: Sequence[int], count: int, batch: int, seed: int) -> list[int]:
    """`count` indices of examples, epoch after epoch, in batches of like length.

    Each epoch is shuffled; within a window of batches examples are sorted by length, which saves
    padding, and the batches shuffled again.
    """
    rng = random.Random(f"order/{seed}")
    indices: list[int] = []
    while len(indices) < count:
        indices += rng.sample(range(len(lengths)), len(lengths))
    del indices[count:]
    batches = []
    for start in range(0, count, _WINDOW * batch):
        window = sorted(indices[start : start + _WINDOW * batch], key=lambda i: -lengths[i])
        whole = len(window) // batch * batch
        groups = [window[i : i + batch] for i in range(0, whole, batch)]
        rng.shuffle(groups)
        batches += groups + ([window[whole:]] if whole < len(window) else [])
    return [i for group in batches for i in group]
