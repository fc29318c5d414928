"""Rows grouped by columns; results that share nothing when they are empty."""

import pytest

from analysis import results
from analysis.results import Merging, Similarity, Spectra, grouped


def test_columns_are_unique():
    assert len(set(results.COLUMNS)) == len(results.COLUMNS)


def test_rows_are_grouped_in_order_of_first_appearance():
    rows = [{"run": run, "kind": kind, "n": n} for n, (run, kind) in enumerate(["bv", "aq", "bv"])]
    assert grouped(rows, "run", "kind") == {("b", "v"): [rows[0], rows[2]], ("a", "q"): [rows[1]]}
    assert list(grouped(rows, "run", "kind")) == [("b", "v"), ("a", "q")]
    assert grouped(rows) == {(): rows}
    assert grouped([], "run") == {}
    with pytest.raises(KeyError):
        grouped(rows, "absent")


@pytest.mark.parametrize("kind", [Spectra, Similarity, Merging])
def test_empty_results_share_nothing(kind):
    one, other = kind(), kind()
    one.rows.append({})
    one.skipped.append({})
    assert (other.rows, other.skipped) == ([], [])
