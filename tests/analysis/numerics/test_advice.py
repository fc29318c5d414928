"""The ranks that an update needs, and the directions beyond chance."""

import numpy as np

from analysis.numerics import advice, null


def test_ranks_hold_their_shares():
    s = np.sqrt(np.array([0.5, 0.42, 0.05, 0.025, 0.005]))
    assert advice.ranks(s, 5) == {"rank_90": 2, "rank_95": 3, "rank_99": 4}
    assert advice.ranks(s, 2) == {"rank_90": 2, "rank_95": 2, "rank_99": 2}
    assert advice.ranks(np.zeros(5), 0) == {"rank_90": 0, "rank_95": 0, "rank_99": 0}


def test_random_updates_are_hardly_ever_beyond_chance(rng):
    spectra = null.null_spectra(60, 80, 8, 300, rng, dense=False)
    counts = [advice.beyond_chance(s, 60, 80, 8) for s in spectra]
    assert np.mean(np.array(counts) > 0) < 0.03


def test_planted_directions_are_counted(rng):
    noise = null.null_spectra(60, 80, 8, 1, rng, dense=False)[0]
    s = np.concatenate([[12.0, 10.0], noise[2:] / noise[0]])
    assert advice.beyond_chance(s, 60, 80, 8) == 2
    dense = null.null_spectra(60, 80, 60, 1, rng, dense=True)[0]
    assert advice.beyond_chance(np.concatenate([[9 * dense[0]], dense[1:]]), 60, 80, None) == 1


def test_one_direction_and_none_are_never_beyond_chance():
    assert advice.beyond_chance(np.array([3.0]), 60, 80, 1) == 0
    assert advice.beyond_chance(np.zeros(4), 60, 80, 4) == 0
