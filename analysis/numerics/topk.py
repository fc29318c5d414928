"""Compute the largest singular values of a matrix and their vectors, each with a bound.

Block Lanczos on WᵀW from a random block (Golub, Luk and Overton 1981; Musco and Musco 2015) finds
a subspace, in the dtype of W. Everything that is returned is then computed from that subspace in
float64, so that no bound rests on how well it was found. Let V (n, k) be its orthonormal vectors,
U Σ Zᵀ = W V with V turned by Z, R = WᵀU − VΣ and τ ≥ ‖W (I − VVᵀ)‖₂. Then for the exact values s:

    σ_i ≤ s_i                     always (Cauchy's interlacing),
    |s − σ_i| ≤ ‖R_i‖             for some exact s, always (`residual`),
    s_i² ≤ σ_i² + ‖W‖_F² − Σσ²    always: the energy that V misses,
    s_i ≤ σ_i + 2ρ²/(δ_i + √(δ_i² + 4ρ²)), ρ = ‖R‖₂, δ_i = σ_i − τ > 0,
    s_i² ≤ σ_i² + τ²,  s_i ≤ max(σ_i, τ) + ρ,  s_{k+1} ≤ τ

(Weyl; C.-K. Li and R.-C. Li 2005, on the matrix in the bases of U, V and their complements). ‖W‖_F
is summed in float64. No finite number of products with W bounds τ for certain below what the energy
says; here it is bounded from random starts and holds except with probability FAILURE
(`lanczos.norm_bound`). `upper` is the smallest of these bounds, and `certain` the one from the
energy alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analysis.numerics import lanczos

EPS = float(np.finfo(np.float64).eps)
ROWS = 256  # rows of W that are converted to float64 at a time; they stay in the cache
SEED = 0
SAFE = 1e8  # entries up to this are squared in float32 as they are
FAILURE = 1e-6  # probability over the random starts that `upper` is too small
# When a bound holds, as tables say it.
ALWAYS, BUT_FOR = "always", f"but for {FAILURE:g}"
PROBES, STEPS = 16, 5  # of the Lanczos processes that bound τ
# A pass over W costs nearly the same for up to about this many columns: it is bound by memory.
BLOCK = 32
SETTLED = 3e-3  # relative change of each value from a subspace to a 1.25 times larger one, at most
# A block finds no more copies of one value than it has columns. If τ is so many times the last
# value found, the search goes on with a further random block, up to ROUNDS times.
MISSED, ROUNDS = 1.25, 5
LARGEST = 6  # size of the subspace in units of k, at most
# A full decomposition is taken of matrices up to this size, and where more than 1/DENSE of all
# values are asked for.
SMALL = 256
DENSE = 4


@dataclass(frozen=True, eq=False)
class Top:
    """The k largest singular values of W (d_out, d_in) and their vectors.

    s (k,): descending, float64; no exact value of the same index is smaller, but for rounding.
    U (d_out, k), Vh (k, d_in): orthonormal columns, and rows; W Vhᵀ = U diag(s).
    upper (k,): the exact value of the same index is at most this, except with probability FAILURE.
    certain (k,): the same without exception.
    residual (k,): some exact value is as near as this.
    norm: ‖W‖_F, exact but for rounding.
    rest: the same for the first value that was left out, s_{k+1}.
    rounding: what rounding in float64 can add to a bound; it is part of the upper ones.
    """

    U: np.ndarray
    s: np.ndarray
    Vh: np.ndarray
    upper: np.ndarray
    certain: np.ndarray
    residual: np.ndarray
    norm: float
    rest: float
    rounding: float

    @property
    def error_bound(self) -> float:
        """The largest distance of a value from the exact one of its index."""
        return max(float(np.max(self.upper - self.s)), self.rounding)

    def share(self, j: int) -> tuple[float, float]:
        """Return bounds from both sides of the share of the energy in the j largest values, j ≤ k.

        The upper one holds except with probability FAILURE; nan for W = 0.

        >>> W = np.diag(np.arange(30.0, 0, -1))
        >>> low, high = top(W, 4).share(2)
        >>> bool(low <= (30**2 + 29**2) / np.sum(np.arange(31.0) ** 2) <= high)
        True
        """
        if self.norm == 0:
            return float("nan"), float("nan")
        least = np.maximum(self.s[:j] - self.rounding, 0.0)
        low = float(np.sum((least / self.norm) ** 2))
        missed = max(0.0, 1.0 - float(np.sum((self.s / self.norm) ** 2)))
        high = float(np.sum((self.upper[:j] / self.norm) ** 2))
        return low, min(1.0, low + missed + 4 * self.rounding / self.norm, high)

    def bounds(self, d: int) -> "dict[str, tuple[float, float, str]]":
        """Return measure -> lower bound, upper bound and when they hold, of a W with d values.

        s_1 … s_k, the shares of the energy in the first 1, 4, 16, d/100 and d/10 of them, and what
        they say of measures of the whole spectrum: Σs lies between the cases that the energy of the
        other values is in few of them, as large as s_k, and in all of them alike. Empty for W = 0.
        """
        if self.norm == 0:
            return {}
        low, high = np.maximum(self.s - self.rounding, 0.0), self.upper
        always = high >= self.certain
        result = {
            f"s_{i}": (float(a), float(b), ALWAYS if sure else BUT_FOR)
            for i, (a, b, sure) in enumerate(zip(low, high, always, strict=True), 1)
        }
        for name, j in counted(d).items():
            if j <= len(self.s):
                result[name] = (*self.share(j), BUT_FOR)
        a, b, energy = low / self.norm, high / self.norm, 1 + 2 * self.rounding / self.norm
        most, least = max(0.0, energy - float(a @ a)), max(0.0, 1 - float(b @ b))
        last = float(b[-1])
        nuclear = (float(a.sum()) + least / last, float(b.sum()) + ((d - len(a)) * most) ** 0.5)
        fourth = (float(np.sum(a**4)), float(np.sum(b**4)) + last**2 * most)
        result["nuclear_norm"] = (nuclear[0] * self.norm, nuclear[1] * self.norm, BUT_FOR)
        result["stable_rank"] = (1 / float(b[0]) ** 2, energy / float(a[0]) ** 2, BUT_FOR)
        result["participation_ratio"] = (1 / fourth[1], min(d, energy / fourth[0]), BUT_FOR)
        return result


def counted(d: int) -> dict[str, int]:
    """Return the columns that are energy shares -> the number of values, of d, that each counts.

    >>> counted(250)["top_share_1pct"]
    3
    """
    parts = {"top_share_1pct": max(1, -(-d // 100)), "top_share_10pct": max(1, -(-d // 10))}
    return {f"top_share_{j}": j for j in (1, 4, 16)} | parts


def top(W: np.ndarray, k: int, seed: int = SEED) -> Top:
    """Return the min(k, d_out, d_in) largest singular values of W with vectors and bounds.

    W (d_out, d_in): finite, float32 or float64. k: from 1. seed: of the random starts.

    >>> found = top(np.diag(np.arange(40.0, 0, -1)), 3)
    >>> found.s.round(6).tolist(), bool(np.all(found.upper < found.s + 1e-6))
    ([40.0, 39.0, 38.0], True)
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    k = min(k, *W.shape)
    size = max(float(W.max()), -float(W.min()))
    if size == 0:
        return _of_zero(W, k)
    M, scale = _scaled(W, size)
    whole = min(M.shape) <= max(SMALL, DENSE * k - 1)
    top = _whole(M, k) if whole else _searched(M, k, seed)
    return top if scale == 1 else _in_units(top, scale)


