"""Columns from the largest values alone: equal to those of the whole spectrum, within bounds."""

import numpy as np
import pytest
from known_spectra import SPECTRA, matrix

from analysis import results, spectrum
from analysis.checkpoint import Run
from analysis.numerics import decompose, partial
from analysis.numerics.decompose import Method
from analysis.update import DenseUpdate

RUN = Run(None, "run", None)
K = 44  # beyond N/10


def update_of(name, **known):
    W = matrix(name)
    return DenseUpdate("layers.0.q", W.shape, lambda: W, **known)


@pytest.fixture(params=SPECTRA)
def both(request):
    """The row and the bounds of the largest values, and the row of the whole spectrum."""
    update = update_of(request.param, floor=0.3)
    found = decompose.spectrum(update, Method("topk", K))
    row = spectrum.row(update, found, RUN)
    whole = spectrum.row(update, decompose.spectrum(update, "svd"), RUN)
    return row, partial.bounds("run/layers.0.q", found), whole


def test_columns_that_are_filled_agree_with_the_whole_spectrum(both):
    row, _, whole = both
    assert row["algorithm"] == "topk"
    filled = {name for name, value in row.items() if value is not None}
    assert {"top_share_1", "top_share_16", "top_share_10pct", "stable_rank"} <= filled
    assert not {"effective_rank", "gini", "nuclear_norm", "democracy"} & filled
    for name in filled - {*results.TEXT, "error_bound"}:
        near = row[name] == pytest.approx(whole[name], rel=1e-3)
        assert near, (name, row[name], whole[name])


def test_bounds_enclose_the_whole_spectrum(both):
    _, bounds, whole = both
    assert {"nuclear_norm", "top_share_16", "participation_ratio"} <= {b["measure"] for b in bounds}
    for bound in bounds:
        assert tuple(bound) == results.BOUNDS
        assert bound["low"] <= bound["high"]
        if bound["measure"] in whole:
            exact = whole[bound["measure"]]
            assert bound["low"] * (1 - 1e-9) <= exact <= bound["high"] * (1 + 1e-9)


def test_counts_that_do_not_end_are_empty():
    flat = spectrum.row(*_topk("flat"), RUN)
    assert flat["rank"] is None
    assert flat["above_floor"] is None
    assert flat["energy_rank_50"] is None
    few = spectrum.row(*_topk("rank-deficient"), RUN)
    assert (few["rank"], few["energy_rank_99"]) == (12, 12)


def _topk(name):
    update = update_of(name)
    return update, decompose.spectrum(update, Method("topk", K))


def test_estimates_fill_more_columns():
    update = update_of("falling")
    found = decompose.spectrum(update, "density")
    row = spectrum.row(update, found, RUN)
    whole = spectrum.row(update, decompose.spectrum(update), RUN)
    for name in ("effective_rank", "gini", "utilisation", "nuclear_norm", "energy_entropy_rank"):
        assert row[name] == pytest.approx(whole[name], rel=0.05), name
    holds = {b["measure"]: b["holds"] for b in partial.bounds("key", found)}
    assert holds["gini"] == "about 95 %"
    assert holds["s_1"].startswith("but for")


def test_whole_spectra_have_no_bounds_and_zero_has_its_columns():
    update = update_of("falling")
    assert partial.bounds("key", decompose.spectrum(update)) == []
    with pytest.raises(ValueError, match="is whole"):
        partial.columns(update, decompose.spectrum(update))
    nothing = DenseUpdate("q", (300, 280), lambda: np.zeros((300, 280)))
    row = spectrum.row(nothing, decompose.spectrum(nothing, Method("topk", 5)), RUN)
    assert (row["rank"], row["spectral_norm"], row["frobenius_norm"]) == (0, 0.0, 0.0)
    assert row["top_share_1"] is None
