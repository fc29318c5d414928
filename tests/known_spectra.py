"""Spectra of known values, and matrices that have them: the bounds of every method hold there."""

import numpy as np

N, D = 400, 520
SPECTRA = {
    "graded over 12 decades": np.logspace(0, -12, N),
    "clustered": np.repeat([4.0, 2.0, 1.0, 0.5], N // 4),
    "flat": np.ones(N),
    "one spike": np.concatenate([[10.0], np.ones(N - 1)]),
    "rank-deficient": np.concatenate([np.linspace(3, 1, 12), np.zeros(N - 12)]),
    "falling": 1 / np.arange(1, N + 1),
}


def bases():
    """Orthonormal columns (D, N) and (N, N)."""
    rng = np.random.default_rng(1)
    return tuple(np.linalg.qr(rng.standard_normal((d, N)))[0] for d in (D, N))


def matrix(name):
    """A matrix (D, N) with the spectrum of that name."""
    U, V = bases()
    return (U * SPECTRA[name]) @ V.T
