"""Figures of spectra and shared directions, read back from their artists."""

import numpy as np
import picture_tables
from picture_tables import METHOD_OF, read

from analysis import store
from multilora.reproduction import bands, figures
from multilora.reproduction.pictures import spectra


def test_spectra_are_drawn_from_their_tables_as_from_themselves(tmp_path, rng):
    spectra_of_two = picture_tables.two_runs(rng)
    tables = {
        "spectra_by_method": bands.bands_table(spectra_of_two, METHOD_OF),
        "spectra_histogram": bands.histogram_table(spectra_of_two, METHOD_OF),
    }
    for name, rows in tables.items():
        store.write_text(tmp_path / f"{name}.csv", store.csv_text(rows, list(rows[0])))
    assert figures.draw(tmp_path) == [tmp_path / "spectra_by_method.png"]
    again = spectra.spectra_by_method(*(read(tmp_path / f"{name}.csv") for name in tables))
    direct = spectra.spectra_by_method(*tables.values())
    for ax, other in zip(again.axes, direct.axes, strict=True):
        assert ax.get_title() == other.get_title()
        for a, b in zip(ax.lines, other.lines, strict=True):
            np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())
        for a, b in zip(ax.patches, other.patches, strict=True):
            np.testing.assert_array_equal(a.get_path().vertices, b.get_path().vertices)
    steps = again.subfigs[1].axes[1].patches
    assert [patch.get_label() for patch in steps] == ["full", "lora"]


def test_subspaces_of_methods_are_a_symmetric_matrix_with_chance():
    rows = [
        {
            **{"method_a": a, "method_b": b, "k": 24, "left_phi_k": left, "right_phi_k": 0.5},
            **{"left_chance_k": 0.15, "right_chance_k": 0.17},
        }
        for a, b, left in (("full", "full", 0.4), ("full", "lora", 0.3), ("lora", "lora", 0.2))
    ]
    left, right, _ = spectra.subspace_similarity(rows).axes
    np.testing.assert_array_equal(left.images[0].get_array(), [[0.4, 0.3], [0.3, 0.2]])
    assert "chance 0.15" in left.get_title()
    assert "chance 0.17" in right.get_title()
    assert [label.get_text() for label in left.get_yticklabels()] == ["full", "lora"]


def test_of_many_methods_the_three_that_are_compared_are_drawn():
    few = [{"method": m} for m in ("full", "lora", "rlora", "expert")]
    assert spectra._shown(few, "method") == few
    many = [{"method": m} for m in ("full", "lora", "lora+", "multilora", "rlora", "expert")]
    assert [row["method"] for row in spectra._shown(many, "method")] == [
        "full",
        "lora",
        "multilora",
    ]
