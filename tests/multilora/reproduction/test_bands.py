"""Tables of bands and histograms, counted by hand."""

import numpy as np
import picture_tables
import pytest
from picture_tables import METHOD_OF

from analysis import results
from multilora.reproduction import bands


def test_histograms_count_shares_of_all_values(rng):
    spectra_of_two = picture_tables.two_runs(rng)
    rows = bands.histogram_table(spectra_of_two, METHOD_OF)
    for method, zero in (("full", 0.0), ("lora", 0.75)):
        of_method = [row for row in rows if row["method"] == method]
        assert [row["share"] for row in of_method if row["axis"] == "zero"] == [zero]
        for axis in ("linear", "logarithmic"):
            of_axis = [row for row in of_method if row["axis"] == axis]
            assert sum(row["share"] for row in of_axis) == pytest.approx(1 - zero)
    values = np.concatenate([s for key, s in spectra_of_two.s.items() if key.startswith("full")])
    inside = [row for row in rows if (row["axis"], row["method"]) == ("linear", "full")]
    for row in (inside[10], inside[70]):
        count = np.count_nonzero((values >= row["left"]) & (values < row["right"]))
        assert row["share"] == pytest.approx(count / values.size)


def test_a_method_that_is_not_drawn_makes_no_bin_coarse():
    methods = ("full", "lora", "lora+", "multilora", "rlora", "expert")
    rows = [{"run": m, "key": m, "kind": "q_proj", "d_out": 4, "d_in": 4} for m in methods]
    s = {m: np.array([27.0 if m == "expert" else 8.0, 1.0]) for m in methods}
    table = bands.histogram_table(results.Spectra(rows, s), {m: m for m in methods})
    assert {row["method"] for row in table} == {"full", "lora", "multilora"}
    assert max(row["right"] for row in table) == pytest.approx(8)


def test_bands_of_pruned_ranks_go_as_far_as_all_do(rng):
    """AdaLoRA leaves each module a rank of its own."""
    spectra = results.Spectra()
    for i, r in enumerate((5, 3, 4)):
        key = f"run/{i}"
        spectra.rows.append({"key": key, "run": "run", "kind": "q"})
        spectra.s[key] = np.sort(rng.random(r))[::-1]
    table = bands.bands_table(spectra, {"run": "peft:ADALORA"})
    assert [row["index"] for row in table] == [1, 2, 3]
    third = [spectra.s[f"run/{i}"][2] / np.linalg.norm(spectra.s[f"run/{i}"]) for i in range(3)]
    assert table[2]["median"] == pytest.approx(np.median(third))


def test_energy_is_the_median_of_each_modules_own_cumulative_energy(rng):
    spectra = results.Spectra()
    for i in range(3):
        spectra.rows.append({"key": f"run/{i}", "run": "run", "kind": "q"})
        spectra.s[f"run/{i}"] = 10.0 ** (100 * i) * np.sort(rng.random(4))[::-1]
    table = bands.bands_table(spectra, {"run": "lora"})
    squares = [(s / s[0]) ** 2 for s in spectra.s.values()]
    for i, row in enumerate(table, start=1):
        energies = [e[:i].sum() / e.sum() for e in squares]
        low, median, high = (row[f"energy_{end}"] for end in ("low", "median", "high"))
        assert median == pytest.approx(np.median(energies))
        assert low <= median <= high <= 1
    assert table[-1]["energy_low"] == table[-1]["energy_high"] == 1


def test_an_update_of_zero_has_no_energy():
    spectra = results.Spectra([{"key": "a", "run": "run", "kind": "q"}], {"a": np.zeros(2)})
    first, second = bands.bands_table(spectra, {"run": "lora"})
    assert first["energy_median"] == second["energy_median"] == 0


def test_every_projection_has_one_axis_for_all_methods(rng):
    spectra = picture_tables.two_runs(rng)
    rows = bands.by_projection_table(spectra, METHOD_OF)
    kinds = {row["kind"] for row in spectra.rows}
    assert {(row["kind"], row["method"]) for row in rows} == {
        (kind, method) for kind in kinds for method in ("full", "lora")
    }
    for kind in kinds:
        of_kind = [row for row in rows if row["kind"] == kind]
        edges = {method: [row["right"] for row in of_kind if row["method"] == method]
                 for method in ("full", "lora")}  # fmt: skip
        assert edges["full"] == edges["lora"]
        for method in ("full", "lora"):
            own = [spectra.s[row["key"]] for row in spectra.rows
                   if (row["kind"], METHOD_OF[row["run"]]) == (kind, method)]  # fmt: skip
            counts = [row["count"] for row in of_kind if row["method"] == method]
            assert sum(counts) == pytest.approx(sum(np.sum(s > 0) for s in own) / len(own))
