"""Run the Lanczos process on WᵀW from several vectors at once, and read bounds and moments off it.

Each vector x has a process of its own: T = tridiag(β, α, β) with α and β from the recurrence
β_j q_{j+1} = (WᵀW − α_j) q_j − β_{j−1} q_{j−1}, q_1 = x/‖x‖. One pass over W serves all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# A β below this share of the largest T_jj ends a process: its Krylov space is invariant.
INVARIANT = 1e-14


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """The matrices T of several processes.

    alpha (steps, b): their diagonals. beta (steps, b): below the diagonal; the last row couples to
    the next vector. steps (b,): the size of each T, smaller if its space became invariant.
    """

    alpha: np.ndarray
    beta: np.ndarray
    steps: np.ndarray

    def eigen(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues of T_j, ascending, and the squared first entries of its vectors.

        They are the nodes and weights of a Gauss quadrature for xᵀ f(WᵀW) x, ‖x‖ = 1 (Golub and
        Meurant 1994).
        """
        t = int(self.steps[j])
        off = self.beta[: t - 1, j]
        values, vectors = np.linalg.eigh(
            np.diag(self.alpha[:t, j]) + np.diag(off, 1) + np.diag(off, -1)
        )
        return values, vectors[0] ** 2


def run(square: Callable[[np.ndarray], np.ndarray], X: np.ndarray, steps: int) -> Tridiagonal:
    """Return T of each column of X after `steps` steps, reorthogonalised in full.

    square: X (n, b) -> WᵀW X. X (n, b): the starts, not zero.

    >>> W = np.diag([3.0, 1.0])
    >>> T = run(lambda X: W.T @ (W @ X), np.ones((2, 1)), steps=2)
    >>> values, weights = T.eigen(0)
    >>> values.round(6).tolist(), weights.round(6).tolist()
    ([1.0, 9.0], [0.5, 0.5])
    """
    n, b = X.shape
    steps = min(steps, n)
    Q = np.zeros((b, n, steps))
    x = X.T / np.linalg.norm(X.T, axis=1, keepdims=True)  # (b, n)
    alpha, beta = np.zeros((steps, b)), np.zeros((steps, b))
    size, taken = np.full(b, steps), np.ones(b, dtype=bool)
    for j in range(steps):
        Q[:, :, j] = x
        y = square(x.T).T
        alpha[j] = np.einsum("bn,bn->b", x, y)
        for _ in range(2):
            known = Q[:, :, : j + 1]
            y = y - (known @ (known.transpose(0, 2, 1) @ y[:, :, None]))[:, :, 0]
        beta[j] = np.linalg.norm(y, axis=1)
        ended = taken & (beta[j] <= INVARIANT * alpha[: j + 1].max(axis=0))
        size[ended], taken = j + 1, taken & ~ended
        beta[j, ~taken] = 0.0
        x = np.divide(y, beta[j][:, None], out=np.zeros_like(y), where=taken[:, None])
        if not taken.any():
            break
    return Tridiagonal(alpha, beta, size)


def norm_bound(T: Tridiagonal, n: int, failure: float) -> float:
    """Return a number that is at least ‖W‖₂, except with probability `failure`.

    T: of independent random starts, uniform on the unit sphere of R^n (Hochstenbach 2013). The next
    Lanczos vector is p(WᵀW) x with p(λ) = Π (λ − θ_j) / Π β_j, and has norm 1; so p(‖W‖²) ≤ 1/|γ|,
    where γ is the part of x along the top right singular vector. |γ| ≤ δ has probability at most
    δ·√(2n/π). Of b starts, all have so small a part with probability at most `failure` for
    δ = failure^(1/b)·√(π/(2n)); if one has not, ‖W‖² lies below the λ of its p(λ) = 1/δ.

    >>> rng = np.random.default_rng(0)
    >>> W = np.diag(np.linspace(1, 0, 100))
    >>> T = run(lambda X: W.T @ (W @ X), rng.standard_normal((100, 8)), steps=12)
    >>> 1.0 <= norm_bound(T, 100, failure=1e-6) < 1.1
    True
    """
    b = T.alpha.shape[1]
    delta = failure ** (1 / b) * np.sqrt(np.pi / (2 * n))
    return float(np.sqrt(max(_where_reached(T, j, float(np.log(1 / delta))) for j in range(b))))


def _where_reached(T: Tridiagonal, j: int, log_p: float) -> float:
    """Return λ beyond the zeros of p with log p(λ) = log_p, for the process j."""
    t = int(T.steps[j])
    theta = np.maximum(T.eigen(j)[0], 0.0)
    largest = float(theta[-1])
    if largest == 0 or T.beta[t - 1, j] == 0:
        return largest
    log_beta = float(np.sum(np.log(T.beta[:t, j])))

    def log_of(x: float) -> float:
        return float(np.sum(np.log(x - theta))) - log_beta

    low, high = largest, 2 * largest
    while log_of(high) < log_p:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if log_of(middle) < log_p else (low, middle)
    return high
