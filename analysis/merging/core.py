"""Core Space: TIES on the small matrices that hold the adapters in common reference bases.

Panariello et al., arXiv 2509.17786: Û_B are the left singular vectors of [B₁ … Bₙ], V̂_A the right
ones of [A₁; …; Aₙ]; Mᵢ = Û_BᵀBᵢAᵢV̂_A are merged by any method, and ΔW = Û_B M V̂_Aᵀ. Nothing is lost
in these bases, so methods that a rotation does not change (sum, tsv, iso) give there what they give
anyway; the method used here is TIES, which depends on the bases. Weights and scales multiply the
Mᵢ and do not turn the bases.
"""

from collections.abc import Sequence

import numpy as np

from analysis.merging import ties
from analysis.merging.joint import check_finite, merged_update, rank
from analysis.merging.settings import Settings
from analysis.update import LowRankUpdate, float64


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> LowRankUpdate:
    """Return the TIES merge in core space, of a rank of at most Σ rᵢ.

    Raises CheckpointError for NaN or Inf.
    """
    for update in updates:
        check_finite(update)
    U = _basis(np.hstack([float64(update.B) for update in updates]))
    V = _basis(np.vstack([float64(update.A) for update in updates]).T)
    cores = [u.scale * (U.T @ float64(u.B)) @ (float64(u.A) @ V) for u in updates]
    merged = ties.combined(cores, settings.share("core"))
    return merged_update(updates, U @ merged, V.T, "core")


def _basis(M: np.ndarray) -> np.ndarray:
    """Return the left singular vectors of M whose value is not rounding, at least one."""
    Q, R = np.linalg.qr(M)
    X, s, _ = np.linalg.svd(R, full_matrices=False)
    return Q @ X[:, : max(rank(s, M.shape), 1)]
