"""The Lanczos process: quadrature exact for polynomials, and the norm bound from random starts."""

import numpy as np
import pytest

from analysis.numerics import lanczos


def square_of(W):
    return lambda X: W.T @ (W @ X)


def test_quadrature_is_exact_for_polynomials(rng):
    W = rng.standard_normal((40, 30))
    X = rng.standard_normal((30, 3))
    T = lanczos.run(square_of(W), X, steps=4)
    for j in range(3):
        x = X[:, j] / np.linalg.norm(X[:, j])
        nodes, weights = T.eigen(j)
        for power in range(8):  # up to 2·4 − 1
            exact = x @ np.linalg.matrix_power(W.T @ W, power) @ x
            assert weights @ nodes**power == pytest.approx(exact, rel=1e-9)


def test_an_invariant_space_ends_the_process(rng):
    """A start in the span of two right singular vectors sees two values, and nothing else."""
    V = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    W = (V * np.linspace(3, 1, 20)) @ V.T
    X = np.stack([V[:, 4] + V[:, 7], rng.standard_normal(20)], axis=1)
    T = lanczos.run(square_of(W), X, steps=10)
    assert T.steps.tolist() == [2, 10]
    values = np.linspace(3, 1, 20)[[7, 4]]
    np.testing.assert_allclose(T.eigen(0)[0], values**2, rtol=1e-10)


def test_a_zero_matrix_has_norm_zero():
    T = lanczos.run(lambda X: 0 * X, np.ones((5, 2)), steps=3)
    assert lanczos.norm_bound(T, 5, failure=1e-6) == 0


@pytest.mark.parametrize("spectrum", [np.ones(200), np.linspace(1, 0, 200), 0.9 ** np.arange(200)])
def test_the_norm_bound_holds_and_is_near(rng, spectrum):
    for seed in range(20):
        X = np.random.default_rng(seed).standard_normal((200, 16))
        T = lanczos.run(square_of(np.diag(spectrum)), X, steps=5)
        assert 1 <= lanczos.norm_bound(T, 200, failure=1e-6) * (1 + 1e-12) < 1.35


def test_the_bound_fails_where_a_likely_failure_is_allowed():
    """Negative control: a direction that one start in two hardly sees is missed that often."""
    spectrum = np.concatenate([[1.0], np.full(1999, 0.98)])
    missed = 0
    for seed in range(20):
        X = np.random.default_rng(seed).standard_normal((2000, 1))
        T = lanczos.run(square_of(np.diag(spectrum)), X, steps=3)
        missed += lanczos.norm_bound(T, 2000, failure=0.99) < 1
    assert missed > 0
