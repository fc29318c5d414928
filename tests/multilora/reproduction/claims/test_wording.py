"""Numbers and measures as text."""

import math

import pytest

from analysis.numerics.statistics import paired
from multilora.reproduction.claims import wording
from multilora.reproduction.claims.judge import CLAIMS


def test_a_difference_has_its_sign_and_its_interval():
    difference = paired({0: 1.0, 1: 1.2}, {0: 0.5, 1: 0.5})
    mean, low, high = (f"{x:+.3g}" for x in (difference.mean, difference.low, difference.high))
    assert wording.number_text(difference) == f"{mean} [{low}, {high}]"
    assert mean == "+0.6"


def test_one_value_has_no_interval():
    one_run = paired({0: 1.0}, {0: 0.75})
    assert math.isnan(one_run.low)
    assert wording.number_text(one_run) == "+0.25 [no interval]"


@pytest.mark.parametrize(
    ("values", "text"),
    [((), "–"), ((None,), "–"), ((1.0,), "1.00"), ((1.0, None, 2.0), "1.50 ±0.50")],
)
def test_a_mean_has_half_the_range_of_the_defined_values(values, text):
    assert wording.mean_text(values, ".2f") == text


def test_means_are_of_one_method():
    rows = [{"method": m, "score": s} for m, s in (("a", 0.25), ("b", 0.5), ("a", 0.75))]
    assert wording.over_seeds(rows, "a", "score", ".2f") == "0.50 ±0.25"
    assert wording.over_seeds(rows, "a", "absent") == "–"


def test_counts_and_lists():
    assert (wording.count_text(1234567), wording.count_text(None)) == ("1,234,567", "–")
    assert wording.listed([1, "b"]) == "1, b"


def test_every_secondary_measure_of_a_claim_has_words():
    names = {name for one in CLAIMS["nll"] for part in one.parts for name in part.claim.secondary}
    assert {name for name in names if wording.words_of(name) == name} == set()
    assert wording.words_of("a name without words") == "a name without words"
    at_equal_loss = wording.words_of("gini_k at equal validation loss")
    assert at_equal_loss == "Gini of s[:k] at equal validation loss"
