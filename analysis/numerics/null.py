"""What a spectrum would be by chance, so that a number can be read.

Low rank (capacity < min(d_out, d_in)): a product of two Gaussian factors of that rank. Dense:
one Gaussian matrix. Neither is ever formed: the spectra are drawn from their small equivalents,
which depend on the shape only, with a fixed seed, and kept for the next module of that shape.
"""

import functools
import math

import numpy as np

from analysis.numerics import metrics

SEED = 0
EDGE_DRAWS, EDGE_QUANTILE = 1000, 0.99
ANGLE_DRAWS = 16
SMALL = 64  # up to it, numpy's batched solver is faster than a loop over scipy's tridiagonal one


def democracy(s: np.ndarray, d_out: int, d_in: int) -> float:
    """effective_rank(s) over its mean under the null of len(s) values; nan for ΔW = 0.

    1: as even as chance makes it; below: more concentrated. Of values within one's own capacity.
    """
    return metrics.effective_rank(s) / null_effective_rank(*sorted((d_out, d_in)), s.size)


def outliers(s: np.ndarray, d_out: int, d_in: int) -> int:
    """Number of s above the edge of noise, for a dense update: q · median(s).

    q is the 99 % quantile of s₁/median(s) under the null: a Marchenko–Pastur edge whose scale
    spikes do not inflate, with one false alarm in a hundred matrices. 0 for ΔW = 0.
    """
    return int(np.count_nonzero(s > null_edge(*sorted((d_out, d_in))) * np.median(s)))


@functools.cache
def null_effective_rank(d_small: int, d_large: int, capacity: int) -> float:
    """Mean effective rank under the null, over as many draws as keep its error near 0.1 %."""
    spectra = _enough_spectra(d_small, d_large, capacity)
    return float(np.mean([metrics.effective_rank(s) for s in spectra]))


@functools.cache
def null_top_share(d_small: int, d_large: int, capacity: int, k: int = 1) -> float:
    """Mean share of the energy in the k largest values under the null, in (0, 1]."""
    spectra = _enough_spectra(d_small, d_large, capacity)
    return float(np.mean([metrics.top_share(s, k) for s in spectra]))


def _enough_spectra(d_small: int, d_large: int, capacity: int) -> np.ndarray:
    """Draws of the null, more of them the smaller they are: (draws, capacity)."""
    draws = max(4, min(4096, 2**16 // capacity**2))
    return null_spectra(d_small, d_large, capacity, draws, _rng(d_small, d_large, capacity))


@functools.cache
def null_edge(d_small: int, d_large: int) -> float:
    """The 99 % quantile of s₁ / median(s) of a Gaussian matrix."""
    rng = _rng(d_small, d_large)
    if d_small <= SMALL:
        spectra = null_spectra(d_small, d_large, d_small, EDGE_DRAWS, rng)
        ratios = spectra[:, 0] / np.median(spectra, axis=1)
    else:
        ratios = np.array([_top_over_median(d_small, d_large, rng) for _ in range(EDGE_DRAWS)])
    return float(np.quantile(ratios, EDGE_QUANTILE))


@functools.cache
def null_angles(d: int, k: int) -> np.ndarray:
    """Mean principal angles between two random subspaces of dimension k of R^d, (k,), ascending.

    By symmetry, between a random one and the first k axes.
    """
    rng = _rng(d, k)
    draws = [np.linalg.qr(rng.standard_normal((d, k)))[0][:k] for _ in range(ANGLE_DRAWS)]
    cosines = np.linalg.svd(np.array(draws), compute_uv=False)
    return np.arccos(np.minimum(cosines, 1.0)).mean(axis=0)


def null_spectra(
    d_out: int, d_in: int, capacity: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Singular values of `draws` random matrices of the null, (draws, capacity), descending."""
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
    """L (draws, k, k) lower triangular, L Lᵀ distributed as MᵀM, M (d, k) Gaussian (Bartlett)."""
    L = np.tril(rng.standard_normal((draws, k, k)), -1)
    j = np.arange(k)
    L[:, j, j] = np.sqrt(rng.chisquare(d - j, (draws, k)))
    return L


def _bidiagonal(
    d_out: int, d_in: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal (draws, k) and superdiagonal (draws, k − 1) of a Gaussian matrix's bidiagonal form.

    Its singular values are distributed as the matrix's (Silverstein 1985; Dumitriu & Edelman 2002).
    """
    k, d = sorted((d_out, d_in))
    diagonal = np.sqrt(rng.chisquare(d - np.arange(k), (draws, k)))
    return diagonal, np.sqrt(rng.chisquare(k - np.arange(1, k), (draws, k - 1)))


def _bidiagonal_matrices(d_out: int, d_in: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    diagonal, above = _bidiagonal(d_out, d_in, draws, rng)
    k = diagonal.shape[1]
    C = np.zeros((draws, k, k))
    j = np.arange(k)
    C[:, j, j] = diagonal
    C[:, j[:-1], j[1:]] = above
    return C


def _tridiagonal(d_out: int, d_in: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and off-diagonal of CᵀC, C one draw of the bidiagonal form."""
    (diagonal,), (above,) = _bidiagonal(d_out, d_in, 1, rng)
    squares = diagonal**2
    squares[1:] += above**2
    return squares, diagonal[:-1] * above


def _top_over_median(d_out: int, d_in: int, rng: np.random.Generator) -> float:
    """One draw of s₁ / median(s), from three eigenvalues instead of all."""
    from scipy.linalg import eigvalsh_tridiagonal

    diagonal, off = _tridiagonal(d_out, d_in, rng)
    k = diagonal.size
    top = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=(k - 1, k - 1))
    middle = eigvalsh_tridiagonal(diagonal, off, select="i", select_range=((k - 1) // 2, k // 2))
    return math.sqrt(top[0]) / float(np.mean(np.sqrt(middle)))
