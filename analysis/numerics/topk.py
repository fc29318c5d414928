"""Compute the largest singular values of a matrix and their vectors, each with a bound.

A randomised block Krylov iteration (Musco & Musco, NeurIPS 2015, arXiv 1504.05477) finds a basis Q
of left directions; the singular values of QᵀM are lower bounds of those of M, whatever Q is. How
far above them the exact values can be follows from what Q leaves out, E = (I − QQᵀ)M, and from the
residuals M vᵢ − sᵢ uᵢ (Weyl; Horn & Johnson, Topics in Matrix Analysis, 3.3):

    σᵢ² ≤ sᵢ² + ‖E‖₂²                              (MᵀM = (QᵀM)ᵀQᵀM + EᵀE)
    σᵢ² ≤ sᵢ² + ‖Rⱼ‖² sᵢ²/(sᵢ² − tⱼ²),  i ≤ j        Rⱼ: the first j residuals; tⱼ² = sⱼ₊₁² + ‖E‖₂²

‖E‖₂ is bounded from E applied to random vectors (Halko, Martinsson & Tropp 2011, lemma 4.1), which
fails with a probability below FAILURE; where it is smaller, by its Frobenius norm, which is known.
The iteration is in float32, what the bounds rest on in float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from analysis.numerics import metrics
from analysis.update import float64

EPS = float(np.finfo(np.float64).eps)
MORE = 16  # columns of a block beyond k
DEPTH = 3  # blocks of the Krylov space
PROBES, POWER = 6, 5  # random vectors, and steps of the power method, for the norm of E
CONSTANT = 10.0
FAILURE = CONSTANT**-PROBES
SEED = 0
WHOLE = 0.25  # of min(d_out, d_in): with more than this in the Krylov space, all values are cheaper


@dataclass(frozen=True, eq=False)
class Top:
    """The k largest singular values of a matrix.

    U (d_out, k), s (k,), Vh (k, d_in): float64, s descending.
    upper: (k,): s − rounding ≤ exact ≤ upper, but for a chance of FAILURE.
    rounding: how far rounding alone can move a value.
    rest: a bound of the first value that was left out, σₖ₊₁.
    norm: ‖M‖_F, of all of the matrix.
    """

    U: np.ndarray
    s: np.ndarray
    Vh: np.ndarray
    upper: np.ndarray
    rounding: float
    rest: float
    norm: float

    def share(self, j: int) -> tuple[float, float]:
        """Return bounds of the share of the first j ≤ k values in the energy; (nan, nan) if M = 0.

        >>> found = top(np.diag([3.0, 4.0, 0.0]), 2)
        >>> [round(bound, 6) for bound in found.share(1)]
        [0.64, 0.64]
        """
        if self.norm == 0:
            return math.nan, math.nan
        ends = np.maximum(self.s[:j] - self.rounding, 0.0), self.upper[:j]
        low, high = (min(float(np.sum((values / self.norm) ** 2)), 1.0) for values in ends)
        return low, high


def top(M: np.ndarray, k: int, seed: int = SEED) -> Top:
    """Return the k largest singular values and vectors of M.

    M: (d_out, d_in), float32 or float64, finite. k: at least 1; min(d_out, d_in) if it is larger.
    seed: of the random block. Where the Krylov space would not be much smaller than M, its full SVD
    is taken instead.

    >>> rng = np.random.default_rng(0)
    >>> M = np.diag(np.arange(40.0, 0.0, -1.0))
    >>> found = top(M, 3)
    >>> found.s.round(9).tolist(), bool((found.upper >= found.s).all())
    ([40.0, 39.0, 38.0], True)
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    if M.shape[0] < M.shape[1]:
        turned = top(M.T, k, seed)
        return Top(turned.Vh.T, turned.s, turned.U.T, *_bounds_of(turned))
    m = M.shape[1]
    k = min(k, m)
    size = float(np.abs(M).max())
    if size == 0:
        U, V = np.eye(M.shape[0], k), np.eye(k, m)
        return Top(U, np.zeros(k), V, np.zeros(k), 0.0, 0.0, 0.0)
    width = min(k + MORE, m)
    if width * DEPTH > WHOLE * m:
        return _whole(M, k)
    rng = np.random.default_rng([seed, *M.shape, k])
    M = float64(M) / size  # so that no square overflows or vanishes
    found = _rayleigh_ritz(M, _krylov(M, width, rng), k, rng)
    return Top(
        found.U,
        size * found.s,
        found.Vh,
        size * found.upper,
        size * found.rounding,
        size * found.rest,
        size * found.norm,
    )


