"""The figures of a reproduction: what they draw is read back from their artists."""

import itertools

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
from matplotlib.colors import to_hex

from analysis import results, store
from analysis.numerics import statistics
from multilora import budget
from multilora import figures as command
from multilora.reproduction import figures
from multilora.reproduction.pictures import axes, claims, costs, experiments, spectra
from multilora.reproduction.pictures.styles import LORA, MULTILORA, STYLES, ordered, styles
from multilora.reproduction.tables import parsed

METHODS = ("multilora", "lora", "full")


@pytest.fixture
def found(rng):
    """Spectra of two runs: full, of 12 values, and lora, of 3 of them."""
    result = results.Spectra()
    for run, k in (("full-s0", 12), ("lora-s0", 3)):
        for kind in ("q_proj", "v_proj", "up_proj", "down_proj"):
            row = {"key": f"{run}/{kind}", "run": run, "kind": kind, "d_out": 12, "d_in": 20}
            result.rows.append(row)
            result.s[row["key"]] = np.sort(rng.random(k))[::-1]
    return result


METHOD_OF = {"full-s0": "full", "lora-s0": "lora"}


@pytest.fixture
def methods_rows(rng):
    return [
        {
            **{"method": method, "seed": seed, "k": 24, "top_share_1": rng.random()},
            **{"effective_rank_k": rng.random(), "gini_k": rng.random()},
        }
        for method in (*METHODS, "peft:DORA")
        for seed in range(3)
    ]


@pytest.fixture
def grid_rows(rng):
    return [
        {
            **{"setting": setting, "value": value, "seed": seed, "method": method},
            **{"top_share_1": rng.random(), "effective_rank_k": rng.random()},
            **{"score": rng.random()},
        }
        for setting, values in {"n·r": (16, 4, 8), "rate": (0.5, 2)}.items()
        for value in values
        for seed in (0, 1)
        for method in METHODS
    ]


@pytest.fixture
def cut_rows(rng):
    return [
        {
            **{"method": method, "seed": seed, "kind": kind, "k": k},
            **{"score_knowledge": rng.random(), "score": rng.random()},
        }
        for method, capacity in (("full", 8), ("lora", 4))
        for seed in (0, 1)
        for kind in ("keep", "remove")
        for k in (0, 1, 2, 4, 8)
        if k <= capacity
    ]


@pytest.fixture
def wild_rows(rng):
    return [
        {
            **{"adapter": adapter, "step": step, "module": f"m.{i}", "kind": "q", "r": r},
            **{"top_share_1": rng.random(), "null_top_share_1": 1 / r},
        }
        for adapter, r, steps in (("b-run", 8, (10, 20)), ("a", 2, (None,)))
        for step in steps
        for i in range(5)
    ]


