"""Measures of a spectrum: how large an update is, and how few directions it rests on.

s (k,): the singular values of ΔW, nonnegative and descending; p = s/Σs and e = s²/Σs². Every
ratio is unchanged by s -> c·s, c > 0, and is nan for ΔW = 0.
"""

import math

import numpy as np


def spectral_norm(s: np.ndarray) -> float:
    """Largest singular value s₁, the most that ΔW stretches any direction; 0 for ΔW = 0.

    >>> spectral_norm(np.array([4.0, 3.0]))
    4.0
    """
    return float(s[0])


def frobenius_norm(s: np.ndarray) -> float:
    """√Σs², the root of the sum of squares of all entries of ΔW; 0 for ΔW = 0.

    >>> frobenius_norm(np.array([4.0, 3.0]))
    5.0
    """
    return float(s[0] * np.linalg.norm(_relative(s))) if s[0] > 0 else 0.0


def nuclear_norm(s: np.ndarray) -> float:
    """Sum of the singular values Σs; 0 for ΔW = 0.

    >>> nuclear_norm(np.array([4.0, 3.0]))
    7.0
    """
    return float(s.sum())


def top_share(s: np.ndarray, k: int) -> float:
    """Share of the energy Σs² in the k largest values, in [0, 1]; 1 for k beyond len(s).

    0 for k = 0; raises ValueError for k below it.

    >>> round(top_share(np.array([4.0, 3.0]), k=1), 6)
    0.64
    """
    if k < 0:
        raise ValueError(f"k is {k}; expected at least 0")
    cumulative = np.cumsum(np.append(0.0, _relative(s) ** 2))
    return float(cumulative[min(k, s.size)] / cumulative[-1])


def effective_rank(s: np.ndarray) -> float:
    """Exponential of the entropy of s / s.sum(), in [1, k] (Roy & Vetterli, 2007).

    >>> round(effective_rank(np.array([1.0, 1.0, 1.0])), 6)
    3.0
    >>> round(effective_rank(np.array([1.0, 0.0, 0.0])), 6)
    1.0
    """
    return _entropy_rank(_relative(s))


def energy_entropy_rank(s: np.ndarray) -> float:
    """Exponential of the entropy of s² / Σs², in [1, k]; at most `effective_rank`.

    >>> s = np.array([2.0, 1.0, 1.0])
    >>> round(energy_entropy_rank(s), 3), round(effective_rank(s), 3)
    (2.381, 2.828)
    """
    return _entropy_rank(_relative(s) ** 2)


def stable_rank(s: np.ndarray) -> float:
    """Σs² / s₁², in [1, k] (Rudelson & Vershynin, 2007).

    >>> stable_rank(np.array([2.0, 1.0, 1.0]))
    1.5
    """
    return float(np.sum(_relative(s) ** 2))


def participation_ratio(s: np.ndarray) -> float:
    """(Σs²)² / Σs⁴, in [1, k]: the number of equal values that are as concentrated.

    >>> round(participation_ratio(np.array([5.0, 5.0, 0.0])), 6)
    2.0
    """
    energy = _relative(s) ** 2
    return float(energy.sum() ** 2 / np.sum(energy**2))


def gini(s: np.ndarray) -> float:
    """Gini coefficient of s: 0 if all values are equal, 1 − 1/k if only one is not zero.

    >>> round(abs(gini(np.array([1.0, 1.0]))), 6), round(gini(np.array([1.0, 0.0])), 6)
    (0.0, 0.5)
    """
    rank_from_top = np.arange(1, s.size + 1)
    t = _relative(s)
    return float(1 + 1 / s.size - 2 * np.sum(rank_from_top * t) / (s.size * t.sum()))


def energy_rank(s: np.ndarray, q: float) -> float:
    """Smallest k whose k largest values hold a share q of the energy, 0 < q <= 1; nan for ΔW = 0.

    >>> energy_rank(np.array([4.0, 3.0, 0.1]), q=0.9)
    2.0
    """
    cumulative = np.cumsum(_relative(s) ** 2)
    if math.isnan(cumulative[-1]):
        return math.nan
    # Its own last entry, not s @ s: another order of summation may round above every entry.
    return float(np.searchsorted(cumulative, q * cumulative[-1]) + 1)


def rank(s: np.ndarray, above: float) -> int:
    """Number of values greater than `above`, in units of s; 0 for ΔW = 0.

    >>> rank(np.array([4.0, 3.0, 1e-17]), above=1e-15)
    2
    """
    return int(np.count_nonzero(s > above))


def utilisation(s: np.ndarray, capacity: int) -> float:
    """effective_rank / capacity, in (0, 1]: the share of the allowed directions in even use.

    >>> round(utilisation(np.array([1.0, 1.0, 0.0, 0.0]), capacity=4), 6)
    0.5
    """
    return effective_rank(s) / capacity


def _relative(s: np.ndarray) -> np.ndarray:
    """Return s / s₁, whose squares neither overflow nor vanish; nan for ΔW = 0."""
    return s / s[0] if s[0] > 0 else np.full(s.shape, np.nan)


def _entropy_rank(weights: np.ndarray) -> float:
    """Return the exponential of the entropy of weights / weights.sum()."""
    p = weights / weights.sum()
    p = p[p != 0]  # 0·log 0 = 0; a nan stays
    return float(np.exp(-np.sum(p * np.log(p))))
