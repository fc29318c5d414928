"""Figures of spectra and shared directions, read back from their artists."""

import numpy as np
import picture_tables
import pytest
from picture_tables import METHOD_OF, line, read

from analysis import store
from multilora.reproduction import bands, figures
from multilora.reproduction.pictures import spectra


def test_spectra_are_drawn_from_their_table_as_from_themselves(tmp_path, rng):
    rows = bands.bands_table(picture_tables.two_runs(rng), METHOD_OF)
    store.write_text(tmp_path / "spectra_by_method.csv", store.csv_text(rows, list(rows[0])))
    assert figures.draw(tmp_path) == [tmp_path / "spectra_by_method.png"]
    again = spectra.spectra_by_method(read(tmp_path / "spectra_by_method.csv"))
    direct = spectra.spectra_by_method(rows)
    for ax, other in zip(again.axes, direct.axes, strict=True):
        assert ax.get_title() == other.get_title()
        for a, b in zip(ax.lines, other.lines, strict=True):
            np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())
    assert [drawn.get_label() for drawn in again.axes[0].lines] == ["full fine-tuning", "LoRA"]
    assert again.axes[0].get_ylim()[0] == spectra.LEAST


def test_energy_is_cumulative_below_the_spectra_and_ends_before_1(rng):
    two_runs = picture_tables.two_runs(rng)
    figure = spectra.spectra_by_method(bands.bands_table(two_runs, METHOD_OF))
    assert len(figure.axes) == 8
    energy = figure.axes[4]  # of q_proj
    assert energy.get_yscale() == "logit"
    s = two_runs.s["lora-s0/q_proj"]
    want = np.cumsum(s**2)[:2] / np.sum(s**2)
    drawn = line(energy, "LoRA")
    np.testing.assert_allclose(drawn.get_ydata(), want)
    assert list(drawn.get_xdata()) == [1, 2]
    low, high = energy.get_ylim()
    assert 0 < low < drawn.get_ydata()[0]
    assert high < 1


def test_a_table_without_energy_has_the_spectra_alone(rng):
    rows = bands.bands_table(picture_tables.two_runs(rng), METHOD_OF)
    old = [
        {c: row[c] for c in ("kind", "method", "index", "low", "median", "high")} for row in rows
    ]
    figure = spectra.spectra_by_method(old)
    assert [ax.get_title() for ax in figure.axes] == list(spectra.PROJECTIONS)


def test_shared_directions_are_grids_minus_chance_on_one_scale(rng):
    rows = picture_tables.phi_rows(rng)
    figure = spectra.subspace_similarity(rows)
    panels, bar = figure.axes[:6], figure.axes[6]
    assert [ax.get_title() for ax in panels[:3]] == [
        *("LoRA ~ full fine-tuning", "MultiLoRA ~ full fine-tuning", "full fine-tuning, two seeds")
    ]
    images = [ax.images[0] for ax in panels]
    limits = {image.get_clim() for image in images}
    ((low, high),) = limits
    assert low == -high  # 0 is white
    # The table has (full, lora); its transpose is drawn.
    of = {(r["method_a"], r["method_b"], r["side"], r["i"]): r for r in rows}
    lora = images[0].get_array()
    assert lora[1, 4] == of["full", "lora", "left", 5]["j2"]
    assert panels[0].get_ylabel() == "top i of LoRA"
    # Four directions are the same with other seeds, two with LoRA, and none with MultiLoRA.
    four, chance = images[2].get_array()[3, 3], images[1].get_array()
    assert four == pytest.approx(1 - 4 / 40)
    assert abs(chance).max() < 0.3 < lora[1, 1] == pytest.approx(1 - 2 / 40)
    assert bar.get_ylim() == (min(image.get_array().min() for image in images), high)


def test_an_undetermined_cell_is_blank(rng):
    rows = picture_tables.phi_rows(rng)
    rows[0]["j1"] = None
    image = spectra.subspace_similarity(rows).axes[2].images[0]
    assert np.ma.is_masked(image.get_array()[0, 0]) or np.isnan(image.get_array()[0, 0])


def test_of_other_methods_all_pairs_are_drawn(rng):
    rows = [
        row | {"method_a": "lora", "method_b": "rlora"}
        for row in picture_tables.phi_rows(rng)
        if (row["method_a"], row["method_b"]) == ("full", "lora")
    ]
    panels = spectra.subspace_similarity(rows).axes[:2]
    assert panels[0].get_title() == "LoRA ~ R-LoRA"
    assert len(spectra.subspace_similarity(rows).axes) == 3


def test_of_many_methods_the_three_that_are_compared_are_drawn():
    few = [{"method": m} for m in ("full", "lora", "rlora", "expert")]
    assert spectra._shown(few, "method") == few
    many = [{"method": m} for m in ("full", "lora", "lora+", "multilora", "rlora", "expert")]
    assert [row["method"] for row in spectra._shown(many, "method")] == [
        "full",
        "lora",
        "multilora",
    ]