@pytest.fixture
def overlap_rows(rng):
    return [
        {
            **{"method": method, "seed": seed, "n": n, "r": 24 // n, "module": f"{i}.{kind}"},
            **{"kind": kind, "pairs": 3, "left_phi": rng.random(), "right_phi": rng.random()},
            **{"left_chance": 0.06, "right_chance": 0.02},
        }
        for method, n in (("multilora", 3), ("multilora n=2", 2), ("multilora zero", 3))
        for seed in (0, 1)
        for kind in ("up_proj", "q_proj")
        for i in range(2)
    ]


def rounding_rows(rng):
    columns = ("effective_rank", "gini", "top_share_1")
    return [
        {"ratio": ratio, "own_ratio": 0.6, "effective_rank_noise": 110.0}
        | {"above_floor_share": rng.random(), **{c: rng.random() for c in columns}}
        | {f"{c}_true": rng.random() for c in columns}
        for ratio in (0.3, 0.01)
        for _ in range(2)
    ]


def read(path):
    return parsed(path, path.read_bytes(), ())


def line(ax, label):
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found


def titled(figure, title):
    (found,) = [ax for ax in figure.axes if ax.get_title() == title]
    return found


def test_methods_have_a_colour_of_their_family_and_a_line_of_their_own():
    of_lora = {style["color"] for name, style in STYLES.items() if name.startswith("lora")}
    of_multilora = {style["color"] for name, style in STYLES.items() if name.startswith("multi")}
    assert (of_lora, of_multilora) == ({LORA}, {MULTILORA})
    looks = [(style["color"], str(style["linestyle"])) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_unknown_methods_get_spare_styles():
    found = styles(["peft:A", "lora", "peft:B"])
    assert found["lora"] == STYLES["lora"]
    assert found["peft:A"] != found["peft:B"]
    assert found["peft:A"] not in STYLES.values()


def test_known_methods_come_first(methods_rows):
    assert ordered(methods_rows) == ["full", "lora", "multilora", "peft:DORA"]


def test_seeds_are_dots_with_the_interval_of_their_mean():
    ax = mpl.figure.Figure().subplots()
    values = [1.0, 2.0, 4.0]
    axes.plot_seeds(values, 0, ax)
    dots, interval, mean = ax.lines
    np.testing.assert_array_equal(dots.get_xdata(), values)
    np.testing.assert_allclose(interval.get_xdata(), statistics.interval(np.array(values)))
    assert mean.get_xdata()[0] == pytest.approx(7 / 3)


def test_one_seed_has_no_interval():
    ax = mpl.figure.Figure().subplots()
    axes.plot_seeds([1.0], 0, ax)
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 1]


def test_seeds_range_around_their_mean_and_leave_gaps_out():
    ax = mpl.figure.Figure().subplots()
    axes.plot_over_seeds([1, 2, 4], [[1.0, 3.0], [], [5.0, 5.0]], ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2], [4, 5]])
    corners = {tuple(v) for v in ax.collections[0].get_paths()[0].vertices}
    assert corners == {(1.0, 1.0), (1.0, 3.0), (4.0, 5.0)}


def test_the_ablation_has_a_row_a_method(methods_rows):
    for row in methods_rows:
        if row["method"] == "peft:DORA":
            row["gini_k"] = None  # of a lower capacity than k
    figure = claims.dominance_ablation(methods_rows)
    first, _, last = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["full", "lora", "multilora (n = 3, B random, s = 0)", "peft:DORA"]
    dots = [line for line in first.lines if len(line.get_xdata()) == 3]
    for method, drawn in zip(ordered(methods_rows), dots, strict=True):
        want = [row["top_share_1"] for row in methods_rows if row["method"] == method]
        np.testing.assert_array_equal(drawn.get_xdata(), want)
    assert sum(len(line.get_xdata()) == 3 for line in last.lines) == 3
    assert "energy" in first.get_xlabel()


def test_histograms_count_shares_of_all_values(found):
    rows = figures.histogram_table(found, METHOD_OF)
    for method, zero in (("full", 0.0), ("lora", 0.75)):
        of_method = [row for row in rows if row["method"] == method]
        assert [row["share"] for row in of_method if row["axis"] == "zero"] == [zero]
        for axis in ("linear", "logarithmic"):
            of_axis = [row for row in of_method if row["axis"] == axis]
            assert sum(row["share"] for row in of_axis) == pytest.approx(1 - zero)
    values = np.concatenate([s for key, s in found.s.items() if key.startswith("full")])
    inside = [row for row in rows if (row["axis"], row["method"]) == ("linear", "full")]
    for row in (inside[10], inside[70]):
        count = np.count_nonzero((values >= row["left"]) & (values < row["right"]))
        assert row["share"] == pytest.approx(count / values.size)


def test_spectra_are_drawn_from_their_tables_as_from_themselves(found, tmp_path):
    tables = {
        "spectra_by_method": figures.bands_table(found, METHOD_OF),
        "spectra_histogram": figures.histogram_table(found, METHOD_OF),
    }
    for name, rows in tables.items():
        store.write_text(tmp_path / f"{name}.csv", store.csv_text(rows, list(rows[0])))
    assert figures.draw(tmp_path) == [tmp_path / "spectra_by_method.png"]
    again = spectra.spectra_by_method(*(read(tmp_path / f"{name}.csv") for name in tables))
    direct = figures.spectra_by_method(found, METHOD_OF)
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


