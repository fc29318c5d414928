"""The Hill estimator: exact power laws, its interval's coverage, and where there is none."""

import numpy as np
import pytest

from analysis.numerics import tails
from analysis.numerics.tails import hill


def pareto(rng, m, index):
    """Singular values whose squares are m independent Pareto values of this tail index."""
    return np.sort(np.sqrt(rng.uniform(size=m) ** (-1 / index)))[::-1]


def test_the_estimate_is_the_formula_over_the_top_tenth(rng):
    s = np.sort(rng.uniform(1, 9, 200))[::-1]
    logs = [np.log(s[i] ** 2 / s[20] ** 2) for i in range(20)]
    assert hill(s).exponent == pytest.approx(1 + 20 / sum(logs), rel=1e-12)


@pytest.mark.parametrize("index", [0.5, 1.0, 3.0])
def test_the_interval_covers_the_exponent_of_independent_values(rng, index):
    found = [hill(pareto(rng, 1000, index)) for _ in range(1000)]
    covered = np.mean([tail.low <= 1 + index <= tail.high for tail in found])
    assert covered == pytest.approx(0.95, abs=0.025)
    assert np.mean([tail.exponent for tail in found]) == pytest.approx(1 + index, rel=0.03)
    missed = np.mean([tail.low <= 1 + 1.5 * index <= tail.high for tail in found])
    assert missed < 0.2  # another exponent is not covered


def test_the_scale_does_not_matter_and_the_body_does_not(rng):
    s = pareto(rng, 300, 2.0)
    assert hill(7 * s) == pytest.approx(hill(s), rel=1e-12)
    other = s.copy()
    other[31:] /= 5
    assert hill(other) == hill(s)


def test_too_few_values_values_below_the_floor_and_equal_ones_have_none(rng):
    s = pareto(rng, 100, 2.0)
    assert hill(s) is not None
    assert hill(s[:90]) is None
    assert hill(s, floor=s[10]) is None
    assert hill(s, floor=s[10] * (1 - 1e-9)) is not None
    assert hill(np.ones(200)) is None
    assert hill(np.zeros(200)) is None


def test_a_random_matrix_has_an_exponent_too(rng):
    """A negative control: no power law there, and still a number; the docs say so."""
    s = np.linalg.svd(rng.standard_normal((300, 300)), compute_uv=False)
    assert hill(s).exponent > 5
    assert hill(s).high - hill(s).low == pytest.approx(
        2 * tails.NORMAL * (hill(s).exponent - 1) / np.sqrt(30)
    )
