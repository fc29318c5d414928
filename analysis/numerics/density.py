"""Estimate the measures of a spectrum that is too large to compute, with error bars.

Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017): for a random unit vector x, the mean of
xᵀ f(DᵀD) x is tr f(DᵀD)/n, and the eigenvalues of the tridiagonal matrix of a few Lanczos steps
from x are the nodes of a Gauss quadrature for it. The K largest values are taken out first, as they
would dominate the variance: D = (I − UUᵀ) W (I − VVᵀ), whose values are taken for the
other ones of W. They differ by at most the residual of the top ones, which counts squared where
values lie apart and is not part of the error bars. The energy Σs² is exact, and the values of D are
scaled to it.

The half width of each interval is T times the jackknife's standard error over the PROBES starts,
plus the difference from the quadrature of half as many steps, plus what rounding can do. That gives
about 95 % if the measure's estimates are close to normal; it is too narrow where few of the starts
see what matters.
"""

from dataclasses import dataclass

import numpy as np

from analysis.numerics import lanczos, topk

PROBES, STEPS = 16, 48
T = 2.131  # quantile 0.975 of Student's distribution with PROBES − 1 degrees of freedom
INTERVAL = "about 95 %"
K = 16  # values that are taken out
SEED = 1
KNOWN = 1e-5  # a share of the energy that is smaller is lost in the rounding of float32
Nodes = tuple[np.ndarray, np.ndarray]  # singular values, and the share of each
MEASURES = (
    "nuclear_norm", "effective_rank", "energy_entropy_rank", "participation_ratio", "gini",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Density:
    """Estimates of the measures of a spectrum.

    top: the K largest values, with bounds. values: measure -> estimate. widths: measure -> half
    width of its interval.
    """

    top: topk.Top
    values: dict[str, float]
    widths: dict[str, float]

    def bounds(self, d: int) -> dict[str, tuple[float, float, str]]:
        """Return measure -> the ends of its interval, and how often it holds; see `Top.bounds`."""
        intervals = {
            name: (value - self.widths[name], value + self.widths[name], INTERVAL)
            for name, value in self.values.items()
        }
        return self.top.bounds(d) | intervals if self.top.norm > 0 else {}


def estimate(W: np.ndarray, seed: int = SEED) -> Density:
    """Return estimates of MEASURES of the singular values of W (d_out, d_in), finite, float.

    seed: of the random starts. nan for W = 0; exact if few enough values are left.

    >>> s = np.arange(1.0, 401.0)
    >>> found = estimate(np.diag(s))
    >>> width = found.widths["nuclear_norm"]
    >>> bool(abs(found.values["nuclear_norm"] - s.sum()) <= width < 0.05 * s.sum())
    True
    """
    d = min(W.shape)
    small = d <= topk.SMALL  # where all values are computed anyhow
    top = topk.top(W, d if small else min(K, d))
    if top.norm == 0:
        nothing = dict.fromkeys(MEASURES, float("nan"))
        return Density(top, nothing | {"nuclear_norm": 0.0}, dict.fromkeys(MEASURES, 0.0))
    if small:
        return Density(top, _measures(top.s, np.ones(d)), dict.fromkeys(MEASURES, 0.0))
    T_rest, size = _process(W, top, np.random.default_rng(seed))
    nodes = [_nodes(T_rest, j, size) for j in range(PROBES)]
    values = _pooled(top, nodes, d)
    halved = [_nodes(_shortened(T_rest), j, size) for j in range(PROBES)]
    coarse = _pooled(top, halved, d)
    left_out = [_pooled(top, nodes[:j] + nodes[j + 1 :], d) for j in range(PROBES)]
    widths = {}
    for name in MEASURES:
        single = np.array([one[name] for one in left_out])
        error = np.sqrt((PROBES - 1) * np.mean((single - single.mean()) ** 2))
        widths[name] = float(T * error + abs(values[name] - coarse[name]))
    for name, width in _rounding(W, top, nodes, values).items():
        widths[name] += width
    return Density(top, values, widths)


def _process(
    W: np.ndarray, top: topk.Top, rng: np.random.Generator
) -> tuple[lanczos.Tridiagonal, float]:
    """Return the Lanczos matrices of DᵀD / size², on the smaller side of D, and the size."""
    M, P, Q = (W, top.Vh.T, top.U) if W.shape[1] <= W.shape[0] else (W.T, top.U, top.Vh.T)
    size = float(top.s[0])

    def square(X: np.ndarray) -> np.ndarray:
        Y = M @ ((X - P @ (P.T @ X)) / size).astype(M.dtype)
        Y = Y - (Q @ (Q.T @ Y)).astype(M.dtype)
        Z = (M.T @ (Y / M.dtype.type(size))).astype(np.float64)
        return Z - P @ (P.T @ Z)

    X = rng.standard_normal((M.shape[1], PROBES))
    return lanczos.run(square, X - P @ (P.T @ X), STEPS), size


def _shortened(T_rest: lanczos.Tridiagonal) -> lanczos.Tridiagonal:
    half = STEPS // 2
    return lanczos.Tridiagonal(
        T_rest.alpha[:half], T_rest.beta[:half], np.minimum(T_rest.steps, half)
    )


def _nodes(T_rest: lanczos.Tridiagonal, j: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values and the share of each, which sum to 1, as seen from one start."""
    squares, weights = T_rest.eigen(j)
    return size * np.sqrt(np.maximum(squares, 0.0)), weights


def _pooled(top: topk.Top, nodes: list[Nodes], d: int) -> dict[str, float]:
    """Return the measures of the top values and of what some of the starts see of the others."""
    each = (d - len(top.s)) / len(nodes)
    rest = np.concatenate([values for values, _ in nodes])
    of_rest = each * np.concatenate([weights for _, weights in nodes])
    seen, exact = float(of_rest @ rest**2), top.norm**2 - float(top.s @ top.s)
    if min(seen, exact) > KNOWN * top.norm**2:
        rest = rest * np.sqrt(exact / seen)  # what is known of the energy is used
    return _measures(np.append(top.s, rest), np.append(np.ones(len(top.s)), of_rest))


def _rounding(
    W: np.ndarray, top: topk.Top, nodes: list[Nodes], values: dict[str, float]
) -> dict[str, float]:
    """Return measure -> what rounding of products in the dtype of W can change.

    A product with DᵀD is off by about e·s₁·s, e = eps·√max(d_out, d_in), so that a value s ≪ √e·s₁
    comes out up to η = √(e·s₁·s_{K+1}) + e·s₁ too large, and others by η²/s.
    """
    e = float(np.finfo(W.dtype).eps * np.sqrt(max(W.shape)))
    eta = np.sqrt(e * top.s[0] * top.s[-1]) + e * top.s[0]
    d = min(W.shape)
    moved = sum(float(w @ np.minimum(eta, eta**2 / np.maximum(s, eta))) for s, w in nodes)
    share = d * moved / len(nodes) / values["nuclear_norm"] + e  # of Σs
    entropy = share * (1 + np.log(d / share))
    return {
        "nuclear_norm": share * values["nuclear_norm"],
        "effective_rank": entropy * values["effective_rank"],
        "energy_entropy_rank": e * np.log(d / e) * values["energy_entropy_rank"],
        "participation_ratio": 2 * e * values["participation_ratio"],
        "gini": 2 * share,
    }


def _measures(s: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Return MEASURES of values s that occur `counts` times each."""
    t = s / s.max()
    e = t**2 / float(counts @ t**2)
    total = float(counts @ t)
    p = t / total
    logs, log_e = (np.log(x, out=np.zeros_like(x), where=x > 0) for x in (p, e))
    order = np.argsort(t)
    held = np.cumsum((counts * t)[order])
    before = np.append(0.0, held[:-1])
    lorenz = float(counts[order] @ (held + before)) / (float(counts.sum()) * held[-1])
    return {
        "nuclear_norm": float(s.max() * total),
        "effective_rank": float(np.exp(-np.sum(counts * p * logs))),
        "energy_entropy_rank": float(np.exp(-np.sum(counts * e * log_e))),
        "participation_ratio": float(1 / np.sum(counts * e**2)),
        "gini": float(1 - lorenz),
    }
