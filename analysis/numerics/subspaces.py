"""Measure how much of the span of one update's directions lies in that of another's.

C (k₁, k₂) holds the cosines U₁ᵀU₂ between two sets of orthonormal vectors in R^d. A set is
ordered by singular value, so that C[:i, :j] belongs to the top i and the top j directions.
"""

from typing import Any

import numpy as np

from analysis.numerics import metrics
from analysis.numerics.decompose import Basis, Decomposition
from analysis.numerics.turning import TURNED

CUTS = (1, 4, 8, 16)  # φ(i, i) is reported at these i, and at k
GRID = 128  # the grid φ(i, j) is kept for i and j up to this
SIDES = ("left", "right")
COLUMNS = (
    "k",
    "left_phi_1", "left_phi_4", "left_phi_8", "left_phi_16", "left_phi_k",
    "left_chance_k", "left_above_chance", "left_largest_angle", "left_projection_distance",
    "right_phi_1", "right_phi_4", "right_phi_8", "right_phi_16", "right_phi_k",
    "right_chance_k", "right_above_chance", "right_largest_angle", "right_projection_distance",
    "cosine", "norm_ratio", "undetermined",
)  # fmt: skip
TIE = 1e4  # two singular values are told apart if they differ by more than TIE · error_bound
NEARLY_EQUAL = 1 - 1e-6  # the arc cosine of a larger cosine has lost digits


def phi(U1: np.ndarray, U2: np.ndarray) -> np.ndarray:
    """φ(i, j) = ‖U₁[:, :i]ᵀ U₂[:, :j]‖_F² / min(i, j), in [0, 1] (Hu et al. 2021, section 7).

    U1 (d, k₁), U2 (d, k₂), orthonormal columns -> (k₁, k₂), φ(i, j) at [i − 1, j − 1]. 1: the
    smaller span lies in the larger; 0: they are orthogonal. Unchanged by signs of vectors and by a
    rotation of both sets.

    >>> axes = np.eye(4)
    >>> phi(axes[:, [0, 1]], axes[:, [0, 2]]).tolist()
    [[1.0, 1.0], [1.0, 0.5]]
    """
    return phi_of(U1.T @ U2)


def phi_of(C: np.ndarray) -> np.ndarray:
    """φ(i, j) from the cosines C = U₁ᵀU₂, (k₁, k₂); see `phi`.

    >>> phi_of(np.eye(2)).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    i, j = (np.arange(1, k + 1) for k in C.shape)
    return np.cumsum(np.cumsum(C**2, axis=0), axis=1) / np.minimum.outer(i, j)


def chance(k1: int, k2: int, d: int) -> np.ndarray:
    """Mean of φ(i, j) over random subspaces of R^d, which is max(i, j)/d; (k₁, k₂).

    >>> chance(2, 3, d=4).tolist()
    [[0.25, 0.5, 0.75], [0.5, 0.5, 0.75]]
    """
    return np.maximum.outer(np.arange(1, k1 + 1), np.arange(1, k2 + 1)) / d


def above_chance(grid: np.ndarray, d: int) -> float:
    """Mean of φ(i, i) − i/d over the i at which φ is not nan; nan if it is nan at all.

    grid (k₁, k₂): φ(i, j), as from `phi`; d: the dimension of the space.

    >>> above_chance(phi(np.eye(8)[:, :3], np.eye(8)[:, :3]), d=8)
    0.75
    """
    k1, k2 = grid.shape
    diagonal = np.diagonal(grid) - np.diagonal(chance(k1, k2, d))
    defined = np.isfinite(diagonal)
    return float(diagonal[defined].mean()) if defined.any() else float("nan")


def principal_angles(C: np.ndarray, a: Basis, b: Basis) -> np.ndarray:
    """Angles between the spans of the first k vectors of a and of b, (k,), radians, ascending.

    C (k, k): the cosines of these vectors, the upper left block of a.against(b). Equivalent to
    `scipy.linalg.subspace_angles` in reverse order (Björck & Golub 1973): computed from cosines,
    and from sines if the cosine is near 1, so that small angles keep their digits.

    >>> a, b = Basis(np.eye(3)[:, :2]), Basis(np.eye(3)[:, 1:])
    >>> (principal_angles(a.against(b), a, b) / np.pi).round(6).tolist()
    [0.0, 0.5]
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
    """‖P₁ − P₂‖_F/√2 of the projections on two spans of equal dimension k, in [0, √k].

    angles (k,): the principal angles between the spans, radians.

    >>> projection_distance(np.array([0.0, np.pi / 2]))
    1.0
    """
    return float(np.linalg.norm(np.sin(angles)))


