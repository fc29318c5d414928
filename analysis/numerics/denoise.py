"""Estimate the singular values of ΔW without the rounding noise that a dense difference carries.

Noise raises small singular values far more than large ones, so that a rounded difference looks more
even than ΔW is. Shrinkage as of Gavish & Donoho (2017) sets all that lies below the floor to zero,
which is right for a few directions in noise and wrong for full fine-tuning, whose values go on
below it. So the effect of the noise is undone for the spectrum as a whole, by simulation.
"""

import numpy as np

from analysis.numerics.floor import BLOCK, spacing

TYPICAL = 0.85  # the largest singular value of the noise over the floor, measured 0.83 to 0.92
# Where ΔW is of the size of the spacing, entries of W0 that were on the grid stay there, and the
# error is smaller: its variance is divided by 1 + STAYING · (noise's share of the energy). Fitted.
STAYING = 2.0
STEPS = 8  # of the iteration; more fit the simulated noise instead of ΔW
# The simulation has at most LARGEST values: TOP of a larger ΔW one by one, the others by quantiles.
LARGEST, TOP = 512, 64
MOST_NOISE = 0.5  # if noise has more than this share of the energy of ΔW, nothing is estimated
# The noise is uneven, and nothing is estimated, if the floor is this much above that of even noise.
UNEVEN = 1.3
SEED = 0


def denoised(
    s: np.ndarray, d_out: int, d_in: int, floor: float | None, noise: float | None = None
) -> np.ndarray | None:
    """Return an estimate of the singular values of ΔW before it was rounded, (k,), descending.

    s: (k,), k = min(d_out, d_in), those of the rounded ΔW, descending.
    floor: its noise floor.
    noise: the root mean square of its rounding, from `noise_size`; None if only the floor is known.

    The noise is taken for independent Gaussian entries of one size σ = noise, or TYPICAL · floor =
    σ (√d_out + √d_in), reduced by STAYING, and of no larger median than s.

    Iterated bootstrap of the bias (Kuk 1995, J. R. Stat. Soc. B 57, 395; indirect inference,
    Gouriéroux, Monfort & Renault 1993): from x = s on, x <- x + s − f(x), f(x) being the values of
    diag(x) plus one draw of noise, the same in all steps; with other singular vectors they would
    have the same distribution.

    s itself if floor is None or 0; None for ΔW = 0, if noise makes up most of ΔW (MOST_NOISE), and
    if it is UNEVEN, as with outlier columns. The latter shows only if `noise` is given: from the
    floor alone, an upper estimate, uneven noise is overestimated and too much of ΔW taken away.
    Scaling s, floor and noise scales the result. At most 9 decompositions of 512 × 512.

    >>> denoised(np.array([2.0, 1.0]), 2, 2, floor=0.0).tolist()
    [2.0, 1.0]
    """
    if not s[0] > 0:
        return None
    if not floor:
        return s
    m, n = sorted((d_out, d_in))
    edge = np.sqrt(m) + np.sqrt(n)
    if noise is not None and floor > UNEVEN * noise * edge:
        return None
    sigma = (TYPICAL * floor / edge if noise is None else noise) / s[0]
    y = s / s[0]
    positions = _positions(m)
    size = len(positions)
    share = sigma**2 * m * n / np.sum(y**2)
    if share > MOST_NOISE:
        return None
    # σ²·n is what the noise adds to a square: the same in a smaller simulation.
    sigma *= np.sqrt(m / size / (1 + STAYING * share))
    draw = _Draw(size, round(n * size / m))
    of_noise = np.median(draw.values(np.zeros(size), sigma))
    sigma *= min(1.0, float(np.median(y) / of_noise))
    observed = np.interp(positions, np.arange(m), y)
    x = observed
    for _ in range(STEPS):
        x = np.sort(np.maximum(x + observed - draw.values(x, sigma), 0.0))[::-1]
    factors = np.divide(x, observed, out=np.zeros(size), where=observed > 0)
    return np.sort(s * np.interp(np.arange(m), positions, factors))[::-1]


def noise_size(W: np.ndarray, W0: np.ndarray | None = None) -> float:
    """Root mean square of the rounding errors in W − W0; W, W0 as for `floor.noise_floor`.

    >>> round(noise_size(np.full((4, 4), 1.5, np.float16)) * 12**0.5 * 2**10, 6)
    1.0
    """
    rows = max(1, BLOCK // max(1, W.shape[1]))
    total = 0.0
    for stored in (W,) if W0 is None else (W, W0):
        for i in range(0, len(stored), rows):
            total += float(np.sum(spacing(stored[i : i + rows]) ** 2))
    return float(np.sqrt(total / W.size / 12))


def _positions(m: int) -> np.ndarray:
    """Return the positions 0 … m − 1 of the values that are simulated, ascending."""
    if m <= LARGEST:
        return np.arange(m, dtype=np.float64)
    rest = np.linspace(TOP, m - 1, LARGEST - TOP)
    return np.concatenate([np.arange(TOP, dtype=np.float64), rest])


class _Draw:
    """One seeded m × n matrix of standard Gaussian noise, m <= n, to which a diagonal is added."""

    def __init__(self, m: int, n: int) -> None:
        rng = np.random.default_rng(SEED)
        self.square, more = rng.standard_normal((m, m)), n - m
        beside = rng.standard_normal((m, min(m, more)))
        if more > m:  # Bartlett's triangle has the Gram matrix of m × more entries
            beside = np.tril(beside, -1) + np.diag(np.sqrt(rng.chisquare(more - np.arange(m))))
        self.beside = beside @ beside.T

    def values(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """Return the singular values of [diag(x), 0] + σ·noise, (m,), descending."""
        W = sigma * self.square
        W[np.diag_indices(len(x))] += x
        squares = np.linalg.eigvalsh(W @ W.T + sigma**2 * self.beside)[::-1]
        return np.sqrt(np.maximum(squares, 0.0))
