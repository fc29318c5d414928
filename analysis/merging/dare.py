"""DARE: drop entries of each ΔW at random, rescale the others, and add.

Yu et al., arXiv 2311.03099: each entry of ΔWᵢ is kept with a probability p, the density, and
divided by p, so that the expected value stays; then the ΔWᵢ are added (PEFT's "dare_linear_svd";
its "dare_linear" does the same to A and B one by one, whose product is then not even right on
average). The result has full rank, so one module's ΔW is held in memory at a time.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from analysis.merging.joint import check_finite
from analysis.merging.settings import Settings
from analysis.update import DenseUpdate, LowRankUpdate


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> DenseUpdate:
    """Return the sum of the updates after DARE, which is computed when it is loaded.

    What is dropped depends on the seed, the module's name and the adapter's place in the order, and
    on nothing else. Raises CheckpointError for NaN or Inf.
    """
    for update in updates:
        check_finite(update)
    first, density = updates[0], settings.share("dare")

    def load() -> np.ndarray:
        rng = np.random.default_rng([settings.seed, zlib.crc32(first.name.encode())])
        total = np.zeros(first.shape)
        for update in updates:
            total += np.where(rng.random(first.shape) < density, update.dense() / density, 0.0)
        return total

    return DenseUpdate(
        first.name, first.shape, load, part=first.part, method="dare", source=first.source
    )
