"""Spectra of rounded updates whose true spectrum is known."""

import ml_dtypes
import numpy as np
import pytest
from made_updates import orthonormal

from analysis.numerics import denoise, metrics
from analysis.numerics.denoise import denoised, noise_size
from analysis.numerics.floor import noise_floor

M = 160
SPECTRA = {
    "exponential": np.exp(-np.arange(M) / 40),
    "power law": np.arange(1.0, M + 1) ** -1,
    "low rank": np.append(np.linspace(2, 1, 8), np.zeros(M - 8)),
    "low rank and tail": np.append(np.linspace(2, 1, 8), np.full(M - 8, 0.05)),
}
# Measures, and the errors of the estimate that count as none, in units of the measure. By chance
# the error of a raw gini can be smaller: noise lifts the tail and evens the values out.
MEASURES = {
    "effective_rank": (metrics.effective_rank, 1.0),
    "gini": (metrics.gini, 0.05),
    "top_share_1": (lambda s: metrics.top_share(s, 1), 0.002),
}


def rounded(rng, s, shape, ratio):
    """The values and the floor of a ΔW with spectrum s, from weights stored in bfloat16."""
    W0 = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    dW = (orthonormal(rng, shape[0], s.size) * s) @ orthonormal(rng, shape[1], s.size).T
    size = ratio * np.linalg.norm(W0.astype(float)) / np.linalg.norm(s)
    W = (W0.astype(float) + size * dW).astype(ml_dtypes.bfloat16)
    return np.linalg.svd(W.astype(float) - W0.astype(float), compute_uv=False), noise_floor(W)


def errors(measure, true, observed, shape, floor):
    """How far the raw and the denoised spectrum are from the truth in one measure."""
    estimate = denoised(observed, *shape, floor)
    return tuple(abs(measure(s) - measure(true)) for s in (observed, estimate))


@pytest.mark.parametrize("ratio", [0.1, 0.03, 0.01])
@pytest.mark.parametrize("shape", [(M, M), (420, M), (M, 240)])
@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_nearer_to_the_truth_than_the_raw_spectrum(rng, name, shape, ratio):
    true = SPECTRA[name]
    observed, floor = rounded(rng, true, shape, ratio)
    for measure, none in MEASURES.values():
        raw, after = errors(measure, true, observed, shape, floor)
        assert after <= max(raw, none)
    raw, after = errors(metrics.effective_rank, true, observed, shape, floor)
    if raw > 0.05 * metrics.effective_rank(true):
        assert after < 0.6 * raw


@pytest.mark.parametrize("shape", [(M, M), (420, M)])
@pytest.mark.parametrize("name", SPECTRA)
def test_where_a_quarter_of_the_energy_is_noise_it_is_no_further(rng, name, shape):
    true = SPECTRA[name]
    observed, floor = rounded(rng, true, shape, 0.003)
    raw, after = errors(metrics.effective_rank, true, observed, shape, floor)
    assert after <= 1.05 * raw


def test_shrinkage_of_single_values_would_fail_that(rng):
    """Negative control: Gavish & Donoho's optimal shrinkage, for few directions in noise."""
    true, shape = SPECTRA["exponential"], (M, M)
    observed, floor = rounded(rng, true, shape, 0.003)
    y = observed / (floor / (2 * np.sqrt(M))) / np.sqrt(M)
    shrunk = observed * np.sqrt(np.maximum((y**2 - 2) ** 2 - 4, 0)) * (y > 2) / y**2
    raw, after = errors(metrics.effective_rank, true, observed, shape, floor)
    by_shrinkage = abs(metrics.effective_rank(shrunk) - metrics.effective_rank(true))
    assert after < raw < by_shrinkage


def rounded_unevenly(rng, s, shape, ratio, rows, columns):
    """As `rounded`, with W0 of rows and columns of these sizes: values, floor, noise."""
    W0 = (rng.standard_normal(shape) * rows[:, None] * columns).astype(ml_dtypes.bfloat16)
    dW = (orthonormal(rng, shape[0], s.size) * s) @ orthonormal(rng, shape[1], s.size).T
    size = ratio * np.linalg.norm(W0.astype(float)) / np.linalg.norm(s)
    W = (W0.astype(float) + size * dW).astype(ml_dtypes.bfloat16)
    observed = np.linalg.svd(W.astype(float) - W0.astype(float), compute_uv=False)
    return observed, noise_floor(W), noise_size(W)


@pytest.mark.parametrize("shape", [(M, M), (420, M), (M, 240)])
@pytest.mark.parametrize("name", SPECTRA)
def test_with_the_size_of_the_noise_it_is_nearer_to_the_truth(rng, name, shape):
    true, ones = SPECTRA[name], (np.ones(shape[0]), np.ones(shape[1]))
    for ratio in (0.03, 0.01, 0.003):
        observed, floor, noise = rounded_unevenly(rng, true, shape, ratio, *ones)
        estimate = denoised(observed, *shape, floor, noise)
        raw, after = (
            abs(metrics.effective_rank(s) - metrics.effective_rank(true))
            for s in (observed, estimate)
        )
        assert after <= max(raw, 1.0)