def test_module_overlap_is_by_projection_and_by_n(overlap_rows):
    figure = claims.module_overlap(overlap_rows)
    left, right, by_n, _ = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["q", "up"]
    plain = [row for row in overlap_rows if row["method"] == "multilora"]
    for ax, side in ((left, "left"), (right, "right")):
        dots, chance = ax.lines[:2]
        want = [
            np.mean([r[f"{side}_phi"] for r in plain if (r["kind"], r["seed"]) == ("q_proj", s)])
            for s in (0, 1)
        ]
        np.testing.assert_allclose(dots.get_ydata(), want)
        assert set(chance.get_ydata()) == {plain[0][f"{side}_chance"]}
    assert [label.get_text() for label in by_n.get_xticklabels()] == ["2", "3"]


def test_grid_differences_are_by_seed(grid_rows):
    found = claims.grid_differences(grid_rows)
    assert {row["measure"] for row in found} == {"top_share_1", "effective_rank_k", "score"}
    assert len(found) == 5 * 2 * 3 * 2
    value = {
        tuple(row[c] for c in ("setting", "value", "seed", "method")): row for row in grid_rows
    }
    for row in found:
        a, b = (value[row["setting"], row["value"], row["seed"], row[m]] for m in "ab")
        assert row["difference"] == a[row["measure"]] - b[row["measure"]]


def test_a_grid_without_a_method_has_no_difference_with_it(grid_rows):
    left = [row for row in grid_rows if row["method"] != "full"]
    assert {(r["a"], r["b"]) for r in claims.grid_differences(left)} == {("multilora", "lora")}


def test_the_grid_has_a_column_a_setting_and_ordered_values(grid_rows):
    overlaps = [{**row, "overlap_above_chance": 0.1} for row in grid_rows]
    figure = claims.scale_grid(overlaps)
    assert len(figure.axes) == 4 * 2
    last = figure.axes[-2:]
    assert [ax.get_xlabel() for ax in last] == [claims.SETTINGS["n·r"], claims.SETTINGS["rate"]]
    assert [label.get_text() for label in last[0].get_xticklabels()] == ["4", "8", "16"]
    first = figure.axes[0]
    new = line(first, "MultiLoRA − LoRA")
    assert to_hex(new.get_color()) == MULTILORA.lower()
    want = sorted(
        row["difference"]
        for row in claims.grid_differences(grid_rows)
        if (row["setting"], row["measure"], row["b"]) == ("n·r", "top_share_1", "lora")
    )
    assert sorted(new.get_ydata()) == want
    assert any(list(drawn.get_ydata()) == [0, 0] for drawn in first.lines)
    (overlap,) = [ax for ax in figure.axes if ax.get_ylabel().startswith("overlap")]
    assert set(line(overlap, "MultiLoRA").get_ydata()) == {0.1}


def test_the_grid_shows_what_is_found_where_nothing_is_changed(grid_rows):
    usual = [
        row | {"value": 1} for row in grid_rows if (row["setting"], row["value"]) == ("rate", 2)
    ]
    figure = claims.scale_grid([*grid_rows, *usual])
    differences = [
        row["difference"]
        for row in claims.grid_differences(usual)
        if (row["measure"], row["b"]) == ("top_share_1", "lora")
    ]
    for ax in figure.axes[:2]:
        dotted = [drawn for drawn in ax.lines if drawn.get_label() == "mean, nothing changed"]
        (new,) = [drawn for drawn in dotted if to_hex(drawn.get_color()) == MULTILORA.lower()]
        assert new.get_ydata() == pytest.approx([np.mean(differences)] * 2)


