"""Iso-C: the sum of the updates with all its singular values made equal.

Marczak et al., arXiv 2502.04959: Σᵢ ΔWᵢ = U Σ Vᵀ, and ΔW = σ̄ U Vᵀ with σ̄ the mean of the singular
values. The sum of low-rank updates has rank k at most Σ rᵢ; the mean is that of its k values, and
the directions that the sum lacks stay absent.
"""

from collections.abc import Sequence

import numpy as np

from analysis.merging.joint import joint
from analysis.merging.settings import Settings
from analysis.numerics import metrics
from analysis.numerics.decompose import EPS
from analysis.update import LowRankUpdate


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> LowRankUpdate:
    """Return the isotropic sum; zero if the sum is.

    If `settings.rank` is below k, the directions are those of the sum's largest values (among equal
    singular values any choice is a best one), and σ̄ stays that of all. Raises CheckpointError for
    NaN or Inf.
    """
    together = joint(updates)
    total = np.sum(together.cores, axis=0)
    X, s, Yh = np.linalg.svd(total, full_matrices=False)
    # Relative to the terms: what is left where they cancel is rounding.
    size = max(np.linalg.norm(core) for core in together.cores)
    k = metrics.rank(s, max(total.shape) * EPS * max(size, s[0]))
    mean = float(np.mean(s[:k])) if k > 0 else 0.0
    top = min(k, settings.rank or k)
    return together.update(mean * (X[:, :top] @ Yh[:top]), "iso")
