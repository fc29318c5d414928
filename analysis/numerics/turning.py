"""Bound how far rounding at storage can have turned the singular directions of an update.

ΔW is known up to the rounding E of the numbers that it is computed from. To first order, E turns
the direction i towards the direction j by (uᵢᵀE vⱼ)/(sᵢ − sⱼ) at most, on either side (Stewart &
Sun 1990, V.4; the bounds of Davis & Kahan and of Wedin follow from it), and out of the span of all
directions by ‖E vᵢ‖/sᵢ. Rounding is uniform noise of variance v = q²/12, q being the spacing of the
stored dtype, so that uᵢᵀE vⱼ has a standard deviation that follows from v and from the directions.
‖E‖₂ over the gap, which needs no directions, would be larger by √(d/r) and more: most of E lies
outside the span, where no value is near.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from analysis.update import LowRankUpdate

# A cut is undetermined if rounding at storage can have turned the span of the vectors before it by
# an angle with a larger sine. φ with another update can then move by as much; φ of an update with
# its own unrounded copy by its square, 0.01.
TURNED = 0.1
EXPONENT = 0x7F800000  # the bits of a float32 that hold its exponent


@dataclass(frozen=True, eq=False)
class Turning:
    """What rounding can have done to the span of the first i directions, i at [i − 1].

    largest: (k,), bound on the sine of the largest angle between that span and the exact one, on
        either side; above 1 if nothing is known. Exceeded in fewer than one of 10⁴ spans.
    lost: (k,), how many dimensions of that span are expected to be replaced by others.
    """

    largest: np.ndarray
    lost: np.ndarray


@dataclass(frozen=True, eq=False)
class Core:
    """What r × k matrices know of ΔW = scale · B A = U diag(s) Vᵀ.

    s: (k,).
    of_B: (r, k), scale · BᵀU.
    of_A: (r, k), scale · A V.
    norms_B, norms_A: (r,), the norms of the columns of B and of the rows of A.
    """

    s: np.ndarray
    of_B: np.ndarray
    of_A: np.ndarray
    norms_B: np.ndarray
    norms_A: np.ndarray


def of_factors(
    update: LowRankUpdate,
    core: Core,
    U: Callable[[], np.ndarray],
    V: Callable[[], np.ndarray],
) -> Turning | None:
    """Return the turning of ΔW by the rounding of B and of A to their stored dtypes.

    U, V: return the singular vectors in single precision, (d_out, k) and (d_in, k), which are asked
    for only if the norms of the factors do not show that every cut is determined. None if both
    dtypes are float64.

    >>> B, A = np.diag([2.0, 1.0]), np.eye(2)
    >>> ones = np.ones(2)
    >>> core = Core(s=np.array([2.0, 1.0]), of_B=B, of_A=A, norms_B=2 * ones, norms_A=ones)
    >>> single = LowRankUpdate("q", B.astype(np.float32), A.astype(np.float32))
    >>> bool(of_factors(single, core, lambda: A, lambda: A).largest.max() < 1e-5)
    True
    >>> of_factors(LowRankUpdate("q", B, A), core, lambda: A, lambda: A) is None
    True
    """
    if all(dtype == np.float64 for dtype in update.stored):
        return None
    (d_out, d_in), (eps_B, eps_A) = update.shape, (_eps(dtype) for dtype in update.stored)
    shared: np.ndarray | float = 0.0
    if update.inner is not None:
        # uᵢᵀB N A vⱼ, of which of_B and of_A each have the scale.
        shared = core.of_B.T**2 @ update.inner @ core.of_A**2 / update.scale**2
        shared *= max(eps_B, eps_A) ** 2 / 12
    if update.sizes is None:
        # No direction has more of the noise of a column than all of it.
        v_B, v_A = (eps_B * core.norms_B) ** 2 / 12, (eps_A * core.norms_A) ** 2 / 12
        coupling = v_B @ core.of_A**2 + (core.of_B.T**2 @ v_A)[:, None] + shared
        turning = _turning(core, coupling, v_B, v_A, d_out, d_in)
        if turning.largest.max() <= TURNED:
            return turning
    B, A = update.sizes or (update.B, update.A)
    unit_B, unit_A = (_unit(norms) for norms in (core.norms_B, core.norms_A))
    v_B, v_A = variance(B, update.stored[0], unit_B), variance(A, update.stored[1], unit_A)
    in_U = unit_B**2 * ((U() ** 2).T @ v_B).astype(np.float64)
    in_V = unit_A**2 * (v_A @ V() ** 2).astype(np.float64)
    # uᵢᵀ E vⱼ = scale (uᵢᵀ E_B A vⱼ + uᵢᵀ B E_A vⱼ); its variance at [i, j].
    coupling = in_U @ core.of_A**2 + core.of_B.T**2 @ in_V + shared
    sum_B = unit_B**2 * v_B.sum(axis=0, dtype=np.float64)
    sum_A = unit_A**2 * v_A.sum(axis=1, dtype=np.float64)
    return _turning(core, coupling, sum_B, sum_A, d_out, d_in)


def _unit(norms: np.ndarray) -> float:
    """Return the largest norm, within the range of float32."""
    return min(max(float(norms.max()), 1e-30), 1e30)


def _eps(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def _turning(
    core: Core, coupling: np.ndarray, v_B: np.ndarray, v_A: np.ndarray, d_out: int, d_in: int
) -> Turning:
    """Return the turning from the variances of uᵢᵀE vⱼ, coupling (k, k), and the sums of v.

    v_B, v_A: (r,), the sums of the variances of the columns of B and of the rows of A.
    """
    s = core.s
    with np.errstate(divide="ignore", invalid="ignore"):
        tau2 = np.maximum(coupling, coupling.T) / (s[:, None] - s) ** 2
    tau2 = np.triu(np.where(np.isnan(tau2), np.inf, tau2), 1)
    # Summed over rows up to i and columns from j on: the cut between i and i + 1 is at [i, i + 1],
    # on the first diagonal above the main one.
    below, beyond = np.cumsum(tau2, axis=0), _from_right(np.cumsum, tau2)
    # The entries of uᵢᵀE vⱼ share E_B and E_A, and are not independent: the Frobenius norm bounds
    # them all. With three times the largest, it is four standard deviations of a single entry.
    total = np.diagonal(np.cumsum(beyond, axis=0), 1)
    most = np.diagonal(_from_right(np.maximum.accumulate, np.maximum.accumulate(tau2, axis=0)), 1)
    largest = np.sqrt(total) + 3 * np.sqrt(most)
    # A direction before the cut is lost at most once, and so is one beyond it replaced.
    lost = np.minimum(
        np.diagonal(np.cumsum(np.minimum(beyond, 1.0), axis=0), 1),
        np.diagonal(_from_right(np.cumsum, np.minimum(below, 1.0)), 1),
    )
    left = _outside(core.of_A, s, v_B, d_out)
    right = _outside(core.of_B, s, v_A, d_in)
    return Turning(
        np.hypot(np.append(largest, 0.0), np.maximum(left.largest, right.largest)),
        np.append(lost, 0.0) + np.maximum(left.lost, right.lost),
    )


def _from_right(accumulate: Callable[..., np.ndarray], x: np.ndarray) -> np.ndarray:
    """Accumulate along the rows of x from their ends on."""
    return accumulate(x[:, ::-1], axis=1)[:, ::-1]


def _outside(of: np.ndarray, s: np.ndarray, sums: np.ndarray, d: int) -> Turning:
    """Return the turning out of the span of all k directions, on one side.

    of: (r, k), scale · A V for the left side, scale · BᵀU for the right one.
    s: (k,).
    sums: (r,), the sums over d of the variances of the factor on this side.
    d: the dimension of the space.
    """
    k = s.size
    if d == k:
        return Turning(np.zeros(k), np.zeros(k))
    with np.errstate(divide="ignore", invalid="ignore"):
        M = np.sqrt(sums * (1 - k / d))[:, None] * of / s
    squares = np.where(s > 0, np.sum(M**2, axis=0), np.inf)
    norm = np.linalg.norm(M, 2) ** 2 if np.isfinite(M).all() else np.inf
    largest = np.sqrt(np.minimum(np.cumsum(squares), norm))
    # The norm of a Gaussian d × k matrix over √d; 4 rather than 2 for rows of unequal size.
    more = 1 + (np.sqrt(np.arange(1, k + 1)) + 4) / np.sqrt(d - k)
    return Turning(more * largest, np.cumsum(np.minimum(squares, 1.0)))


def of_floor(s: np.ndarray, d_out: int, d_in: int, floor: float | None) -> Turning | None:
    """Return the turning of a dense ΔW by noise with this floor; None without noise.

    s (k,), descending. The noise is taken for independent entries of one size σ, with floor =
    σ (√d_out + √d_in).

    >>> (of_floor(np.array([3.0, 2.0, 1.99]), 3, 3, floor=0.05).largest > TURNED).tolist()
    [False, True, False]
    """
    if not floor:
        return None
    k, sigma2 = s.size, (floor / (np.sqrt(d_out) + np.sqrt(d_in))) ** 2
    largest, lost = np.zeros(k), np.zeros(k)
    with np.errstate(divide="ignore"):
        for i in range(k - 1):
            # Values are sorted: the last row and the first column have the largest sums.
            row = sigma2 / (s[i] - s[i + 1 :]) ** 2
            column = sigma2 / (s[: i + 1] - s[i + 1]) ** 2
            largest[i] = _norm(row.sum(), column.sum(), row[0])
            lost[i] = min(np.minimum(row, 1.0).sum(), np.minimum(column, 1.0).sum())
        # These entries are independent, and the smallest value has the largest.
        outside = abs(d_out - d_in) * sigma2 / s**2
        out = np.sqrt(outside) + np.sqrt(np.arange(1, k + 1) * sigma2) / s
    outside, out = (np.where(s > 0, x, np.inf) for x in (outside, out))
    if d_out == d_in:
        out = np.zeros(k)
    return Turning(np.hypot(largest, out), lost + np.cumsum(np.minimum(outside, 1.0)))


def _norm(row: float, column: float, most: float) -> float:
    """Bound the norm of a matrix of independent Gaussian entries (Bandeira & van Handel 2016).

    row, column: the largest sums of variances; most: the largest variance. Exceeds four standard
    deviations of a single entry.
    """
    return float(np.sqrt(row) + np.sqrt(column) + 2 * np.sqrt(most))


def variance(x: np.ndarray, dtype: np.dtype, unit: float = 1.0) -> np.ndarray:
    """Variance of the rounding of each number to the dtype, q²/12, in units of unit².

    x: numbers of any shape; the result has the same, in float32, whose range needs the unit: a size
    of typical numbers. q: the spacing of the dtype at |x|, not below that of its subnormal numbers.

    Between 1 and 2, float16 has a spacing of 2⁻¹⁰:

    >>> q2 = 12 * variance(np.array([1.5]), np.dtype(np.float16), unit=2.0**-10)
    >>> q2.round(6).tolist()
    [1.0]
    """
    info = ml_dtypes.finfo(dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are reported elsewhere
        bits = x.astype(np.float32).view(np.uint32)
    bits &= np.uint32(EXPONENT)
    spacing = bits.view(np.float32)
    spacing *= np.float32(info.eps)
    np.maximum(spacing, np.float32(info.smallest_subnormal), out=spacing)
    spacing *= np.float32(12**-0.5 / unit)
    return np.square(spacing, out=spacing)