def _scaled(W: np.ndarray, size: float) -> tuple[np.ndarray, float]:
    """Return W/scale and the scale, a power of 2, if squares of W could overflow or vanish."""
    if 1 / SAFE < size < SAFE:
        return W, 1.0
    _, exponent = np.frexp(size)
    half = int(exponent) // 2  # 2^exponent itself may be beyond the dtype
    return np.ldexp(np.ldexp(W, -half), half - int(exponent)), float(np.ldexp(1.0, int(exponent)))


def _whole(M: np.ndarray, k: int) -> Top:
    """Return the values from a full decomposition."""
    U, s, Vh = np.linalg.svd(M.astype(np.float64), full_matrices=False)
    norm = float(np.linalg.norm(s))
    rounding = max(M.shape) * EPS * float(s[0])
    upper = s[:k] + rounding
    rest = float(s[k]) + rounding if k < len(s) else 0.0
    return Top(U[:, :k], s[:k], Vh[:k], upper, upper, np.zeros(k), norm, rest, rounding)


def _searched(M: np.ndarray, k: int, seed: int) -> Top:
    """Return the values from a subspace, in which the search goes on while values are missed."""
    rng = np.random.default_rng(seed)
    found, below = None, 0.0
    for _ in range(ROUNDS):
        U, s, V, norm = _ritz(M, _subspace(M, k, rng, found))
        tau = _beyond(M, V, rng) + _rounding_of(M) * norm
        if tau <= MISSED * s[-1] or s[-1] <= below:
            break
        found, below = V, float(s[-1]) + _rounding_of(M) * norm
    R = _transposed(M, U) - V * s
    return _bounded(U, s, V, R, tau, norm)


def _of_zero(W: np.ndarray, k: int) -> Top:
    zero = np.zeros(k)
    U, Vh = np.eye(W.shape[0], k), np.eye(k, W.shape[1])
    return Top(U, zero, Vh, zero, zero, zero, 0.0, 0.0, 0.0)


def _in_units(top: Top, size: float) -> Top:
    """Return what was computed from W/size in units of W."""
    arrays = {name: size * getattr(top, name) for name in ("s", "upper", "certain", "residual")}
    numbers = {name: size * getattr(top, name) for name in ("norm", "rest", "rounding")}
    return replace(top, **arrays, **numbers)


def _rounding_of(M: np.ndarray) -> float:
    """Return the usual size of the rounding error of a product with M, in units of ‖M‖_F."""
    return float(np.sqrt(max(M.shape)) * np.finfo(M.dtype).eps)