def _bounds_of(found: Top) -> tuple[np.ndarray, float, float, float]:
    return found.upper, found.rounding, found.rest, found.norm


def _whole(M: np.ndarray, k: int) -> Top:
    """Return the k largest values from all of them."""
    U, s, Vh = np.linalg.svd(float64(M), full_matrices=False)
    rounding = float(max(M.shape) * EPS * s[0])
    rest = float(s[k]) + rounding if k < s.size else 0.0
    norm = metrics.frobenius_norm(s)
    return Top(U[:, :k], s[:k], Vh[:k], s[:k] + rounding, rounding, rest, norm)


def _krylov(M: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return an orthonormal basis (d_out, width · DEPTH), float64, of a block Krylov space.

    In float32 but for the last product, so that the range of a matrix of low rank is found to the
    last digit.
    """
    single = M.astype(np.float32)
    start = rng.standard_normal((M.shape[1], width)).astype(np.float32)
    blocks = [np.linalg.qr(single @ start)[0]]
    for _ in range(DEPTH - 2):
        blocks.append(np.linalg.qr(single @ (single.T @ blocks[-1]))[0])
    blocks.append(np.linalg.qr(M @ float64(single.T @ blocks[-1]))[0])
    # Twice: the blocks are nearly dependent where the values fall fast.
    return np.linalg.qr(np.linalg.qr(np.hstack(blocks))[0])[0]


def _rayleigh_ritz(M: np.ndarray, Q: np.ndarray, k: int, rng: np.random.Generator) -> Top:
    """Return the values of QᵀM with their bounds."""
    B, energy = Q.T @ M, float(np.einsum("ij,ij->", M, M))
    L, X = np.linalg.qr(B.T)  # B = Xᵀ Lᵀ
    left, s, right = np.linalg.svd(X.T)
    U, Vh = Q @ left[:, :k], right[:k] @ L.T
    outside = _outside(M, Q, energy - float(np.sum(B**2)), energy, rng)
    R = M @ Vh.T - U * s[:k]
    rounding = max(M.shape) * EPS * float(s[0])
    upper = _upper(s, k, np.cumsum(np.sum(R**2, axis=0)), outside) + rounding
    after = float(s[k]) if k < s.size else 0.0
    rest = math.hypot(after, outside) + rounding
    return Top(U, s[:k], Vh, upper, rounding, rest, math.sqrt(energy))


def _outside(
    M: np.ndarray, Q: np.ndarray, left: float, energy: float, rng: np.random.Generator
) -> float:
    """Return an upper bound of ‖E‖₂, E = (I − QQᵀ)M, but for a chance of FAILURE.

    left: ‖E‖_F², as a difference of energies; energy: ‖M‖_F².
    """
    X = rng.standard_normal((M.shape[1], PROBES))
    log = math.log(CONSTANT * math.sqrt(2 / math.pi))  # of the bound of ‖(EEᵀ)^POWER E‖₂
    for step in range(2 * POWER + 1):
        if step % 2 == 0:
            X = M @ X
            X -= Q @ (Q.T @ X)
        else:
            X = M.T @ X
        largest = float(np.linalg.norm(X, axis=0).max())
        if largest == 0:
            return 0.0
        X /= largest
        log += math.log(largest)
    frobenius = math.sqrt(max(left, 0.0) + max(M.shape) * EPS * energy)
    return min(math.exp(log / (2 * POWER + 1)), frobenius)


def _upper(s: np.ndarray, k: int, residual: np.ndarray, outside: float) -> np.ndarray:
    """Return upper bounds of the first k values, the least of the module's two, over all j.

    residual: (k,), the squared Frobenius norms of the first 1 … k residuals.
    """
    upper = np.sqrt(s[:k] ** 2 + outside**2)
    after = np.append(s[1:], 0.0)
    for i in range(k):
        t2 = after[i:k] ** 2 + outside**2
        gap = s[i] ** 2 - t2
        apart = gap > 0
        if apart.any():
            squares = s[i] ** 2 + residual[i:k][apart] * s[i] ** 2 / gap[apart]
            upper[i] = min(upper[i], math.sqrt(float(squares.min())))
    return upper
