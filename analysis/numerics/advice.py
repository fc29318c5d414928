"""Count the directions that an update needs, and those that chance cannot explain."""

import numpy as np

from analysis.numerics import metrics, null

SHARES = (0.9, 0.95, 0.99)
SPREADS = 2.5  # standard deviations, as for the comparison of two checkpoints


def ranks(s: np.ndarray, rank: int) -> dict[str, int]:
    """Return rank_90, rank_95 and rank_99: the least ranks that hold these shares of the energy.

    s: (k,), descending. rank: the number of values above rounding, which no rank exceeds; all
    ranks are 0 for ΔW = 0.

    >>> ranks(np.array([4.0, 1.0, 0.1]), rank=3)
    {'rank_90': 1, 'rank_95': 2, 'rank_99': 2}
    """
    if rank == 0:
        return {f"rank_{round(100 * share)}": 0 for share in SHARES}
    return {
        f"rank_{round(100 * share)}": min(int(metrics.energy_rank(s, share)), rank)
        for share in SHARES
    }


def beyond_chance(s: np.ndarray, d_out: int, d_in: int, r: int | None) -> int:
    """Return how many directions hold more energy than the first of a random update does.

    s: (k,), descending. r: the rank of the factors, None for a dense update; the random update has
    the same shape and r (`null.chance`). More: than its mean share by SPREADS standard deviations
    between random updates. 0 for ΔW = 0, and for r = 1, where the first direction holds all.

    >>> beyond_chance(np.array([10.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 100, 200, r=8)
    2
    >>> beyond_chance(np.ones(8), 100, 200, r=8)
    0
    """
    if s[0] == 0:
        return 0
    capacity = min(d_out, d_in) if r is None else r
    first = null.chance(d_out, d_in, capacity, s.size, dense=r is None)["top_share_1"]
    shares = (s / np.linalg.norm(s)) ** 2
    return int(np.count_nonzero(shares > first.mean + SPREADS * first.spread))
