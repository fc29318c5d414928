"""The figures of an analysis, read back from their artists."""

import numpy as np
import pytest
from made_spectra import spectra
from matplotlib.colors import to_rgba

from analysis import spectrum, store
from analysis.figures import spectrum as spectrum_figures
from analysis.names import drawable
from analysis.results import Spectra


@pytest.fixture
def two_runs(write_adapter, lora_tensors):
    """Adapters of rank 4 and 2; the second has a module of ΔW = 0."""
    zero = lora_tensors("q", "k", "v", r=2)
    zero["base_model.model.k.lora_B.weight"] *= 0
    first = write_adapter(lora_tensors("q", "k", "v"), "first")
    return spectrum.analyse([first, write_adapter(zero, "second", r=2)])


def test_bands_are_quantiles_of_the_normalised_spectra(two_runs):
    figure = spectrum_figures.compare_spectra(two_runs)
    bands = figure.axes[0]
    assert [line.get_label() for line in bands.lines] == ["first", "second"]
    for line, area, run, modules in zip(
        bands.lines, bands.collections, ("first", "second"), ("qkv", "qv"), strict=True
    ):
        s = np.array([two_runs.s[f"{run}/{module}"] for module in modules])
        unit = s / np.linalg.norm(s, axis=1, keepdims=True)
        np.testing.assert_allclose(line.get_ydata(), np.median(unit, axis=0), rtol=1e-13)
        corners = area.get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx(np.quantile(unit, 0.1, axis=0).min())
        assert corners.max() == pytest.approx(np.quantile(unit, 0.9, axis=0).max())


def test_distributions_hold_every_value(two_runs):
    _, ecdf, histogram = spectrum_figures.compare_spectra(two_runs).axes
    for line, steps, (n, modules) in zip(
        ecdf.lines, histogram.patches, ((12, 3), (4, 2)), strict=True
    ):
        assert len(line.get_xdata()) == n + 1
        assert line.get_ydata()[-1] == 1
        # All values lie inside the bins, and are counted by module.
        assert steps.get_data().values.sum() == pytest.approx(n / modules)
    assert {ax.get_xscale() for ax in (ecdf, histogram)} == {"log"}


def test_every_axes_is_labelled_and_runs_are_told_apart(two_runs):
    figure = spectrum_figures.compare_spectra(
        two_runs, {("first", None): "one", ("second", None): "two"}
    )
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_title()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    for artists in (figure.axes[0].lines, figure.axes[1].lines):
        assert len({to_rgba(line.get_color()) for line in artists}) == 2
        assert len({str(line.get_linestyle()) for line in artists}) == 2


def test_steps_of_one_run_stand_under_its_name(write_adapter, lora_tensors):
    for step in (10, 20):
        path = write_adapter(lora_tensors("q"), f"run/checkpoint-{step}")
    figure = spectrum_figures.compare_spectra(spectrum.analyse(path.parent))
    assert figure.get_suptitle() == "run"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["step 10", "step 20"]


def test_values_below_the_cutoff_are_zeros(write_adapter, rng):
    B = rng.standard_normal((30, 4)).astype("f4")
    B[:, 3] = B[:, 0]
    A = rng.standard_normal((4, 20)).astype("f4")
    key = "base_model.model.q.lora_{}.weight"
    spectra = spectrum.analyse(write_adapter({key.format("B"): B, key.format("A"): A}))
    bands, ecdf, histogram = spectrum_figures.compare_spectra(spectra).axes
    assert np.isfinite(bands.lines[0].get_ydata()).tolist() == [True, True, True, False]
    assert ecdf.lines[0].get_xdata().min() == 0
    assert histogram.patches[0].get_data().edges[0] > 1e-3
    assert histogram.patches[0].get_data().values.sum() == pytest.approx(3)


def test_rank_one_is_a_point(write_adapter, lora_tensors):
    spectra = spectrum.analyse(write_adapter(lora_tensors("q", "v", r=1), r=1))
    line = spectrum_figures.compare_spectra(spectra).axes[0].lines[0]
    assert (line.get_marker(), line.get_ydata().tolist()) == ("o", [1.0])


