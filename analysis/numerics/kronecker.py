"""Singular values, and factors, of a Kronecker product from those of its two matrices.

If w1 = U1 S1 V1ᵀ and w2 = U2 S2 V2ᵀ, then w1 ⊗ w2 = (U1 ⊗ U2)(S1 ⊗ S2)(V1 ⊗ V2)ᵀ (Van Loan 2000).
Rounding at storage, E1 of w1 and E2 of w2, changes it by E1 ⊗ w2 + w1 ⊗ E2.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from analysis.numerics.turning import variance
from analysis.update import Factor, KroneckerUpdate, LowRankUpdate, coarsest, float64

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class _Svd:
    """U diag(s) Vᵀ of one of the two matrices, k = its `Factor.r`.

    U (m, k), s (k,), V (n, k); bound: |s − exact| is at most this.
    """

    U: np.ndarray
    s: np.ndarray
    V: np.ndarray
    bound: float


def singular_values(update: KroneckerUpdate) -> tuple[np.ndarray, float]:
    """Singular values of ΔW, (capacity,), descending, and a bound of their error.

    NaN if a number of ΔW is not finite.

    >>> single = np.dtype(np.float32)
    >>> first, second = Factor(np.diag([3.0, 1.0]), None, single), Factor(np.eye(2), None, single)
    >>> singular_values(KroneckerUpdate("q", first, second, scale=2.0))[0].round(6).tolist()
    [6.0, 6.0, 2.0, 2.0]
    """
    one, two = _svd(update.first), _svd(update.second)
    with np.errstate(all="ignore"):  # NaN and overflow are reported by the caller
        s = np.sort(np.outer(one.s, two.s).ravel())[::-1]
        bound = one.bound * two.s.max() + one.s.max() * two.bound + EPS * s[0]
        return abs(update.scale) * s, float(abs(update.scale) * bound)


def low_rank(update: KroneckerUpdate) -> LowRankUpdate:
    """Return ΔW as B = U1 ⊗ U2, (d_out, r), and A = S1 V1ᵀ ⊗ S2 V2ᵀ, (r, d_in).

    `inner` and `sizes` hold the variances that rounding at storage has inside and outside the span
    of the singular directions; both are None for stored float64.

    >>> from analysis.update import Factor
    >>> update = KroneckerUpdate(
    ...     "q_proj",
    ...     first=Factor(np.eye(2), None, np.dtype(float)),
    ...     second=Factor(np.eye(3), None, np.dtype(float)),
    ... )
    >>> low_rank(update).B.shape, bool(np.allclose(low_rank(update).dense(), np.eye(6)))
    ((6, 6), True)
    """
    one, two = _svd(update.first), _svd(update.second)
    dtype = coarsest(update.first.dtype, update.second.dtype)
    with np.errstate(all="ignore"):
        B, A = np.kron(one.U, two.U), np.kron((one.V * one.s).T, (two.V * two.s).T)
        sizes, inner = None, None
        if dtype != np.float64:
            sizes, inner = _rounding(update, one, two, dtype)
    return LowRankUpdate(
        update.name,
        B,
        A,
        update.scale,
        update.part,
        update.method,
        update.source,
        of_rows=update.of_rows,
        of_parts=update.of_parts,
        dtypes=(dtype, dtype),
        sizes=sizes,
        inner=inner,
    )


def _svd(factor: Factor) -> _Svd:
    """Return the SVD of one of the two matrices; NaN if it is not finite."""
    left = float64(factor.left)
    (m, n), k = factor.shape, factor.r
    right = None if factor.right is None else float64(factor.right)
    parts = [left] if right is None else [left, right]
    size = float(np.prod([np.linalg.norm(part) for part in parts]))
    if not np.isfinite(size):
        return _Svd(np.full((m, k), np.nan), np.full(k, np.nan), np.full((n, k), np.nan), np.nan)
    if right is None or left.shape[1] >= min(m, n):
        U, s, Vh = np.linalg.svd(factor.dense(), full_matrices=False)
    else:
        (Q_left, R_left), (Q_right, R_right) = np.linalg.qr(left), np.linalg.qr(right.T)
        X, s, Yh = np.linalg.svd(R_left @ R_right.T)
        U, Vh = Q_left @ X, Yh @ Q_right.T
    # The products that cancel in left @ right may be larger than s.
    return _Svd(U, s, Vh.T, 10 * max(left.shape[1], min(m, n)) * EPS * size)


@dataclass(frozen=True, eq=False)
class _Noise:
    """Variances of what rounding E does to the singular directions, in units of eps²/12.

    inside: (k, k), of uᵢᵀ E vⱼ.
    left: (m, k), of the entries of E vⱼ.
    right: (n, k), of those of Eᵀ uᵢ.
    """

    inside: np.ndarray
    left: np.ndarray
    right: np.ndarray


def _noise(factor: Factor, svd: _Svd, dtype: np.dtype) -> _Noise:
    """Return the variances for one of the two matrices; dtype: whose eps is the unit.

    E is E_P Q + P E_Q for a product P Q. All entries of E_P and E_Q are independent.
    """
    unit = _relative(factor.left, factor.dtype, dtype)
    U2, V2 = svd.U**2, svd.V**2
    if factor.right is None:
        return _Noise(U2.T @ unit @ V2, unit @ V2, unit.T @ U2)
    P, Q = float64(factor.left), float64(factor.right)
    of_Q = _relative(Q if factor.sizes is None else factor.sizes, factor.dtype, dtype)
    QV, PU = (Q @ svd.V) ** 2, (P.T @ svd.U) ** 2
    return _Noise(
        inside=U2.T @ unit @ QV + PU.T @ of_Q @ V2,
        left=unit @ QV + P**2 @ (of_Q @ V2),
        right=Q.T**2 @ (unit.T @ U2) + of_Q.T @ PU,
    )


def _relative(x: np.ndarray, stored: np.dtype, dtype: np.dtype) -> np.ndarray:
    """Variance of the rounding of x to `stored`, in units of eps²/12 of `dtype`."""
    size = float(np.abs(float64(x)).max()) or 1.0
    eps = float(ml_dtypes.finfo(dtype).eps)
    return variance(x, stored, unit=size).astype(np.float64) * 12 * (size / eps) ** 2


def _rounding(
    update: KroneckerUpdate, one: _Svd, two: _Svd, dtype: np.dtype
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return `sizes` and `inner` of `low_rank`; directions of value 0 have infinite variance."""
    first, second = _noise(update.first, one, dtype), _noise(update.second, two, dtype)
    s1, s2 = (np.maximum(svd.s**2, np.finfo(np.float64).tiny) for svd in (one, two))
    inside = np.kron(first.inside, np.diag(s2)) + np.kron(np.diag(s1), second.inside)
    left = np.kron(first.left / s1, two.U**2) + np.kron(one.U**2, second.left / s2)
    right = np.kron(first.right.T, s2[:, None] * two.V.T**2)
    right += np.kron(s1[:, None] * one.V.T**2, second.right.T)
    # `variance` takes the spacing below a number, which is between half of it and all of it.
    sizes = np.sqrt(2 * left), np.sqrt(2 * right)
    return sizes, inside / np.outer(np.ones(len(inside)), np.kron(s1, s2))
