import numpy as np
import pytest

from analysis import metrics, statistics


def test_band_is_the_quantiles_of_normalised_spectra(rng):
    spectra = [np.sort(rng.exponential(size=7))[::-1] * 10.0**i for i in range(-4, 5)]
    low, median, high = statistics.band(spectra, 0.25)
    unit = np.array([s / np.sqrt(np.sum(s**2)) for s in spectra])
    np.testing.assert_allclose(low, np.percentile(unit, 25, axis=0), rtol=1e-14)
    np.testing.assert_allclose(median, np.median(unit, axis=0), rtol=1e-14)
    np.testing.assert_allclose(high, np.percentile(unit, 75, axis=0), rtol=1e-14)


def test_band_of_one_spectrum_is_a_line_and_zero_stays_zero():
    low, median, high = statistics.band([np.array([3.0, 4.0])])
    np.testing.assert_allclose([low, median, high], [[0.6, 0.8]] * 3)
    assert not statistics.normalised(np.zeros(3)).any()


def test_band_refuses_spectra_of_different_lengths():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]; expected one length"):
        statistics.band([np.ones(2), np.ones(3)])


def test_comparable_measures_do_not_depend_on_what_lies_beyond_k(rng):
    """The measures of s[:k] are blind to the tail; the shares of the whole are not."""
    s = np.sort(rng.exponential(size=30))[::-1]
    whole, head = statistics.comparable(s, 8), statistics.comparable(s[:8], 8)
    for name in ("effective_rank_k", "gini_k"):
        assert whole[name] == pytest.approx(head[name], rel=1e-14)
    assert head["held_k"] == 1
    assert whole["held_k"] == pytest.approx(np.sum(s[:8] ** 2) / np.sum(s**2), rel=1e-14)
    assert whole["top_share_1"] < head["top_share_1"]
    assert whole["top_share_4"] == metrics.top_share(s, 4)


def test_effective_rank_alone_would_reverse_a_comparison_of_capacities():
    """One power law at two capacities: as concentrated at the top, less even in its own k."""
    short, long = 1 / np.arange(1.0, 5), 1 / np.arange(1.0, 257)
    assert metrics.effective_rank(short) / 4 > 2 * metrics.effective_rank(long) / 256
    a, b = statistics.comparable(short, 4), statistics.comparable(long, 4)
    assert a["effective_rank_k"] == pytest.approx(b["effective_rank_k"], rel=1e-12)


def test_comparable_refuses_a_k_beyond_the_spectrum():
    with pytest.raises(ValueError, match="s has 3 values; expected at least k = 4"):
        statistics.comparable(np.ones(3), 4)
