from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from analysis.numerics import metrics, statistics
from analysis.numerics.statistics import (
    Claim,
    Difference,
    Verdict,
    interval,
    paired,
    paired_in_common,
    verdict,
)


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


def test_band_of_the_first_values_keeps_the_whole_norm():
    low, median, high = statistics.band([np.array([3.0, 4.0]), np.array([3.0, 4.0, 0.0])], k=1)
    np.testing.assert_allclose([low, median, high], [[0.6]] * 3)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        statistics.band([np.ones(1), np.ones(3)], k=2)


# Differences over runs


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_is_students(rng, n):
    a, b = (dict(enumerate(rng.standard_normal(n))) for _ in "ab")
    difference = paired(a, b)
    values = np.array([a[seed] - b[seed] for seed in range(n)])
    want = scipy.stats.ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
    np.testing.assert_allclose([difference.low, difference.high], want, rtol=1e-12)
    assert difference.values == tuple(values)
    assert difference.mean == values.mean()
    assert (difference.positive, difference.negative) == ((values > 0).sum(), (values < 0).sum())


def test_pairs_meet_by_seed_not_by_order():
    difference = paired({1: 10.0, 0: 1.0}, {0: 0.5, 1: 10.0})
    assert difference.values == (0.5, 0.0)
    assert (difference.positive, difference.negative) == (1, 0)
    assert paired({0: 1.0, 1: 10.0}, {1: 10.0, 0: 0.5}) == difference


def test_swapping_the_methods_mirrors_the_difference(rng):
    a, b = (dict(enumerate(rng.standard_normal(4))) for _ in "ab")
    there, back = paired(a, b), paired(b, a)
    assert (back.low, back.mean, back.high) == (-there.high, -there.mean, -there.low)
    assert (back.positive, back.negative) == (there.negative, there.positive)


def test_one_run_has_a_mean_and_no_interval():
    difference = paired({7: 3.0}, {7: 1.0})
    assert (difference.mean, difference.positive) == (2, 1)
    assert np.isnan([difference.low, difference.high]).all()


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({0: 1.0}, {1: 1.0}, r"seeds are \[0\] and \[1\]; expected the same"),
        ({}, {}, "at least one"),
        ({0: np.nan}, {0: 1.0}, "not finite"),
    ],
)
def test_runs_that_cannot_be_paired(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired(a, b)


def test_seeds_in_common_are_paired_and_the_others_named():
    a, b = {0: 1.0, 1: 2.0, 2: None, 4: 5.0}, {0: 0.5, 1: 1.0, 2: 7.0, 3: 8.0, 4: 1.0}
    found, lost = paired_in_common(a, b)
    assert found == paired({0: 1.0, 1: 2.0, 4: 5.0}, {0: 0.5, 1: 1.0, 4: 1.0})
    assert lost == [2, 3]
    assert paired_in_common({0: 1.0}, {1: 1.0}) == (None, [0, 1])
    assert paired_in_common({0: 1.0}, {0: 1.0})[1] == []


DRAWS = 40_000  # the coverage's standard error is 0.1 %


def coverage(low, high):
    return np.mean((low <= 1) & (high >= 1))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_what_it_says(rng, n):
    values = rng.normal(1, 3, (DRAWS, n))
    low, high = interval(values)
    assert coverage(low, high) == pytest.approx(0.95, abs=0.015)
    one = paired(dict(enumerate(values[0])), dict.fromkeys(range(n), 0.0))
    np.testing.assert_allclose([one.low, one.high], [low[0], high[0]], rtol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_normal_quantile_would_not_cover(rng, n):
    values = rng.normal(1, 3, (DRAWS, n))
    half = scipy.stats.norm.ppf(0.975) * values.std(axis=1, ddof=1) / np.sqrt(n)
    mean = values.mean(axis=1)
    assert coverage(mean - half, mean + half) < 0.95 - 0.015


# Verdicts


def measured(low, high, values=(0.1, 0.2)):
    signs = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return Difference(values, (low + high) / 2, low, high, *signs)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.11, 0.5, "supported"),
        (0.1, 0.5, "undecided"),  # touches delta, is not beyond it
        (0.05, 0.5, "undecided"),
        (0.01, 0.09, "undecided"),  # surely positive, and surely too small to matter
        (-0.5, 0.5, "undecided"),
        (-0.5, 0.0, "undecided"),
        (-0.5, -0.01, "contradicted"),
        (np.nan, np.nan, "undecided"),
    ],
)
@pytest.mark.parametrize("direction", [1, -1])
def test_outcomes(low, high, outcome, direction):
    claim = Claim("claim", "gini", direction, 0.1)
    low, high = (low, high) if direction > 0 else (-high, -low)
    assert verdict(claim, {"gini": measured(low, high)}).outcome == outcome