def test_a_module_of_less_capacity_is_in_no_band_but_in_the_rest(write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v") | lora_tensors("gate", d_out=1)
    spectra = spectrum.analyse(write_adapter(tensors))
    bands, ecdf, _ = spectrum_figures.compare_spectra(spectra).axes
    s = np.array([spectra.s[f"adapter/{module}"] for module in "qv"])
    unit = s / np.linalg.norm(s, axis=1, keepdims=True)
    np.testing.assert_allclose(bands.lines[0].get_ydata(), np.median(unit, axis=0), rtol=1e-13)
    assert len(ecdf.lines[0].get_xdata()) == 4 + 4 + 1 + 1


def test_nothing_to_draw(two_runs):
    zero = [row for row in two_runs.rows if row["spectral_norm"] == 0]
    for rows in ([], zero):
        with pytest.raises(ValueError, match="nothing to draw"):
            spectrum_figures.compare_spectra(Spectra(rows, two_runs.s))


def test_styles_differ_for_as_long_as_they_can():
    styles = [spectrum_figures.style(i) for i in range(50)]
    assert len({str(style) for style in styles[:49]}) == 49
    assert styles[49] == styles[0]
    # Up to seven differ both in print and in colour.
    for part in ("color", "linestyle"):
        assert len({str(style[part]) for style in styles[:7]}) == 7


def test_many_long_names_stay_inside_the_figure(write_adapter, lora_tensors):
    names = [f"{'a-rather-long-name-of-a-run' * 2}-{i}" for i in range(9)]
    paths = [write_adapter(lora_tensors("q"), name) for name in names]
    figure = spectrum_figures.compare_spectra(spectrum.analyse(paths))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert min(ax.get_window_extent().y0 for ax in figure.axes) > box.y1


def test_the_same_spectra_give_the_same_files(two_runs, tmp_path):
    files = []
    for name in "ab":
        store.save_figure(spectrum_figures.compare_spectra(two_runs), tmp_path / name / "spectra")
        files.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])
    assert len(files[0]) == 2
    assert files[0] == files[1]


def test_a_number_by_layer_and_projection(write_adapter, lora_tensors):
    first = write_adapter(lora_tensors("l.0.q", "l.0.v", "l.3.q", "head"), "first")
    spectra = spectrum.analyse([first, write_adapter(lora_tensors("l.3.v"), "second")])
    figure = spectrum_figures.by_layer(spectra.rows, "top_share_1")
    one, other = figure.axes[:2]
    values = {row["key"]: row["top_share_1"] for row in spectra.rows}
    want = [
        [values["first/l.0.q"], values["first/l.0.v"]],
        [values["first/l.3.q"], np.nan],
    ]
    np.testing.assert_array_equal(one.images[0].get_array().filled(np.nan), want)
    assert [label.get_text() for label in one.get_yticklabels()] == ["0", "3"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["q", "v"]
    assert other.images[0].get_array().filled(np.nan)[1, 1] == values["second/l.3.v"]
    assert one.images[0].get_clim() == other.images[0].get_clim()
    assert [one.get_title(), other.get_title()] == ["first", "second"]
    with pytest.raises(ValueError, match="outliers: no module with a layer"):
        spectrum_figures.by_layer(spectra.rows, "outliers")


def test_differences_without_a_meaning_have_no_colours(write_adapter, lora_tensors):
    rows = spectrum.analyse(write_adapter(lora_tensors("l.0.q", "l.1.q"))).rows
    for row, value in zip(rows, (0.5, 0.50001), strict=True):
        row["gini"] = value
    (ax, bar) = spectrum_figures.by_layer(rows, "gini").axes
    low, high = ax.images[0].get_clim()
    assert (low, high) == pytest.approx((0.450009, 0.50001))
    assert "a tenth of the largest value" in bar.get_ylabel()
    rows[0]["gini"] = 0.3
    (ax, bar) = spectrum_figures.by_layer(rows, "gini").axes
    assert ax.images[0].get_clim() == (0.3, 0.50001)
    assert bar.get_ylabel() == "gini"


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, 0.0], (0, 1, True)),
        ([-2.0, -1.99], (-2.19, -1.99, True)),
        ([-1.0, 1.0], (-1, 1, False)),
        ([1.0], (0.9, 1, True)),
    ],
)
def test_a_range_of_colours_is_a_tenth_of_the_largest_magnitude(values, want):
    assert spectrum_figures.colour_range(values) == pytest.approx(want)


def rows_of(layers, kinds, runs):
    """Rows of one number by layer and kind, for several runs."""
    return [
        {"run": run, "step": None, "layer": layer, "kind": kind, "gini": (layer + 1) / (layers + 1)}
        for run in runs
        for layer in range(layers)
        for kind in kinds
    ]


LONG = tuple(f"{name}_projection_of_attention" for name in ("query", "key", "value", "output"))


