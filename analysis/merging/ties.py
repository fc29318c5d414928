"""TIES-Merging of the entries of ΔW: trim, elect a sign, average those that have it.

Yadav et al., arXiv 2306.01708: of each adapter's ΔWᵢ only the largest entries are kept (trim); each
entry's sign is that of the sum over adapters (elect); the merged entry is the mean over the
adapters whose kept entry has that sign. PEFT's combination "ties" treats A and B one by one
instead, whose entries have no common meaning: (B, A) and (B G, G⁻¹A) are one update. Here, as in
the paper and in PEFT's "ties_svd", the entries are those of ΔW. The result has full rank, so one
module's ΔW is held in memory at a time.
"""

from collections.abc import Sequence

import numpy as np

from analysis.merging.joint import check_finite
from analysis.merging.settings import Settings
from analysis.numerics.decompose import EPS
from analysis.update import DenseUpdate, LowRankUpdate


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> DenseUpdate:
    """Return the TIES merge of the updates, which is computed when it is loaded.

    Trimming is by module, as in PEFT. Raises CheckpointError for NaN or Inf.
    """
    for update in updates:
        check_finite(update)
    first, density = updates[0], settings.share("ties")

    def load() -> np.ndarray:
        return combined([update.dense() for update in updates], density)

    return DenseUpdate(
        first.name, first.shape, load, part=first.part, method="ties", source=first.source
    )


def combined(entries: Sequence[np.ndarray], density: float) -> np.ndarray:
    """Return the TIES merge of arrays of one shape.

    density: share of the entries of each array that is kept, in (0, 1]. An entry is 0 where the
    kept ones add up to 0. What is below the rounding of the largest entry counts as 0, so that an
    adapter that lacks an entry has no part in its mean. Unchanged if the arrays are permuted.

    >>> combined([np.array([3.0, -1.0, 2.0]), np.array([1.0, 4.0, -1.0])], density=1.0).tolist()
    [2.0, 4.0, 2.0]
    """
    kept = [trimmed(array, density) for array in entries]
    rounding = max(entries[0].shape) * EPS * max(float(np.abs(array).max()) for array in entries)
    elected = sum(kept)
    sign = np.where(np.abs(elected) > rounding, np.sign(elected), 0.0)
    total, count = np.zeros(sign.shape), np.zeros(sign.shape)
    for array in kept:
        agrees = array * sign > rounding
        total[agrees] += array[agrees]
        count += agrees
    return total / np.maximum(count, 1)


def trimmed(array: np.ndarray, density: float) -> np.ndarray:
    """Return the array with all but its largest entries set to 0; equally large ones stay together.

    density: the share that stays, in (0, 1], rounded down, but at least one entry.

    >>> trimmed(np.array([1.0, -3.0, 2.0, 0.5]), density=0.5).tolist()
    [0.0, -3.0, 2.0, 0.0]
    """
    if density == 1 or not array.size:
        return array
    n = max(int(density * array.size), 1)
    size = np.abs(array)
    least = np.partition(size, array.size - n, axis=None)[array.size - n]
    return np.where(size >= least, array, 0.0)
