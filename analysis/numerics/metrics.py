"""A spectrum in, a number out: how large an update is and on how few directions it rests.

s (k,) are the singular values of ΔW, nonnegative and descending; p = s/Σs and e = s²/Σs².
Every ratio is unchanged by s -> c·s, c > 0, and is nan for ΔW = 0.
"""

import math

import numpy as np


def spectral_norm(s: np.ndarray) -> float:
    """s₁, the largest stretch of any direction; 0 for ΔW = 0."""
    return float(s[0])


def frobenius_norm(s: np.ndarray) -> float:
    """√Σs²; 0 for ΔW = 0."""
    return float(s[0] * np.linalg.norm(_relative(s))) if s[0] > 0 else 0.0


def nuclear_norm(s: np.ndarray) -> float:
    """Σs; 0 for ΔW = 0."""
    return float(s.sum())


def top_share(s: np.ndarray, k: int) -> float:
    """Share of the energy Σs² in the k largest values, in [0, 1]; 1 for k beyond len(s)."""
    cumulative = np.cumsum(_relative(s) ** 2)
    return float(cumulative[min(k, s.size) - 1] / cumulative[-1])


def effective_rank(s: np.ndarray) -> float:
    """Exponential of the entropy of s / s.sum() (Roy & Vetterli, 2007), in [1, k]."""
    return _entropy_rank(_relative(s))


def energy_entropy_rank(s: np.ndarray) -> float:
    """Exponential of the entropy of s² / Σs², in [1, k]; at most `effective_rank`."""
    return _entropy_rank(_relative(s) ** 2)


def stable_rank(s: np.ndarray) -> float:
    """Σs² / s₁², in [1, k] (Rudelson & Vershynin, 2007)."""
    return float(np.sum(_relative(s) ** 2))


def participation_ratio(s: np.ndarray) -> float:
    """(Σs²)² / Σs⁴, in [1, k]: the number of equal values with the same concentration."""
    energy = _relative(s) ** 2
    return float(energy.sum() ** 2 / np.sum(energy**2))


def gini(s: np.ndarray) -> float:
    """Gini coefficient of s: 0 when all are equal, 1 − 1/k when one value holds all."""
    rank_from_top = np.arange(1, s.size + 1)
    t = _relative(s)
    return float(1 + 1 / s.size - 2 * np.sum(rank_from_top * t) / (s.size * t.sum()))


def energy_rank(s: np.ndarray, q: float) -> float:
    """Least k whose k largest values hold a share q of the energy, 0 < q <= 1; integer or nan."""
    cumulative = np.cumsum(_relative(s) ** 2)
    if math.isnan(cumulative[-1]):
        return math.nan
    # The last entry itself, not s @ s: another order of summation may round above every entry.
    return float(np.searchsorted(cumulative, q * cumulative[-1]) + 1)


def rank(s: np.ndarray, above: float) -> int:
    """Number of values greater than `above`, in units of s; 0 for ΔW = 0."""
    return int(np.count_nonzero(s > above))


def utilisation(s: np.ndarray, capacity: int) -> float:
    """effective_rank / capacity, in (0, 1]: the part of the allowed directions in even use."""
    return effective_rank(s) / capacity


def _relative(s: np.ndarray) -> np.ndarray:
    """s / s₁, whose squares neither overflow nor vanish; nan for ΔW = 0."""
    return s / s[0] if s[0] > 0 else np.full(s.shape, np.nan)


def _entropy_rank(weights: np.ndarray) -> float:
    p = weights / weights.sum()
    p = p[p != 0]  # 0·log 0 = 0; a nan stays
    return float(np.exp(-np.sum(p * np.log(p))))
