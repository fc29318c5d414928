"""The error bound of every method holds on matrices of known spectra."""

import numpy as np
import pytest
from known_spectra import SPECTRA, N, matrix

from analysis import CheckpointError
from analysis.numerics import decompose, density
from analysis.numerics.decompose import Method
from analysis.update import DenseUpdate, KroneckerUpdate, LowRankUpdate

K = 12


def dense(W, **known):
    return DenseUpdate("layers.0.q", W.shape, lambda: W, source="delta.safetensors", **known)


@pytest.fixture(params=SPECTRA)
def known(request):
    """A matrix, and its spectrum as it is in float32."""
    W = matrix(request.param).astype(np.float32)
    return W, np.linalg.svd(W.astype(np.float64), compute_uv=False)


@pytest.mark.parametrize("method", decompose.METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_value_is_within_its_bound(known, method, dtype):
    W, exact = known
    found = decompose.spectrum(dense(W.astype(dtype)), Method(method, K))
    assert (np.diff(found.s) <= 0).all()
    assert np.abs(found.s - exact[: len(found.s)]).max() <= found.error_bound


def test_panels_change_nothing_but_the_last_digits(known, monkeypatch):
    W, exact = known
    whole = decompose.spectrum(dense(W)).s
    monkeypatch.setattr(decompose, "LARGE", 1)
    panels = decompose.spectrum(dense(W))
    np.testing.assert_allclose(panels.s**2, whole**2, rtol=0, atol=1e-13 * whole[0] ** 2)
    assert np.abs(panels.s - exact).max() <= panels.error_bound


def test_a_gram_matrix_without_a_panel_would_fail(known, monkeypatch):
    """Negative control: the bound sees that a part of the lower triangle is missing."""
    W, exact = known
    monkeypatch.setattr(decompose, "LARGE", 1)
    monkeypatch.setattr(decompose, "PANELS", 2)
    kept = W[:, : N // 2].copy()
    less = decompose.spectrum(dense(np.hstack([kept, 0 * W[:, N // 2 :]])))
    assert np.abs(less.s - exact).max() > less.error_bound


def test_topk_has_k_values_and_density_estimates(known):
    W, exact = known
    top = decompose.spectrum(dense(W, floor=0.1), Method("topk", K))
    assert (len(top.s), top.algorithm, top.floor, top.estimates) == (K, "topk", 0.1, None)
    assert top.norm == pytest.approx(np.linalg.norm(exact), rel=1e-9)
    both = decompose.spectrum(dense(W), "density")
    assert both.algorithm == "density"
    assert both.norm == pytest.approx(top.norm)
    assert set(both.estimates) == set(density.MEASURES)


@pytest.mark.parametrize("method", ["topk", "density"])
def test_updates_of_low_rank_are_decomposed_whole(rng, method):
    update = LowRankUpdate("q", rng.standard_normal((40, 3)), rng.standard_normal((3, 50)))
    assert decompose.spectrum(update, method).algorithm == "cholesky"
    assert not isinstance(update, KroneckerUpdate)


@pytest.mark.parametrize("method", ["topk", "density"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_named_by_every_method(rng, method, bad):
    W = rng.standard_normal((300, 300))
    W[7, 5] = bad
    with pytest.raises(CheckpointError, match=r"delta.safetensors: layers.0.q: ΔW holds NaN"):
        decompose.spectrum(dense(W), method)


@pytest.mark.parametrize("method", ["topk", "density"])
def test_small_matrices_are_whole_and_zero_is_zero(rng, method):
    W = rng.standard_normal((9, 7))
    found = decompose.spectrum(dense(W), method)
    assert (found.algorithm, found.norm) == ("svd", None)
    np.testing.assert_allclose(found.s, np.linalg.svd(W, compute_uv=False), rtol=1e-12)
    assert not decompose.spectrum(dense(np.zeros((300, 280))), Method(method, 5)).s.any()


def test_a_budget_chooses_by_the_shape(known, monkeypatch):
    W, _ = known
    assert decompose.spectrum(dense(W), Method(seconds=60)).algorithm == "gram"
    monkeypatch.setattr(decompose, "RATE", 1e6)
    assert decompose.spectrum(dense(W), Method(seconds=60)).algorithm == "density"
    monkeypatch.setattr(decompose, "PASS", 1e3)
    assert decompose.spectrum(dense(W), Method(k=5, seconds=60)).algorithm == "topk"
    assert decompose.spectrum(dense(W)).algorithm == "gram"
