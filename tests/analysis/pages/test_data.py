"""The numbers of a page are those of the results, in arrays that come back as they went in."""

import made_pages
import numpy as np
import pytest

from analysis import store
from analysis.pages import data
from analysis.pages.data import Results, decoded, encoded, grid, page_data
from analysis.pairs import dominance


@pytest.fixture
def spectra(rng):
    modules = made_pages.named(3, made_pages.KINDS[:2])
    return made_pages.together(
        made_pages.analysed(rng, modules, "one"), made_pages.analysed(rng, modules[1:], "two", r=70)
    )


def array(page, name, *shape):
    return decoded(page[name]).reshape(shape)


def test_arrays_come_back(rng):
    numbers = rng.standard_normal(100).astype("f4")
    np.testing.assert_array_equal(decoded(encoded(numbers)), numbers)
    np.testing.assert_array_equal(decoded(encoded(np.array([1e300, np.nan]))), [np.inf, np.nan])


def test_values_equal_those_of_the_csv(spectra, tmp_path):
    (tmp_path / "spectrum.csv").write_text(store.csv_text(spectra.rows))
    rows = {row["key"]: row for row in store.rows(tmp_path / "spectrum.csv")}
    page = page_data(Results(spectra))
    columns = [m["column"] for m in page["measures"]] + page["shape"]
    values = array(page, "values", len(columns), 2, 6)
    seen = 0
    for c, checkpoint in enumerate(page["checkpoints"]):
        for j, module in enumerate(page["modules"]):
            row = rows.get(f"{checkpoint['name']}/{module['name']}", {})
            for column, number in zip(columns, values[:, c, j], strict=True):
                if not column.endswith("_beyond"):
                    want = row.get(column)
                    assert number == np.float32(want) or (want is None and np.isnan(number))
                    seen += want is not None
    assert seen > 200


def test_measures_beyond_chance(spectra):
    page = page_data(Results(spectra))
    m = [m["column"] for m in page["measures"]].index("top_share_1_beyond")
    row = spectra.rows[0]
    want = row["top_share_1"] - data.chance(row)["top_share_1"].mean
    assert decoded(page["values"])[m * 2 * 6] == np.float32(want)


@pytest.mark.parametrize("k", [1, 64, 65, 300, 4096])
def test_the_grid_is_short_and_has_both_ends(k):
    found = grid(k)
    assert (found[0], found[-1], len(set(found))) == (1, k, len(found))
    assert list(found) == sorted(found)
    assert len(found) <= 80
    assert found == tuple(range(1, k + 1)) or k > data.EXACT


def test_spectra_are_the_values_at_the_grid(spectra):
    stored = page_data(Results(spectra))["spectra"]
    count = array(stored, "count", 2, 6)
    assert np.isnan(count[1, 0])
    s, held = decoded(stored["s"]), decoded(stored["held"])
    start = 0
    for row in spectra.rows:  # two checkpoints, one after the other
        of_row = spectra.s[row["key"]]
        at = np.array(stored["grids"][str(of_row.size)]) - 1
        part = slice(start, start + at.size)
        np.testing.assert_array_equal(s[part], of_row[at].astype("f4"))
        energy = np.cumsum(of_row**2) / np.sum(of_row**2)
        np.testing.assert_allclose(held[part], energy[at], rtol=1e-6)
        start += at.size
    assert start == s.size


def test_the_null_band_holds_a_random_update_and_no_dominated_one(rng):
    spectra = made_pages.analysed(rng, ["layers.0.q"], d=64)
    (key,) = (null := page_data(Results(spectra))["null"])
    assert key == "64×64×8"
    low, high = np.array(null[key]["low"]), np.array(null[key]["high"])
    flat = np.linalg.svd(rng.standard_normal((64, 8)) @ rng.standard_normal((8, 64)))[1][:8]
    flat /= np.linalg.norm(flat)
    assert np.all((0.9 * low < flat) & (flat < 1.1 * high))
    assert high[0] < 0.9


def test_phi_is_in_its_place(spectra, rng):
    pairs = data.phi_pairs(spectra.rows)
    similarity = made_pages.shared(rng, spectra, pairs, k=12)
    stored = page_data(Results(spectra, (), similarity))["phi"]
    assert stored["pairs"] == [(0, 1)]
    left = array(stored, "left", 1, 6, 8, 8)
    assert np.isnan(left[0, 0]).all()  # the second run lacks it
    name = spectra.rows[2]["module"]
    want = similarity.phi[f"one/{name}~two/{name}#left"][:8, :8]
    np.testing.assert_array_equal(left[0, 2], want.astype("f4"))


def test_as_many_pairs_as_fit(rng):
    spectra = made_pages.many(rng, runs=8, layers=80)
    assert len(data.phi_pairs(spectra.rows)) == 5
    assert len(dominance.pairs(spectra.rows)) == 28


def test_nothing_to_compare_is_no_phi(rng):
    spectra = made_pages.analysed(rng, ["layers.0.q"])
    page = page_data(Results(spectra))
    assert (page["phi"], page["landing"]) == (None, None)


def test_updates_of_zero_have_no_curve(rng):
    from made_updates import low_rank

    from analysis import spectrum
    from analysis.checkpoint import Run

    entry = low_rank(np.zeros((6, 2)), np.ones((2, 5)))
    page = page_data(Results(spectrum.of_updates([entry], Run("zero", "zero", None))))
    assert np.isnan(decoded(page["spectra"]["held"])).all()
    assert page["null"] == {}