def _blocks(M: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the rows of M in float64, block by block, in the same memory each time."""
    memory = np.empty((min(ROWS, M.shape[0]), M.shape[1]))
    for i in range(0, M.shape[0], ROWS):
        rows = memory[: len(M[i : i + ROWS])]
        rows[:] = M[i : i + ROWS]
        yield slice(i, i + ROWS), rows


def _ritz(M: np.ndarray, V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return U, σ, V with M V = U diag(σ), V for the span of the given one (n, k); and ‖M‖_F."""
    V = np.linalg.qr(V.astype(np.float64))[0]
    products, norms = [], []
    for _, rows in _blocks(M):
        products.append(rows @ V)
        norms.append(float(np.linalg.norm(rows)))
    Q, upper = np.linalg.qr(np.vstack(products))
    X, s, Zh = np.linalg.svd(upper)
    return Q @ X, s, V @ Zh.T, float(np.linalg.norm(norms))


def _transposed(M: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Return MᵀU in float64."""
    total = np.zeros((M.shape[1], U.shape[1]))
    for block, rows in _blocks(M):
        total += rows.T @ U[block]
    return total


def _subspace(
    M: np.ndarray, k: int, rng: np.random.Generator, found: np.ndarray | None
) -> np.ndarray:
    """Return approximate top right singular vectors of M, (n, k), orthonormal but for rounding.

    found: orthonormal vectors (n, k) that the subspace is to hold as well; None at first.
    """
    b = min(BLOCK, min(M.shape) // DENSE)
    V = np.zeros((M.shape[1], 0), M.dtype) if found is None else found.astype(M.dtype)
    most = min(LARGEST * k + 2 * b + V.shape[1], *M.shape)
    new = _orthonormal(rng.standard_normal((M.shape[1], b)).astype(M.dtype), V)
    last = M @ new
    V, Y = np.hstack([V, new]), np.hstack([M @ V, last])
    before, check = None, min(V.shape[1] + 2 * k, most)
    while True:
        if V.shape[1] >= check:
            _, s, Zh = np.linalg.svd(np.linalg.qr(Y, mode="r"))  # of M V
            if V.shape[1] >= most or (before is not None and _settled(s[:k], before)):
                return V @ Zh[:k].T
            before, check = s[:k], min(most, int(1.25 * V.shape[1]))
        new = _orthonormal(M.T @ last, V)[:, : most - V.shape[1]]
        last = M @ new
        V, Y = np.hstack([V, new]), np.hstack([Y, last])


def _settled(s: np.ndarray, before: np.ndarray) -> bool:
    return bool(np.all(s - before <= SETTLED * s + np.finfo(s.dtype).eps * s[0]))


def _orthonormal(X: np.ndarray, V: np.ndarray) -> np.ndarray:
    """Return orthonormal columns that span X (n, b) and are orthogonal to those of V.

    Where X spans less than its columns, they are completed by directions of rounding noise.
    """
    eps = float(np.finfo(X.dtype).eps)
    overlap = V.T @ X
    for _ in range(4):
        X = np.linalg.qr(X - V @ overlap)[0]
        overlap = V.T @ X
        if not np.any(abs(overlap) > 100 * eps):
            break
    return X


def _beyond(M: np.ndarray, V: np.ndarray, rng: np.random.Generator) -> float:
    """Return τ ≥ ‖M (I − VVᵀ)‖₂, but for rounding and with probability 1 − FAILURE."""
    n, k = V.shape

    def without(X: np.ndarray) -> np.ndarray:
        return X - V @ (V.T @ X)

    def square(X: np.ndarray) -> np.ndarray:
        Y = M @ without(X).astype(M.dtype)
        return without((M.T @ Y).astype(np.float64))

    starts = without(rng.standard_normal((n, PROBES)))
    return lanczos.norm_bound(lanczos.run(square, starts, STEPS), n - k, FAILURE)


def _bounded(
    U: np.ndarray, s: np.ndarray, V: np.ndarray, R: np.ndarray, tau: float, norm: float
) -> Top:
    """Return the values with their bounds; see the module. R (n, k): the residuals."""
    rounding = max(len(U), len(V)) * EPS * norm
    rho = float(np.sqrt(max(np.linalg.eigvalsh(R.T @ R)[-1], 0.0)))
    # ‖W‖² − Σσ² cancels: its rounding is that of ‖W‖².
    missed = max(0.0, norm**2 - float(s @ s)) + 4 * max(len(U), len(V)) * EPS * norm**2
    tau = min(tau, missed**0.5)
    certain = np.sqrt(s**2 + missed)
    gap = s - tau
    apart = s + 2 * rho**2 / (gap + np.sqrt(gap**2 + 4 * rho**2) + np.finfo(float).tiny)
    within = np.minimum(np.sqrt(s**2 + tau**2), np.maximum(s, tau) + rho)
    upper = np.where(gap > 0, np.minimum(apart, within), within)
    residual = np.linalg.norm(R, axis=0)
    return Top(
        U, s, V.T, upper + rounding, certain + rounding, residual, norm, tau + rounding, rounding
    )
