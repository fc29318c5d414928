"""Spectra and angles of random updates, the null that measured numbers are compared with.

The null of a factored update is a product of two Gaussian factors of its rank r, also where r is
not below min(d_out, d_in); that of a dense update is one Gaussian matrix. Neither is formed:
spectra are drawn from small matrices that have the same distribution of singular values. They
depend only on the shape and a fixed seed, and are cached for further modules of the same shape.
d_small and d_large are min(d_out, d_in) and max(d_out, d_in); capacity is r for factors and d_small
for a dense update.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis import extras
from analysis.numerics import metrics
from analysis.results import Row

SEED = 0
# `chance` draws until the standard errors of its means are below this, relative to the means,
PRECISION = 1e-3
# but at least FEWEST spectra, PILOT of them to learn how many are needed, and at most WORK / k² of
# k values each, which take about 0.1 s.
FEWEST, PILOT, WORK = 4, 64, 2**20
EDGE_DRAWS, EDGE_QUANTILE = 1000, 0.99
ANGLE_DRAWS = 16
# The null models of one table may cost FREE, and 1 more for every SHARE numbers in its updates; a
# cost of 1 is about 0.1 s of one core.
FREE, SHARE = 8, 2**17
SMALL = 64  # up to this size, numpy's batched solver is faster than scipy's tridiagonal one


@dataclass(frozen=True)
class Chance:
    """A measure of random updates.

    mean: over the updates; spread: the standard deviation between single updates.
    """

    mean: float
    spread: float


def chance(d_out: int, d_in: int, capacity: int, k: int, *, dense: bool) -> Mapping[str, Chance]:
    """Return the measures of `statistics.comparable(s, k)` for random updates, by name.

    d_out, d_in: the shape, in either order.
    capacity: r of the factors, which may exceed min(d_out, d_in), or min(d_out, d_in) if dense.
    k: 1 … the number of values min(d_out, d_in, capacity).
    dense: one Gaussian matrix instead of a product of two factors.

    The standard error of each mean is at most 0.1 % of it (of gini_k: 0.001), unless that takes
    more than about 0.1 s, as it does for r > 32, for small shapes and for dense updates; then it is
    that of the draws made in this time, at least FEWEST. Raises ValueError for an impossible
    capacity or k.

    >>> by_chance = chance(200, 100, capacity=8, k=4, dense=False)
    >>> round(by_chance["top_share_1"].mean, 2), round(by_chance["top_share_4"].mean, 2)
    (0.2, 0.65)
    >>> by_chance["top_share_16"]
    Chance(mean=1.0, spread=0.0)
    """
    return _chance(*sorted((d_out, d_in)), capacity, k, dense)


def normalised_spectra(d_out: int, d_in: int, capacity: int, *, dense: bool) -> np.ndarray:
    """Return the random updates' s / ‖s‖_F that `chance` averages over, (draws, values).

    d_out, d_in, capacity, dense: as for `chance`. The draws are cached, so that after `chance` or
    `democracy` of the same shape they cost nothing.

    >>> spectra = normalised_spectra(200, 100, capacity=8, dense=False)
    >>> spectra.shape[1], bool(np.allclose((spectra**2).sum(axis=1), 1))
    (8, True)
    """
    spectra = _enough_spectra(*sorted((d_out, d_in)), capacity, dense)
    return spectra / np.linalg.norm(spectra, axis=1, keepdims=True)


def of_row(row: Row, k: int) -> Mapping[str, Chance]:
    """Return `chance` for the update of a row of spectrum.csv, whose r is None if it is dense.

    >>> row = {"d_out": 20, "d_in": 30, "r": 4, "capacity": 4}
    >>> of_row(row, k=2) == chance(20, 30, capacity=4, k=2, dense=False)
    True
    """
    dense = row["r"] is None
    capacity = row["capacity"] if dense else row["r"]
    return chance(row["d_out"], row["d_in"], capacity, k, dense=dense)


def drawn(rows: Sequence[Row]) -> set[tuple[int, int, int | None]]:
    """Return the shapes (d_out, d_in, r) of the rows of spectrum.csv whose null is drawn.

    All of them, but for a small checkpoint of many different shapes, whose null models would take
    far longer than its spectra: then the most frequent ones, the first of equally frequent ones,
    up to FREE and SHARE. Rows of ΔW = 0 need none.

    >>> rows = [{"d_out": 9, "d_in": 9 + i, "r": 8, "spectral_norm": 1.0} for i in range(20)]
    >>> len(drawn(rows)), len(drawn(rows[:5])), len(drawn(10_000 * rows))
    (6, 5, 20)
    """
    moved = [row for row in rows if row["spectral_norm"] > 0]
    shapes = Counter((row["d_out"], row["d_in"], row["r"]) for row in moved)
    numbers = sum(
        n * (d_out * d_in if r is None else r * (d_out + d_in))
        for (d_out, d_in, r), n in shapes.items()
    )
    left = FREE + numbers / SHARE
    found, paid = set(), set()
    for (d_out, d_in, r), _ in shapes.most_common():
        turned = (*sorted((d_out, d_in)), r)  # ΔW and ΔWᵀ have one null
        if turned not in paid:
            left -= _cost(d_out, d_in, r)
            if left < 0:
                break
            paid.add(turned)
        found.add((d_out, d_in, r))
    return found


def _cost(d_out: int, d_in: int, r: int | None) -> float:
    """Return about how long the null of a shape takes, in units of 0.1 s, as measured."""
    k = min(d_out, d_in)
    if r is not None:
        k = min(k, r)
        return 0.0 if k == 1 else min(1.2, 0.035 * k**2) + (k / 300) ** 2
    return 1 + k / 100 if k > SMALL else 1.0


@functools.cache
def _chance(d_small: int, d_large: int, capacity: int, k: int, dense: bool) -> Mapping[str, Chance]:
    spectra = _enough_spectra(d_small, d_large, capacity, dense)
    if not 1 <= k <= spectra.shape[1]:
        raise ValueError(f"k is {k}; expected 1 to {spectra.shape[1]}, the number of values")
    return {
        name: Chance(float(values.mean()), float(values.std(ddof=1)))
        for name, values in _measures(spectra, k).items()
    }


def _measures(spectra: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Return `statistics.comparable(s, k)` of each spectrum s, (draws, values) -> (draws,)."""
    held = np.cumsum(spectra**2, axis=1)
    held /= held[:, -1:]
    p = spectra[:, :k] / spectra[:, :k].sum(axis=1, keepdims=True)
    from_top = np.arange(1, k + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(axis=1)
    shares = {f"top_share_{i}": held[:, min(i, held.shape[1]) - 1] for i in (1, 4, 16)}
    return {
        **shares,
        "effective_rank_k": np.exp(entropy),
        "gini_k": 1 + 1 / k - 2 * (p @ from_top) / k,
        "held_k": held[:, k - 1],
    }


@functools.cache
def _enough_spectra(d_small: int, d_large: int, capacity: int, dense: bool) -> np.ndarray:
    """Return as many spectra as `chance` needs, (draws, min(d_small, capacity))."""
    rng = _rng(d_small, d_large, capacity, dense)
    size = min(d_small, capacity)
    most = max(FEWEST, WORK // max(1, size**2))
    first = null_spectra(d_small, d_large, capacity, min(PILOT, most), rng, dense=dense)
    measures = _measures(first, size)
    # The energy share of the first value has the largest relative error of all shares.
    errors = [
        measures[name] / measures[name].mean() for name in ("top_share_1", "effective_rank_k")
    ]
    spread = max(np.std(values, ddof=1) for values in (*errors, measures["gini_k"]))
    more = min(most, math.ceil((spread / PRECISION) ** 2)) - len(first)
    if more <= 0:
        return first
    rest = null_spectra(d_small, d_large, capacity, more, rng, dense=dense)
    return np.concatenate([first, rest])


def democracy(s: np.ndarray, d_out: int, d_in: int, capacity: int, *, dense: bool) -> float:
    """Return effective_rank(s) over its mean under the null; nan for ΔW = 0.

    1: as even as a random update; below 1: more concentrated. capacity, dense: as for `chance`.

    >>> rng = np.random.default_rng(0)
    >>> s = null_spectra(200, 100, capacity=8, draws=1, rng=rng, dense=False)[0]
    >>> round(democracy(s, 200, 100, capacity=8, dense=False), 2)
    1.0
    >>> democracy(np.array([1.0] + [0.1] * 7), 200, 100, capacity=8, dense=False) < 0.6
    True
    """
    by_chance = chance(d_out, d_in, capacity, s.size, dense=dense)
    return metrics.effective_rank(s) / by_chance["effective_rank_k"].mean


def outliers(s: np.ndarray, d_out: int, d_in: int) -> int:
    """Number of values above the edge of noise q · median(s), for a dense update; 0 for ΔW = 0.

    q is the 99 % quantile of s₁/median(s) under the null. This is a Marchenko–Pastur edge whose
    scale is not inflated by the outliers, with one false alarm in a hundred matrices.

    >>> noise = np.random.default_rng(0).standard_normal((40, 30))
    >>> outliers(np.linalg.svd(noise, compute_uv=False), 40, 30)
    0
    >>> outliers(np.linalg.svd(noise + 1, compute_uv=False), 40, 30)
    1
    """
    return int(np.count_nonzero(s > null_edge(*sorted((d_out, d_in))) * np.median(s)))


@functools.cache
def null_edge(d_small: int, d_large: int) -> float:
    """Return the 99 % quantile of s₁ / median(s) of a Gaussian matrix.

    >>> round(null_edge(30, 40), 1)
    2.3
    """
    rng = _rng(d_small, d_large)
    if d_small <= SMALL:
        spectra = null_spectra(d_small, d_large, d_small, EDGE_DRAWS, rng, dense=True)
        ratios = spectra[:, 0] / np.median(spectra, axis=1)
    else:
        ratios = np.array([_top_over_median(d_small, d_large, rng) for _ in range(EDGE_DRAWS)])
    return float(np.quantile(ratios, EDGE_QUANTILE))


@functools.cache
def null_angles(d: int, k: int) -> np.ndarray:
    """Mean principal angles between two random k-dimensional subspaces of R^d, (k,), ascending.

    By symmetry, between a random subspace and the first k axes. Radians.

    >>> null_angles(1000, 2).round(1).tolist()
    [1.5, 1.6]
    """
    rng = _rng(d, k)
    draws = [np.linalg.qr(rng.standard_normal((d, k)))[0][:k] for _ in range(ANGLE_DRAWS)]
    cosines = np.linalg.svd(np.array(draws), compute_uv=False)
    return np.arccos(np.minimum(cosines, 1.0)).mean(axis=0)


def null_spectra(
    d_out: int, d_in: int, capacity: int, draws: int, rng: np.random.Generator, *, dense: bool
) -> np.ndarray:
    """Singular values of random updates under the null, (draws, values), descending.

    d_out, d_in, capacity, dense: as for `chance`; there are min(d_out, d_in, capacity) values.
    draws: the number of updates.
    rng: the source of randomness.

    Raises ValueError for a capacity below 1 or, if dense, other than min(d_out, d_in).

    >>> rng = np.random.default_rng(0)
    >>> null_spectra(200, 100, capacity=8, draws=5, rng=rng, dense=False).shape
    (5, 8)
    """
    if capacity < 1 or (dense and capacity != min(d_out, d_in)):
        expected = f"{min(d_out, d_in)} for a dense update" if dense else "at least 1"
        raise ValueError(f"capacity is {capacity}; expected {expected}")
    if not dense:
        # The singular values of a product of Gaussian matrices of any sizes do not depend on the
        # order of these sizes (Ipsen & Kieburg 2014); the smallest one is put in the middle.
        k, *others = sorted((d_out, d_in, capacity))
        L_B, L_A = (_bartlett(d, k, draws, rng) for d in others)
        return np.linalg.svd(L_B.swapaxes(-1, -2) @ L_A, compute_uv=False)
    if capacity > SMALL:
        with extras.named():
            from scipy.linalg import eigvalsh_tridiagonal

        squares = [
            eigvalsh_tridiagonal(*_tridiagonal(d_out, d_in, rng))[::-1] for _ in range(draws)
        ]
        return np.sqrt(np.maximum(squares, 0.0))
    return np.linalg.svd(_bidiagonal_matrices(d_out, d_in, draws, rng), compute_uv=False)


def _rng(*shape: int) -> np.random.Generator:
    return np.random.default_rng([SEED, *shape])


def _bartlett(d: int, k: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return lower triangular L (draws, k, k); L Lᵀ is distributed as MᵀM, M (d, k) Gaussian.

    This is Bartlett's decomposition.
    """
    L = np.tril(rng.standard_normal((draws, k, k)), -1)
    j = np.arange(k)
    L[:, j, j] = np.sqrt(rng.chisquare(d - j, (draws, k)))
    return L


def _bidiagonal(
    d_out: int, d_in: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return diagonal (draws, k) and superdiagonal (draws, k − 1) of a random bidiagonal matrix.

    Its singular values are distributed as those of a Gaussian matrix (Silverstein 1985; Dumitriu &
    Edelman 2002). k = min(d_out, d_in).
    """
    k, d = sorted((d_out, d_in))
    diagonal = np.sqrt(rng.chisquare(d - np.arange(k), (draws, k)))
    return diagonal, np.sqrt(rng.chisquare(k - np.arange(1, k), (draws, k - 1)))


def _bidiagonal_matrices(d_out: int, d_in: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the matrices of `_bidiagonal` in full, (draws, k, k)."""
    diagonal, above = _bidiagonal(d_out, d_in, draws, rng)
    k = diagonal.shape[1]
    C = np.zeros((draws, k, k))
    j = np.arange(k)
    C[:, j, j] = diagonal
    C[:, j[:-1], j[1:]] = above
    return C


def _tridiagonal(d_out: int, d_in: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return diagonal and off-diagonal of CᵀC, C being one draw of `_bidiagonal`."""
    (diagonal,), (above,) = _bidiagonal(d_out, d_in, 1, rng)
    squares = diagonal**2
    squares[1:] += above**2
    return squares, diagonal[:-1] * above


def _top_over_median(d_out: int, d_in: int, rng: np.random.Generator) -> float:
    """Draw s₁ / median(s) once, from three eigenvalues instead of all."""
    with extras.named():
        from scipy.linalg import eigvalsh_tridiagonal

    diagonal, off = _tridiagonal(d_out, d_in, rng)
    k = diagonal.size
    top = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=(k - 1, k - 1))
    middle = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=((k - 1) // 2, k // 2))
    return math.sqrt(top[0]) / float(np.mean(np.sqrt(middle)))