def test_cut_curves_have_a_panel_a_kind_and_family(cut_rows):
    figure = experiments.cut_curves(cut_rows)
    assert len(figure.axes) == 4
    assert [ax.get_title() for ax in figure.axes[:2]] == ["mean of the families", "knowledge"]
    for ax, kind in ((figure.axes[1], "keep"), (figure.axes[3], "remove")):
        lora = line(ax, "lora")
        assert list(lora.get_xdata()) == [0, 1, 2, 4]
        chosen = [r for r in cut_rows if (r["method"], r["kind"], r["k"]) == ("lora", kind, 2)]
        want = 100 * np.mean([row["score_knowledge"] for row in chosen])
        assert lora.get_ydata()[2] == pytest.approx(want)
    assert list(line(figure.axes[1], "full").get_xdata()) == [0, 1, 2, 4, 8]


def test_rounding_is_beside_the_truth(rng):
    rows = rounding_rows(rng)
    figure = experiments.rounding_floor(rows)
    for ax, (measure, title) in zip(figure.axes, experiments.ROUNDED.items(), strict=True):
        after = line(ax, "ΔW of rounded weights")
        assert list(after.get_xdata()) == [0.01, 0.3]
        want = [np.mean([r[measure] for r in rows if r["ratio"] == at]) for at in (0.01, 0.3)]
        np.testing.assert_allclose(after.get_ydata(), want)
        assert ax.get_title() == title
        assert ax.get_xscale() == "log"
    truth = line(figure.axes[0], "ΔW itself").get_ydata()
    want = np.mean([r["effective_rank_true"] for r in rows if r["ratio"] == 0.01])
    assert truth[0] == pytest.approx(want)


def test_wild_adapters_are_by_rank_at_their_last_step(wild_rows):
    figure = experiments.wild_adapters(wild_rows)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a, r = 2", "b, r = 8"]
    modules, medians = left.lines[3], left.lines[4]  # of the second adapter
    last = [row["top_share_1"] for row in wild_rows if row["step"] == 20]
    np.testing.assert_array_equal(modules.get_xdata(), last)
    assert medians.get_xdata()[0] == np.median(last)
    assert left.lines[5].get_xdata()[0] == 1 / 8
    over = line(right, "b")
    first = [row["top_share_1"] for row in wild_rows if row["step"] == 10]
    np.testing.assert_allclose(over.get_xydata(), [[10, np.median(first)], [20, np.median(last)]])


def test_dynamics_are_lines_over_steps(rng):
    measures = ("top_share_1", "effective_rank_k", "gini_k", "frobenius_norm")
    rows = [
        {"method": m, "seed": seed, "step": step, "k": 8, **{c: rng.random() for c in measures}}
        for m, seed, step in itertools.product(("lora", "full"), (0, 1), (20, 10))
    ]
    figure = experiments.dynamics(rows)
    drawn = line(figure.axes[0], "lora")
    want = [
        np.mean([r["top_share_1"] for r in rows if (r["method"], r["step"]) == ("lora", step)])
        for step in (10, 20)
    ]
    np.testing.assert_allclose(drawn.get_xydata(), list(zip((10, 20), want, strict=True)))
    assert {ax.get_xlabel() for ax in figure.axes} == {"step of training"}


@pytest.fixture(scope="module")
def budget_rows():
    return budget.curve(["llama-7b"], (1, 3), range(1, 40))


def test_the_budget_says_which_rank_is_within(budget_rows):
    (ax,) = costs.budget(budget_rows).axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    affordable = {row.n: row.r for row in budget.rows(*_affordable())}
    assert labels == ["n = 1: r ≤ 39", f"n = 3: r ≤ {affordable[3]}"]
    drawn = line(ax, labels[1])
    want = [100 * row["share"] for row in budget_rows if row["n"] == 3]
    np.testing.assert_array_equal(drawn.get_ydata(), want)
    assert any(list(other.get_ydata()) == [2.5, 2.5] for other in ax.lines)


def _affordable():
    return budget.sizes_of("llama-7b"), budget.share_of("2.5%"), (1, 3)


