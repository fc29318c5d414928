"""KnOTS: TIES in the space that the SVD of all updates side by side gives them.

Stoica et al., arXiv 2410.19735: [ΔW₁ … ΔWₙ] = U Σ [V₁ᵀ … Vₙᵀ] aligns the adapters, which all write
with U; the task matrices Vᵢ are merged by TIES, and ΔW = U V_merged. As in the authors' published
settings (`s_on_V`) TIES acts on Σ Vᵢᵀ, so that an entry counts by its size in ΔW. All is factored:
Σ and the coordinates of U and Vᵢ come from the cores, and the entries of Σ Vᵢᵀ are (k, d_in), with
k the rank of all updates together.
"""

from collections.abc import Sequence

import numpy as np

from analysis.merging import ties
from analysis.merging.joint import joint, merged_update, rank
from analysis.merging.settings import Settings
from analysis.update import LowRankUpdate


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> LowRankUpdate:
    """Return the KnOTS merge with TIES, of a rank of at most Σ rᵢ.

    Raises CheckpointError for NaN or Inf.
    """
    together = joint(updates)
    X, s, Yh = np.linalg.svd(np.hstack(together.cores), full_matrices=False)
    k = max(rank(s, Yh.shape), 1)
    of_tasks = np.hsplit(s[:k, None] * Yh[:k], len(updates))
    merged = ties.combined([V @ together.right.T for V in of_tasks], settings.share("knots"))
    return merged_update(updates, together.left @ X[:, :k], merged, "knots")