def test_one_run_decides_nothing_however_large():
    got = verdict(Claim("claim", "gini", 1, 0.1), {"gini": paired({0: 9.0}, {0: 0.0})})
    assert got.outcome == "undecided"
    assert "mean difference +9, no interval, n = 1 (1 +, 0 −)" in got.line


def test_what_was_not_run_is_not_measured():
    got = verdict(Claim("claim", "gini", 1, 0.1, {"top_share_1": 1}), {"top_share_1": SUPPORTING})
    assert got == Verdict("not measured", (), "claim: not measured; gini: n = 0")


SUPPORTING, OPPOSING, NEITHER = measured(0.2, 0.4), measured(-0.4, -0.2), measured(-1.0, 1.0)


@pytest.mark.parametrize(
    ("primary", "secondary", "direction", "disagrees"),
    [
        (SUPPORTING, OPPOSING, 1, True),
        (SUPPORTING, OPPOSING, -1, False),
        (SUPPORTING, SUPPORTING, 1, False),
        (SUPPORTING, SUPPORTING, -1, True),
        (SUPPORTING, NEITHER, 1, False),
        (NEITHER, OPPOSING, 1, True),
        # Of a claim that is contradicted, what supports it disagrees, and what does not agrees.
        (OPPOSING, SUPPORTING, 1, True),
        (OPPOSING, OPPOSING, 1, False),
    ],
)
def test_measures_disagree(primary, secondary, direction, disagrees):
    claim = Claim("claim", "gini", 1, 0.1, {"other": direction, "absent": 1})
    got = verdict(claim, {"gini": primary, "other": secondary})
    assert got.disagree == (("other",) if disagrees else ())
    assert ("measures disagree: other" in got.line) == disagrees
    assert got.outcome == verdict(replace(claim, secondary={}), {"gini": primary}).outcome


def test_the_line_has_the_numbers_in_words():
    claim = Claim("LoRA is dominated", "gini", -1, 0.05, {"top_share_1": 1})
    differences = {
        "gini": paired({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.4, 1: 0.51, 2: 0.62}),
        "top_share_1": paired({0: 0.1, 1: 0.2}, {0: 0.4, 1: 0.501}),
    }
    got = verdict(claim, differences)
    assert got.line == (
        "LoRA is dominated: supported; gini: mean difference -0.31, 95% interval -0.335 to -0.285,"
        " n = 3 (0 +, 3 −); claimed below -0.05; measures disagree: top_share_1 95% interval"
        " -0.307 to -0.294"
    )
    assert verdict(claim, differences) == got


@pytest.mark.parametrize("bad", [{"direction": 0}, {"delta": -0.1}, {"secondary": {"x": 2}}])
def test_a_claim_has_a_direction_and_a_smallest_difference(bad):
    with pytest.raises(ValueError, match="expected 1 or -1, ≥ 0"):
        Claim(**{"name": "claim", "primary": "gini", "direction": 1, "delta": 0.1} | bad)