@pytest.mark.parametrize("uneven", ["rows", "columns", "one column"])
def test_of_uneven_noise_nothing_is_estimated(rng, uneven):
    """With outliers in W0, the floor tells little of the noise in most directions."""
    shape = (420, M)
    rows, columns = np.ones(420), np.ones(M)
    if uneven == "rows":
        rows = np.exp(0.5 * rng.standard_normal(420))
    elif uneven == "columns":
        columns = np.exp(rng.standard_normal(M))
    else:
        columns[3] = 30.0
    true = SPECTRA["exponential"]
    observed, floor, noise = rounded_unevenly(rng, true, shape, 0.01, rows, columns)
    assert denoised(observed, *shape, floor, noise) is None
    # Negative control: from the floor alone the estimate would be worse than no estimate.
    estimate = denoised(observed, *shape, floor)
    if estimate is not None:
        raw, after = errors(metrics.effective_rank, true, observed, shape, floor)
        assert after > raw


def test_the_size_of_the_noise_is_that_of_its_entries(rng):
    W0 = rng.standard_normal((300, 200)).astype("f4")
    W, V = W0.astype(ml_dtypes.bfloat16), W0.astype(np.float16)
    error = np.sqrt(np.mean((W.astype(float) - W0) ** 2))
    assert noise_size(W) == pytest.approx(error, rel=0.02)
    both = np.hypot(error, np.sqrt(np.mean((V.astype(float) - W0) ** 2)))
    assert noise_size(W, V) == pytest.approx(both, rel=0.02)


def test_without_noise_it_is_the_spectrum_itself(rng):
    s = np.sort(rng.random(9))[::-1]
    np.testing.assert_array_equal(denoised(s, 9, 12, None), s)
    np.testing.assert_array_equal(denoised(s, 9, 12, 0.0), s)
    np.testing.assert_allclose(denoised(s, 9, 12, 1e-9), s, rtol=0, atol=1e-8)


def test_it_scales_with_the_spectrum_is_seeded_and_does_not_know_the_orientation(rng):
    observed, floor = rounded(rng, SPECTRA["power law"], (M, 240), 0.01)
    first = denoised(observed, M, 240, floor)
    np.testing.assert_array_equal(denoised(observed, M, 240, floor), first)
    np.testing.assert_array_equal(denoised(observed, 240, M, floor), first)
    scaled = denoised(1e-30 * observed, M, 240, 1e-30 * floor)
    np.testing.assert_allclose(scaled, 1e-30 * first, rtol=1e-9, atol=1e-42)
    assert np.all(np.diff(first) <= 0)
    assert np.all(first >= 0)


def test_nothing_is_estimated_of_zero_or_of_noise(rng):
    assert denoised(np.zeros(5), 5, 5, 1.0) is None
    assert denoised(np.zeros(5), 5, 5, None) is None
    noise = np.linalg.svd(rng.standard_normal((50, 60)), compute_uv=False)
    assert denoised(noise, 50, 60, np.sqrt(50) + np.sqrt(60)) is None
    assert denoised(10 * noise, 50, 60, np.sqrt(50) + np.sqrt(60)) is not None


@pytest.mark.parametrize(("m", "n"), [(6, 6), (6, 9), (6, 40)])
def test_the_noise_has_the_values_of_a_gaussian_matrix(m, n, monkeypatch):
    """Means over 300 seeds, to four standard errors."""
    drawn, direct = [], []
    for seed in range(300):
        monkeypatch.setattr(denoise, "SEED", seed)
        drawn.append(denoise._Draw(m, n).values(np.zeros(m), 2.0))
        of_seed = np.random.default_rng(1000 + seed).standard_normal((m, n))
        direct.append(2 * np.linalg.svd(of_seed, compute_uv=False))
    error = np.sqrt((np.var(drawn, axis=0) + np.var(direct, axis=0)) / 300)
    assert np.all(np.abs(np.mean(drawn, axis=0) - np.mean(direct, axis=0)) < 4 * error)


@pytest.mark.parametrize("m", [1, 2])
def test_small_matrices(m):
    s = np.linspace(2, 1, m)
    estimate = denoised(s, m, 3, 1e-3)
    np.testing.assert_allclose(estimate, s, rtol=0, atol=5e-3)


def test_a_large_spectrum_by_quantiles_agrees_with_all_its_values(rng, monkeypatch):
    true, shape = SPECTRA["exponential"], (M, 240)
    observed, floor = rounded(rng, true, shape, 0.01)
    whole = metrics.effective_rank(denoised(observed, *shape, floor))
    monkeypatch.setattr(denoise, "LARGEST", 96)
    monkeypatch.setattr(denoise, "TOP", 16)
    by_quantiles = metrics.effective_rank(denoised(observed, *shape, floor))
    assert by_quantiles == pytest.approx(whole, rel=0.03)
    raw = metrics.effective_rank(observed)
    exact = metrics.effective_rank(true)
    assert abs(by_quantiles - exact) < abs(raw - exact)