@pytest.mark.parametrize(
    ("layers", "kinds", "runs"),
    [
        (48, (*LONG, "gate_projection_linear", "up_projection_linear", "down"), ("one",)),
        (126, ("q", "v"), ("one",)),
        (4, ("q", "v"), [f"a-run-with-a-long-name-seed-{i}" for i in range(10)]),
        (32, LONG, [f"run-{i}" for i in range(10)]),
    ],
)
def test_labels_of_many_layers_kinds_and_runs_do_not_collide(layers, kinds, runs):
    figure = spectrum_figures.by_layer(rows_of(layers, kinds, runs), "gini")
    figure.draw_without_rendering()
    assert max(figure.get_size_inches()) < 25
    panels = figure.axes[:-1]
    assert len(panels) == len(runs)
    assert_apart([ax.title for ax in panels])
    for ax in panels:
        assert_apart([label for label in ax.get_yticklabels() if label.get_text()])
        numbers = [text for text in ax.texts if text.get_text()]
        assert_apart(numbers)
        assert len(numbers) in (0, layers * len(kinds))
    kinds_shown = [label for label in panels[-1].get_xticklabels() if label.get_visible()]
    # Parallel slanted labels are apart if their ends are a line's height apart.
    gaps = np.diff([label.get_window_extent().x1 for label in kinds_shown]) / figure.dpi
    assert (gaps * np.sin(np.pi / 3) > 0.15).all()


def assert_apart(texts):
    """Fail if the boxes of two texts overlap."""
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[i + 1 :])


def test_a_place_without_a_panel_leaves_the_kinds_above_it_labelled():
    figure = spectrum_figures.by_layer(rows_of(4, [f"kind{i}" for i in range(7)], "abcde"), "gini")
    figure.draw_without_rendering()
    labelled = [
        ax.get_title()
        for ax in figure.axes[:-1]
        if any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())
    ]
    assert labelled == ["c", "d", "e"]


def test_the_command_draws_both(write_adapter, lora_tensors, tmp_path):
    path = write_adapter(lora_tensors("l.0.q", "l.1.q"), "a")
    arguments = [str(path), "--figures", str(tmp_path / "out"), "--metric", "gini"]
    assert spectrum.main(arguments) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["layers.pdf", "layers.png", "spectra.pdf", "spectra.png"]
    no_layers = write_adapter(lora_tensors("q"), "b")
    assert spectrum.main([str(no_layers), "--figures", str(tmp_path / "other")]) == 0
    assert sorted(f.name for f in (tmp_path / "other").iterdir()) == ["spectra.pdf", "spectra.png"]


@pytest.mark.parametrize("name", ["$\\frac{q$", "$x", "_hidden", "中\x1b[2J\n", "x" * 300])
def test_a_name_of_any_letters_is_drawn_as_it_is(tmp_path, recwarn, name):
    s = {f"layers.0.{name}": [2.0, 1.0], "layers.1.v": [3.0, 1.0]}
    found = spectra(**{name: s, "other": s})
    for row in found.rows:
        row |= {"layer": 0, "kind": row["module"].rpartition(".")[2], "top_share_1": 0.5}
    figure = spectrum_figures.compare_spectra(found)
    store.save_figure(figure, tmp_path / "spectra")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [drawable(name), "other"]
    store.save_figure(spectrum_figures.by_layer(found.rows, "top_share_1"), tmp_path / "layers")
    assert not list(recwarn)


def test_a_figure_of_any_number_of_modules_and_checkpoints_has_a_usual_size():
    runs = {f"run{i}": {f"layers.{i}.k{i}": [1.0]} for i in range(300)}
    found = spectra(**runs)
    for i, row in enumerate(found.rows):
        row |= {"layer": i, "kind": f"k{i}", "top_share_1": 1.0}
    assert len(spectrum_figures.compare_spectra(found).axes[0].lines) == 49
    figure = spectrum_figures.by_layer(found.rows, "top_share_1")
    assert max(figure.get_size_inches()) < 60
    assert "240 rarer kinds are not shown" in figure.axes[-1].get_ylabel()
    assert "16 of 300 checkpoints are shown" in figure.axes[-1].get_ylabel()


def test_thousands_of_layers_have_few_ticks():
    rows = [
        {"run": "a", "step": None, "layer": i, "kind": "q", "top_share_1": i / 3000}
        for i in range(3000)
    ]
    axes = spectrum_figures.by_layer(rows, "top_share_1").axes[0]
    assert len(axes.get_yticks()) < 200
    assert len(axes.texts) == 0