@pytest.fixture
def resource_rows():
    layer = [("layer", "d = 2", m, 1.0, ratio) for m, ratio in (("LoRA", 1.0), ("MultiLoRA", 1.1))]
    relative = [
        ("relative", "d = 2", "LoRA r=3", 2.0, 1.0),
        ("relative", "d = 2", "R-LoRA", 3, 1.5),
    ]
    form = [("form", "d = 1", m, 1.0, r) for m, r in (("frozen linear", 1), ("stacked", 2))]
    memory = [("memory", "w", m, v, 1.0) for m in ("LoRA", "MultiLoRA") for v in (100.0, 120.0)]
    columns = ("what", "setting", "method", "value", "ratio")
    return [dict(zip(columns, row, strict=True)) for row in (*layer, *relative, *form, *memory)]


def test_resources_are_ratios_and_peaks(resource_rows):
    layers, forms, memory = costs.resources(resource_rows).axes
    assert line(layers, "MultiLoRA").get_xdata() == [1.1]
    assert line(layers, "R-LoRA").get_xdata() == [1.5]
    assert line(forms, "stacked").get_xdata() == [2]
    assert list(memory.lines[0].get_ydata()) == [100, 120]
    assert list(memory.lines[1].get_ydata()) == [110, 110]
    assert memory.get_ylim()[0] == 0


def test_a_table_without_rows_is_refused(tmp_path, run_main):
    (tmp_path / "cuts.csv").write_text("method,seed,kind,k,score\n")
    status, _, err = run_main(command.main, tmp_path)
    assert status == 2
    assert "cuts.csv: has no row" in err[0]


def test_values_of_a_setting_are_numbers_in_their_order(tmp_path, grid_rows):
    """Also from a file, where 16 stands before 4 as a word."""
    store.write_text(tmp_path / "grid.csv", store.csv_text(grid_rows, list(grid_rows[0])))
    figure = claims.scale_grid(read(tmp_path / "grid.csv"))
    (ranks,) = [ax for ax in figure.axes if ax.get_xlabel() == claims.SETTINGS["n·r"]]
    assert [label.get_text() for label in ranks.get_xticklabels()] == ["4", "8", "16"]


def test_every_figure_whose_table_is_there_is_drawn_again(
    tmp_path, run_main, methods_rows, cut_rows
):
    for name, rows in (("methods", methods_rows), ("cuts", cut_rows)):
        store.write_text(tmp_path / f"{name}.csv", store.csv_text(rows, list(rows[0])))
    status, out, _ = run_main(command.main, tmp_path)
    assert status == 0
    stems = ("dominance_ablation", "cut_curves")
    assert out.splitlines() == [str(tmp_path / f"{stem}.png") for stem in stems]
    made = {path.name for path in tmp_path.iterdir() if path.suffix != ".csv"}
    assert made == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


def test_without_tables_it_says_what_it_looks_for(tmp_path, run_main):
    status, out, err = run_main(command.main, tmp_path)
    assert (status, out) == (2, "")
    assert "methods.csv" in err[0]


def test_a_table_that_lacks_a_column_is_an_error(tmp_path, run_main):
    (tmp_path / "cuts.csv").write_text("method,seed\nlora,0\n")
    status, _, err = run_main(command.main, tmp_path)
    assert status == 2
    assert "cuts.csv: lacks kind, k, score: another version wrote it" in err[0]


def test_of_many_methods_the_three_that_are_compared_are_drawn():
    few = [{"method": m} for m in ("full", "lora", "rlora", "expert")]
    assert spectra._few(few) == few
    many = [{"method": m} for m in ("full", "lora", "lora+", "multilora", "rlora", "expert")]
    assert [row["method"] for row in spectra._few(many)] == ["full", "lora", "multilora"]


def test_a_method_that_is_not_drawn_makes_no_bin_coarse():
    methods = ("full", "lora", "lora+", "multilora", "rlora", "expert")
    rows = [{"run": m, "key": m, "kind": "q_proj", "d_out": 4, "d_in": 4} for m in methods]
    s = {m: np.array([27.0 if m == "expert" else 8.0, 1.0]) for m in methods}
    table = spectra.histogram_table(results.Spectra(rows, s), {m: m for m in methods})
    assert {row["method"] for row in table} == {"full", "lora", "multilora"}
    assert max(row["right"] for row in table) == pytest.approx(8)
