"""Two subspaces → numbers: how much of one lies in the other, beside what chance would give.

C (k₁, k₂) holds the cosines between two orthonormal sets of vectors in R^d, U₁ᵀU₂. A set is
ordered by singular value, so that C[:i, :j] belongs to the top i and the top j directions.
"""

import numpy as np

from analysis.decompose import Basis

NEARLY_EQUAL = 1 - 1e-6  # beyond it, the arc cosine of a cosine has lost digits


def phi(U1: np.ndarray, U2: np.ndarray) -> np.ndarray:
    """φ(i, j) = ‖U₁[:, :i]ᵀ U₂[:, :j]‖_F² / min(i, j), in [0, 1] (Hu et al. 2021, section 7).

    U1 (d, k₁), U2 (d, k₂), orthonormal columns -> (k₁, k₂), φ(i, j) at [i − 1, j − 1]. 1: the
    smaller span lies in the larger; 0: they are orthogonal. Unchanged by signs and by a rotation
    of both.
    """
    return phi_of(U1.T @ U2)


def phi_of(C: np.ndarray) -> np.ndarray:
    """φ(i, j) from the cosines C (k₁, k₂); see `phi`."""
    i, j = (np.arange(1, k + 1) for k in C.shape)
    return np.cumsum(np.cumsum(C**2, axis=0), axis=1) / np.minimum.outer(i, j)


def chance(k1: int, k2: int, d: int) -> np.ndarray:
    """Mean of φ(i, j) over random subspaces of R^d, max(i, j)/d; (k₁, k₂)."""
    return np.maximum.outer(np.arange(1, k1 + 1), np.arange(1, k2 + 1)) / d


def above_chance(grid: np.ndarray, d: int) -> float:
    """Mean over i of φ(i, i) − i/d, over the i for which φ is defined; nan where none is."""
    k1, k2 = grid.shape
    diagonal = np.diagonal(grid) - np.diagonal(chance(k1, k2, d))
    defined = np.isfinite(diagonal)
    return float(diagonal[defined].mean()) if defined.any() else float("nan")


def principal_angles(a: Basis, b: Basis, k: int) -> np.ndarray:
    """Angles between the spans of the first k vectors of each, (k,), radians, ascending.

    As `scipy.linalg.subspace_angles` gives them, descending there (Björck & Golub 1973): from
    cosines, and where these are near 1 from sines, so that small angles keep their digits.
    """
    C = a.against(b)[:k, :k]
    cosines = np.linalg.svd(C, compute_uv=False)
    angles = np.arccos(np.clip(cosines, -1.0, 1.0))
    near = cosines > NEARLY_EQUAL
    if near.any():
        U1, U2 = a.vectors(k), b.vectors(k)
        sines = np.linalg.svd(U2 - U1 @ C, compute_uv=False)[::-1]
        angles[near] = np.arcsin(np.clip(sines, 0.0, 1.0))[near]
    return np.maximum.accumulate(angles)


def projection_distance(angles: np.ndarray) -> float:
    """‖P₁ − P₂‖_F/√2 of the projections on two spans of equal dimension k, in [0, √k]."""
    return float(np.linalg.norm(np.sin(angles)))
