"""Measure an update by what it does to inputs x: the spectrum of ΔW C^½, with C = E[x xᵀ].

The mean square of what ΔW adds to a layer's output is E‖ΔW x‖² = ‖ΔW C^½‖²_F. With ΔW = U S Vᵀ the
singular values of ΔW C^½ are those of S (VᵀCV)^½, a (k, k) core, and direction i contributes
sᵢ² E(vᵢᵀx)², a diagonal entry of S VᵀCV S; C = 1 gives those of ΔW. No root of C is taken.
"""

from dataclasses import dataclass

import numpy as np

from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Decomposition

SHARES = (1, 4, 16)  # directions whose share of the energy is a column


@dataclass(frozen=True, eq=False)
class FunctionSpace:
    """The spectrum of ΔW C^½, and what each direction of ΔW contributes to it.

    s: (k,), its singular values, descending, k the rank of ΔW.
    energies: (k,), sᵢ² E(vᵢᵀx)² in the order of ΔW's directions; they sum to E‖ΔW x‖².
    weights: (k,), the singular values of ΔW.
    error_bound: |s − exact| is at most this.
    """

    s: np.ndarray
    energies: np.ndarray
    weights: np.ndarray
    error_bound: float


def function_space(update: Decomposition, C: np.ndarray) -> FunctionSpace | None:
    """Return the spectrum of ΔW C^½; None for ΔW = 0.

    update: the decomposition of ΔW (d_out, d_in).
    C: (d_in, d_in), float64, symmetric and positive semidefinite up to rounding.

    Unchanged by a rotation of inputs and ΔW together; ΔW -> c·ΔW multiplies s by |c|, C -> c·C by
    √c. Entry (i, j) of VᵀCV is a sum of d_in² products with a rounding of about
    d_in · eps · |vᵢ|ᵀ|C||vⱼ|, so a value far below the largest is lost in it, as in every Gram
    matrix; `error_bound` is the root of that, and of the error of S.

    >>> from analysis.update import LowRankUpdate
    >>> update = decompose.decomposition(LowRankUpdate("q", B=np.eye(2), A=np.diag([3.0, 1.0])))
    >>> found = function_space(update, C=np.diag([1.0, 100.0]))
    >>> found.s.round(6).tolist(), found.energies.round(6).tolist()
    ([10.0, 3.0], [9.0, 100.0])
    """
    k = update.rank
    if k == 0:
        return None
    V, s = update.right.vectors(k), update.s[:k]
    H = V.T @ _product(C, V)
    H = (H + H.T) / 2
    diagonal = np.maximum(np.diagonal(H), 0.0)
    core = np.linalg.svd(s[:, None] * _root(H, diagonal), compute_uv=False)
    w = np.abs(V) @ s
    rounding = max(C.shape) * EPS * float(w @ _product(C, w, absolute=True))
    bound = float(np.sqrt(rounding)) + update.error_bound * float(np.sqrt(np.linalg.norm(C)))
    return FunctionSpace(core, s**2 * diagonal, s, bound)


def _product(C: np.ndarray, X: np.ndarray, absolute: bool = False) -> np.ndarray:
    """Return C @ X, or |C| @ X, some rows of C at a time."""
    blocks = (C[i : i + decompose.ROWS] for i in range(0, len(C), decompose.ROWS))
    return np.concatenate([(np.abs(rows) if absolute else rows) @ X for rows in blocks])


def _root(H: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Return R (k, k) with R Rᵀ = H, positive semidefinite; diagonal (k,): of H, nonnegative.

    H is scaled to a unit diagonal first, so that inputs that hardly occur keep their digits, and
    the root is that of its eigenvalues, since H is singular if C is.
    """
    d = np.sqrt(diagonal)
    inverse = np.divide(1.0, d, out=np.zeros_like(d), where=d > 0)
    values, Z = np.linalg.eigh(inverse[:, None] * H * inverse)
    return d[:, None] * Z * np.sqrt(np.maximum(values, 0.0))


def columns(found: FunctionSpace, C: np.ndarray) -> dict[str, float | None]:
    """Return the numbers of an update in function space, by `results.FUNCTION`.

    function_norm: √E‖ΔW x‖², in units of the layer's output.
    function_alignment: E‖ΔW x‖² / (‖ΔW‖²_F tr C / d_in), how much more ΔW adds to the output than
        with inputs of the same mean square that have no preferred direction; 1 for C = 1.
    function_top_share_1, _4, _16: shares of the energy of ΔW C^½ in its own top values.
    function_effective_rank: that of its singular values.
    function_carried_1, _4, _16: Σ_{i≤k} sᵢ² E(vᵢᵀx)² / E‖ΔW x‖², the share of that energy which the
        top k directions of ΔW carry; at most the share above.
    function_rank_correlation: Spearman's, between sᵢ and sᵢ² E(vᵢᵀx)² over the directions of ΔW.
    function_error_bound: of the singular values.

    A number that is undefined is left out: all but the norm and the bound if ΔW reads no input; the
    correlation is None below two different values.

    >>> s, energies, weights = np.array([10.0, 3.0]), np.array([9.0, 100.0]), np.array([3.0, 1.0])
    >>> found = FunctionSpace(s, energies, weights, error_bound=0.0)
    >>> numbers = columns(found, C=np.diag([1.0, 100.0]))
    >>> round(numbers["function_top_share_1"], 3), round(numbers["function_carried_1"], 3)
    (0.917, 0.083)
    >>> numbers["function_rank_correlation"]
    -1.0
    """
    total = float(found.energies.sum())
    numbers: dict[str, float | None] = {
        "function_norm": float(np.sqrt(total)),
        "function_error_bound": found.error_bound,
    }
    if not (total > 0 and found.s[0] > 0):
        return numbers
    isotropic = metrics.frobenius_norm(found.weights) ** 2 * float(np.trace(C)) / len(C)
    cumulative = np.cumsum(found.energies)
    for k in SHARES:
        numbers[f"function_top_share_{k}"] = metrics.top_share(found.s, k)
        numbers[f"function_carried_{k}"] = float(
            cumulative[min(k, len(cumulative)) - 1] / cumulative[-1]
        )
    return numbers | {
        "function_alignment": total / isotropic,
        "function_effective_rank": metrics.effective_rank(found.s),
        "function_rank_correlation": rank_correlation(found.weights, found.energies),
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of a (n,) and b (n,), in [−1, 1].

    Equal values have the mean of their ranks. None if either has fewer than two different values.
    Equivalent to scipy.stats.spearmanr.

    >>> rank_correlation(np.array([3.0, 2.0, 1.0]), np.array([9.0, 1.0, 4.0]))
    0.5
    """
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    size = float(np.sqrt(np.sum(x**2) * np.sum(y**2)))
    return float(np.clip(x @ y / size, -1, 1)) if size > 0 else None


def _ranks(x: np.ndarray) -> np.ndarray:
    """Return the rank 1 … n of each value, the mean of their ranks for equal ones."""
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
