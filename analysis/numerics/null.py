"""Spectra and angles of random updates, the null that measured numbers are compared with.

The null of a low-rank update (capacity < min(d_out, d_in)) is a product of two Gaussian factors of
that rank, that of a dense update one Gaussian matrix. Neither is formed: spectra are drawn from
small matrices that have the same distribution of singular values. They depend only on the shape
and a fixed seed, and are cached for further modules of the same shape. d_small and d_large are
min(d_out, d_in) and max(d_out, d_in).
"""

import functools
import math

import numpy as np

from analysis.numerics import metrics

SEED = 0
EDGE_DRAWS, EDGE_QUANTILE = 1000, 0.99
ANGLE_DRAWS = 16
SMALL = 64  # up to this size, numpy's batched solver is faster than scipy's tridiagonal one


def democracy(s: np.ndarray, d_out: int, d_in: int) -> float:
    """Return effective_rank(s) over its mean under the null of capacity len(s); nan for ΔW = 0.

    1: as even as a random update; below 1: more concentrated.

    >>> s = null_spectra(200, 100, capacity=8, draws=1, rng=np.random.default_rng(0))[0]
    >>> round(democracy(s, 200, 100), 2)
    1.0
    >>> democracy(np.array([1.0] + [0.1] * 7), 200, 100) < 0.6
    True
    """
    return metrics.effective_rank(s) / null_effective_rank(*sorted((d_out, d_in)), s.size)


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
def null_effective_rank(d_small: int, d_large: int, capacity: int) -> float:
    """Mean effective rank under the null, with an error of about 0.1 %.

    >>> round(null_effective_rank(100, 200, capacity=8), 1)
    7.9
    """
    spectra = _enough_spectra(d_small, d_large, capacity)
    return float(np.mean([metrics.effective_rank(s) for s in spectra]))


@functools.cache
def null_top_share(d_small: int, d_large: int, capacity: int, k: int = 1) -> float:
    """Mean share of the energy in the k largest values under the null, in (0, 1].

    >>> round(null_top_share(100, 200, capacity=8), 2)
    0.2
    """
    spectra = _enough_spectra(d_small, d_large, capacity)
    return float(np.mean([metrics.top_share(s, k) for s in spectra]))


def _enough_spectra(d_small: int, d_large: int, capacity: int) -> np.ndarray:
    """Return spectra of the null, (draws, capacity); more draws for a smaller capacity."""
    draws = max(4, min(4096, 2**16 // capacity**2))
    return null_spectra(d_small, d_large, capacity, draws, _rng(d_small, d_large, capacity))


@functools.cache
def null_edge(d_small: int, d_large: int) -> float:
    """Return the 99 % quantile of s₁ / median(s) of a Gaussian matrix.

    >>> round(null_edge(30, 40), 1)
    2.3
    """
    rng = _rng(d_small, d_large)
    if d_small <= SMALL:
        spectra = null_spectra(d_small, d_large, d_small, EDGE_DRAWS, rng)
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
    d_out: int, d_in: int, capacity: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Singular values of random updates under the null, (draws, capacity), descending.

    d_out, d_in: the shape of the update, in either order.
    capacity: min(d_out, d_in) for a dense update, else smaller.
    draws: the number of updates.
    rng: the source of randomness.

    >>> null_spectra(200, 100, capacity=8, draws=5, rng=np.random.default_rng(0)).shape
    (5, 8)
    """
    if capacity < min(d_out, d_in):
        L_B, L_A = (_bartlett(d, capacity, draws, rng) for d in (d_out, d_in))
        return np.linalg.svd(L_B.swapaxes(-1, -2) @ L_A, compute_uv=False)
    if capacity > SMALL:
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
    from scipy.linalg import eigvalsh_tridiagonal

    diagonal, off = _tridiagonal(d_out, d_in, rng)
    k = diagonal.size
    top = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=(k - 1, k - 1))
    middle = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=((k - 1) // 2, k // 2))
    return math.sqrt(top[0]) / float(np.mean(np.sqrt(middle)))
