"""Two updates → how much of the span of one lies in that of the other, beside chance.

C (k₁, k₂) holds the cosines between two orthonormal sets of vectors in R^d, U₁ᵀU₂. A set is
ordered by singular value, so that C[:i, :j] belongs to the top i and the top j directions.
"""

from typing import Any

import numpy as np

from analysis.numerics import metrics
from analysis.numerics.decompose import Basis, Decomposition

CUTS = (1, 4, 8, 16)  # φ is reported for the top i of both, and at k
GRID = 128  # and its grid is kept up to these many directions
SIDES = ("left", "right")
ONE_SIDE = (
    *(f"phi_{i}" for i in CUTS),
    *("phi_k", "chance_k", "above_chance", "largest_angle", "projection_distance"),
)
COLUMNS = (
    "k",
    *(f"{side}_{column}" for side in SIDES for column in ONE_SIDE),
    *("cosine", "norm_ratio", "undetermined"),
)
TIE = 1e4  # how many times their error two values must lie apart to be told apart
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


def principal_angles(C: np.ndarray, a: Basis, b: Basis) -> np.ndarray:
    """Angles between the spans of the first k vectors of a and of b, (k,), radians, ascending.

    C (k, k): their cosines, the upper left of a.against(b). As `scipy.linalg.subspace_angles`
    gives them, descending there (Björck & Golub 1973): from cosines, and where these are near 1
    from sines, so that small angles keep their digits.
    """
    cosines = np.linalg.svd(C, compute_uv=False)
    angles = np.arccos(np.clip(cosines, -1.0, 1.0))
    near = cosines > NEARLY_EQUAL
    if near.any():
        k = len(C)
        sines = np.linalg.svd(b.vectors(k) - a.vectors(k) @ C, compute_uv=False)[::-1]
        angles[near] = np.arcsin(np.clip(sines, 0.0, 1.0))[near]
    return np.maximum.accumulate(angles)


def projection_distance(angles: np.ndarray) -> float:
    """‖P₁ − P₂‖_F/√2 of the projections on two spans of equal dimension k, in [0, √k]."""
    return float(np.linalg.norm(np.sin(angles)))


def undetermined(found: Decomposition) -> np.ndarray:
    """For which i the span of the first i vectors is no property of ΔW; (capacity,), bool.

    Where values i and i + 1 are equal up to their error, the vectors of either side of the cut
    rotate into one another; beyond the rank they are arbitrary.
    """
    gaps = found.s - np.append(found.s[1:], 0.0)
    open_cut = gaps <= TIE * found.error_bound
    if found.rank:
        open_cut[found.rank - 1] = False
    open_cut[found.rank :] = True
    return open_cut


def pair_measures(
    a: Decomposition, b: Decomposition
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All numbers by COLUMNS, nan where undefined, and the grids and angles behind them.

    k: the smaller rank. {side}_phi_i: φ(i, i); chance_k: k/d; above_chance: mean of φ(i, i) − i/d
    over i = 1…k (at most 128); largest_angle: between the spans of the top k, radians;
    projection_distance: of these spans, in [0, √k]. cosine: ⟨ΔW₁, ΔW₂⟩/(‖ΔW₁‖‖ΔW₂‖); norm_ratio:
    ‖ΔW₁‖/‖ΔW₂‖; undetermined: the i at which φ(i, i) is left out, separated by blanks.
    Arrays: "left" and "right", φ (n, n), n = min(k, 128); "left_angles", "right_angles" (k,).
    Neither update may be zero.
    """
    k = min(a.rank, b.rank)
    n = min(k, GRID)
    open_a, open_b = undetermined(a), undetermined(b)
    numbers: dict[str, Any] = {"k": k}
    arrays = {}
    product = np.ones((1, 1))
    for side in SIDES:
        ours, theirs = getattr(a, side), getattr(b, side)
        d = len(ours.M)
        C = ours.against(theirs)
        product = product * C
        grid = phi_of(C[:n, :n])
        grid[open_a[:n]] = grid[:, open_b[:n]] = np.nan
        at_k = {"phi_k": np.nan, "largest_angle": np.nan, "projection_distance": np.nan}
        if not (open_a[k - 1] or open_b[k - 1]):
            angles = principal_angles(C[:k, :k], ours, theirs)
            at_k = {
                "phi_k": float(np.sum(C[:k, :k] ** 2) / k),
                "largest_angle": float(angles[-1]),
                "projection_distance": projection_distance(angles),
            }
            arrays[f"{side}_angles"] = angles
        arrays[side] = grid
        of_side = {
            **{f"phi_{i}": float(grid[i - 1, i - 1]) if i <= n else np.nan for i in CUTS},
            **at_k,
            "chance_k": k / d,
            "above_chance": above_chance(grid, d),
        }
        numbers |= {f"{side}_{name}": value for name, value in of_side.items()}
    norm_a, norm_b = (metrics.frobenius_norm(found.s) for found in (a, b))
    cosine = (a.s / norm_a) @ product @ (b.s / norm_b)
    numbers["cosine"] = float(np.clip(cosine, -1.0, 1.0))
    with np.errstate(over="ignore"):
        numbers["norm_ratio"] = float(np.float64(norm_a) / norm_b)
    cuts = dict.fromkeys((*(i for i in CUTS if i <= k), k))
    left_out = [str(i) for i in cuts if open_a[i - 1] or open_b[i - 1]]
    numbers["undetermined"] = " ".join(left_out) or None
    return numbers, arrays
