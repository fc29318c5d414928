"""Estimate the exponent of a power law in the largest values of a dense update's spectrum."""

import math
from typing import NamedTuple

import numpy as np

SHARE = 10  # the tail is one in so many of the values
LEAST = 10  # values in the tail; with fewer there is no estimate
NORMAL = 1.959963984540054  # 97.5 % of a normal distribution lie below: an interval of 95 %


class Tail(NamedTuple):
    """The exponent of a tail and its 95 % interval."""

    exponent: float
    low: float
    high: float


def hill(s: np.ndarray, floor: float = 0.0) -> Tail | None:
    """Return the exponent of the density of λ = s², p(λ) ∝ λ^−α above a threshold, with interval.

    s (m,): singular values of ΔW, descending; floor: of its noise, in units of s.

    The Hill estimator (Hill 1975) over the k = ⌈m/10⌉ largest eigenvalues of ΔWᵀΔW, the threshold
    being the next one: α = 1 + k / Σᵢ log(λᵢ/λ_{k+1}), in (1, ∞), unchanged by s -> c·s. α, not the
    tail index α − 1, is what WeightWatcher prints as PL_Alpha, which chooses its threshold by the
    fit instead. The interval is α ± 1.96 (α − 1)/√k, exact for many independent values.

    The eigenvalues of one matrix are not independent, they repel one another, and those of random
    ones have no power law; α is a number for every matrix, and no test of a power law.

    None if k is below 10, if value k + 1 does not exceed the floor, or if all k + 1 are equal.

    >>> s = np.sqrt(np.linspace(1, 0, 1000, endpoint=False)[::-1] ** -0.5)  # tail index 2
    >>> round(hill(np.sort(s)[::-1]).exponent, 1)
    3.0
    """
    k = math.ceil(s.size / SHARE)
    if k < LEAST or not s[k] > floor:
        return None
    mean = 2 * float(np.mean(np.log(s[:k] / s[k])))
    if not mean > 0:
        return None
    index = 1 / mean
    half = NORMAL * index / math.sqrt(k)
    return Tail(1 + index, 1 + index - half, 1 + index + half)
