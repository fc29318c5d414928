"""Blocks of a fused layer (query, key, value) whose factors are stacked in one pair.

    A (m·r, d_in), B (rows₁ + … + rows_m, r)     block j has ΔW = scale · Bⱼ @ Aⱼ, (rowsⱼ, d_in)

B @ A has no meaning. The rows of a block are not in the file, and with grouped queries they are
unequal: they come from the config of the model, or from --blocks.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import Stored


def count(B: Sequence[int], A: Sequence[int]) -> int:
    """Return the number m of blocks that the shapes of a pair show; 1 for any other pair.

    >>> count(B=(80, 4), A=(8, 64)), count(B=(80, 4), A=(4, 64))
    (2, 1)
    """
    if len(A) != 2 or len(B) != 2 or 0 in (*A, *B):
        return 1
    m = A[0] // B[1]
    return m if m * B[1] == A[0] and 1 < m <= B[0] else 1


def cut(
    B: Stored, A: Stored, rows: Sequence[int], where: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield Bⱼ (rowsⱼ, r) and Aⱼ (r, d_in) of each block.

    B, A: the stacked pair.
    rows: the rows of each block, in their order; () if they are not known.
    where: file and module, for messages.

    Raises CheckpointError if `rows` are not known or do not fit the shapes.
    """
    m = count(B.shape, A.shape)
    shapes = f"{where}: B is {B.shape}, A is {A.shape}"
    if not rows:
        raise CheckpointError(
            f"{shapes}: {m} blocks of a fused layer, whose rows are not in the file; pass them in"
            f" their order, --blocks {','.join(['N'] * m)}, with a sum of {B.shape[0]}"
        )
    if len(rows) != m or sum(rows) != B.shape[0]:
        raise CheckpointError(
            f"{shapes}; expected {m} blocks with {B.shape[0]} rows in all, got"
            f" {','.join(map(str, rows))}"
        )
    ends = np.cumsum(rows)[:-1]
    yield from zip(np.split(B.load(), ends), np.split(A.load(), m), strict=True)