def undetermined(decomposition: Decomposition) -> np.ndarray:
    """Return, for each cut i, whether ΔW leaves the span of the first i vectors open.

    (capacity,), bool, cut i at [i − 1]. If the values i and i + 1 are equal up to their error, the
    vectors on both sides of the cut rotate into one another, be it the error of the computation
    (TIE) or of the stored numbers (TURNED); beyond the rank they are arbitrary. The cut at the rank
    itself is undetermined only by what is stored.

    >>> basis = Basis(np.eye(4))
    >>> s = np.array([3.0, 2.0, 2.0, 0.0])
    >>> undetermined(Decomposition(basis, s, basis, rank=3, error_bound=1e-15)).tolist()
    [False, True, False, True]
    """
    s, rank = decomposition.s, decomposition.rank
    gaps = s - np.append(s[1:], 0.0)
    open_cuts = gaps <= TIE * decomposition.error_bound
    if rank:
        open_cuts[rank - 1] = False
    if decomposition.turning is not None:
        open_cuts |= decomposition.turning.largest > TURNED
    open_cuts[rank:] = True
    return open_cuts


def pair_measures(
    a: Decomposition, b: Decomposition
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the similarity of two updates by COLUMNS, and the arrays behind the numbers.

    k: the smaller rank.
    {side}_phi_i: φ(i, i) for i in CUTS, and for k.
    {side}_chance_k: k/d.
    {side}_above_chance: mean of φ(i, i) − i/d over i = 1 … min(k, GRID).
    {side}_largest_angle: largest principal angle between the spans of the top k, radians.
    {side}_projection_distance: of these spans, in [0, √k].
    cosine: ⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖).
    norm_ratio: ‖ΔW_a‖/‖ΔW_b‖.
    undetermined: the reported i at which φ(i, i) is left out, separated by blanks; None if none.

    A number is nan if it is undefined or undetermined. Arrays: "left" and "right", the grids φ
    (n, n), n = min(k, GRID), nan at undetermined cuts; "left_angles" and "right_angles", the
    principal angles (k,), missing if the cut at k is undetermined. Neither update may be zero.

    >>> U = np.eye(4)[:, :2]
    >>> a = Decomposition(Basis(U), np.array([2.0, 1.0]), Basis(U), rank=2, error_bound=1e-15)
    >>> b = Decomposition(Basis(U), np.array([2.0, 2.0]), Basis(U), rank=2, error_bound=1e-15)
    >>> numbers, arrays = pair_measures(a, b)
    >>> numbers["left_phi_k"], numbers["left_phi_1"], numbers["undetermined"]
    (1.0, nan, '1')
    """
    k = min(a.rank, b.rank)
    open_cuts_a, open_cuts_b = undetermined(a), undetermined(b)
    numbers: dict[str, Any] = {"k": k}
    arrays = {}
    product = np.ones((1, 1))
    for side in SIDES:
        basis_a, basis_b = getattr(a, side), getattr(b, side)
        C = basis_a.against(basis_b)
        product = product * C
        of_side, grid, angles = _side_measures(C, basis_a, basis_b, open_cuts_a, open_cuts_b, k)
        numbers |= {f"{side}_{name}": value for name, value in of_side.items()}
        arrays[side] = grid
        if angles is not None:
            arrays[f"{side}_angles"] = angles
    norm_a, norm_b = metrics.frobenius_norm(a.s), metrics.frobenius_norm(b.s)
    cosine = (a.s / norm_a) @ product @ (b.s / norm_b)
    numbers["cosine"] = float(np.clip(cosine, -1.0, 1.0))
    with np.errstate(over="ignore"):
        numbers["norm_ratio"] = float(np.float64(norm_a) / norm_b)
    reported = dict.fromkeys([*(i for i in CUTS if i <= k), k])
    left_out = [str(i) for i in reported if open_cuts_a[i - 1] or open_cuts_b[i - 1]]
    numbers["undetermined"] = " ".join(left_out) or None
    return {column: numbers[column] for column in COLUMNS}, arrays


def _side_measures(
    C: np.ndarray,
    a: Basis,
    b: Basis,
    open_cuts_a: np.ndarray,
    open_cuts_b: np.ndarray,
    k: int,
) -> tuple[dict[str, float], np.ndarray, np.ndarray | None]:
    """Return the measures of one side, its grid φ and the angles of the top k; see `pair_measures`.

    C: (capacity of a, capacity of b), the cosines a.against(b).
    a, b: the vectors of this side.
    open_cuts_a, open_cuts_b: the undetermined cuts of each update.
    k: the smaller rank.

    The angles are None if the cut at k is undetermined.
    """
    n, d = min(k, GRID), len(a.M)
    grid = phi_of(C[:n, :n])
    grid[open_cuts_a[:n]] = grid[:, open_cuts_b[:n]] = np.nan
    numbers = {f"phi_{i}": float(grid[i - 1, i - 1]) if i <= n else np.nan for i in CUTS}
    numbers |= {"chance_k": k / d, "above_chance": above_chance(grid, d)}
    if open_cuts_a[k - 1] or open_cuts_b[k - 1]:
        numbers |= {"phi_k": np.nan, "largest_angle": np.nan, "projection_distance": np.nan}
        return numbers, grid, None
    angles = principal_angles(C[:k, :k], a, b)
    numbers |= {
        "phi_k": float(np.sum(C[:k, :k] ** 2) / k),
        "largest_angle": float(angles[-1]),
        "projection_distance": projection_distance(angles),
    }
    return numbers, grid, angles
