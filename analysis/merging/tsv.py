"""TSV-Merge: the top directions of every adapter, made orthogonal to those of the others.

Gargiulo et al., arXiv 2412.00081: ΔWᵢ = Uᵢ Σᵢ Vᵢᵀ is cut to its top k directions, k a share 1/n of
the layer's for n adapters; U = [U₁ … Uₙ] and V are replaced by the nearest matrices with
orthonormal columns, U⊥ = X Yᵀ of the SVD U = X D Yᵀ (Procrustes); ΔW = U⊥ Σ V⊥ᵀ with
Σ = diag(Σ₁ … Σₙ).
"""

from collections.abc import Sequence

import numpy as np

from analysis.merging.joint import joint, rank
from analysis.merging.settings import Settings
from analysis.update import LowRankUpdate


def merge(updates: Sequence[LowRankUpdate], settings: Settings) -> LowRankUpdate:
    """Return the TSV merge, of a rank of at most Σ kᵢ.

    Directions of value 0 are left out: their vectors are arbitrary. Raises CheckpointError for NaN
    or Inf.
    """
    together = joint(updates)
    most = settings.keep or max(min(updates[0].shape) // len(updates), 1)
    U, s, V = zip(*(_top(core, most) for core in together.cores), strict=True)
    left, right = orthogonal(np.hstack(U)), orthogonal(np.hstack(V))
    return together.update((left * np.concatenate(s)) @ right.T, "tsv")


def _top(core: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U (m, k), s (k,), V (n, k) of at most `most` directions that are not rounding."""
    X, s, Yh = np.linalg.svd(core, full_matrices=False)
    k = min(rank(s, core.shape), most)
    return X[:, :k], s[:k], Yh[:k].T


def orthogonal(M: np.ndarray) -> np.ndarray:
    """Return the polar factor X Yᵀ of M = X D Yᵀ, the nearest matrix with orthonormal columns.

    Directions that D lacks, because columns of M are dependent, are left out rather than completed
    at will: equal columns stay equal.

    >>> orthogonal(np.array([[2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    X, d, Yh = np.linalg.svd(M, full_matrices=False)
    k = rank(d, M.shape)
    return X[:, :k] @ Yh[:k]
