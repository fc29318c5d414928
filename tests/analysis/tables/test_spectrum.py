"""The summary of spectra by kind, and how it is printed, on rows made by hand."""

import numpy as np

from analysis import results
from analysis.numerics import null
from analysis.results import Spectra
from analysis.tables.spectrum import (
    EXPLANATION,
    LEAVING,
    MEASURES,
    lines,
    remarks,
    statement,
    summary,
)
from analysis.tables.text import fit, plain


def row(module, run="a", step=None, **changes):
    """A row as `spectrum.analyse` makes it, with a number of its own in every measure."""
    facts = dict.fromkeys(results.COLUMNS) | {name: float(len(module)) for name in MEASURES}
    facts |= {"run": run, "step": step, "module": module, "kind": module.split(".")[-1]}
    return facts | {"method": "lora", "d_out": 12, "d_in": 10, "r": 4, "capacity": 4} | changes


def test_measures_are_the_numbers_of_a_row():
    assert (MEASURES[0], MEASURES[-1]) == ("capacity", "hill")
    assert {"rank", "gini", "democracy", "floor"} < set(MEASURES)


def test_the_summary_has_medians_by_kind_then_over_all():
    rows = [row(f"{i}.q", gini=gini) for i, gini in enumerate((0.1, 0.2, 0.6))]
    rows.append(row("0.v", gini=None, spectral_norm=0))
    q, v, everything = summary(rows)
    assert [(line["kind"], line["modules"], line["zero"]) for line in (q, v, everything)] == [
        ("q", 3, 0),
        ("v", 1, 1),
        ("all", 4, 1),
    ]
    assert (q["gini"], v["gini"], everything["gini"]) == (0.2, None, 0.2)
    assert everything["spectral_norm"] == np.median([3, 3, 3, 0])


def test_checkpoints_are_summarised_apart_in_their_order():
    rows = [row("q", step=2), row("q", step=1), row("q", run="b")]
    totals = [(line["run"], line["step"]) for line in summary(rows) if line["kind"] == "all"]
    assert totals == [("a", 2), ("a", 1), ("b", None)]


def spectra(*rows, **s):
    """Spectra of rows made by hand; s: module -> singular values, 1, ½, ¼, … by default."""
    rows = [line | {"key": f"{line['run']}@{line['step']}/{line['module']}"} for line in rows]
    values = {line["key"]: s.get(line["module"], 0.5 ** np.arange(4.0)) for line in rows}
    return Spectra(rows=rows, s=values)


def printed(spectra, width=200):
    return list(plain(fit(lines(spectra), width)[0]))


def test_one_checkpoint_has_one_line_per_kind():
    rows = [row("0.q"), row("0.up"), row("1.q", d_out=20, method="full")]
    columns, *table = printed(spectra(*rows))
    assert [line.split()[0] for line in table] == ["q", "up", "all"]
    assert table[0].split()[2:5] == ["2", "2", "shapes"]
    assert table[1].split()[1:6] == ["█▄▂▁", "1", "12×10", "4", "4"]
    assert len({len(line) for line in (columns, *table)}) == 1


def test_undefined_numbers_are_dashes():
    (_, line, *_) = printed(spectra(row("q", democracy=None, utilisation=None)))
    assert line.split()[-3:] == ["–", "–", "0"]


def test_at_80_columns_the_most_important_columns_are_whole():
    of = spectra(row("0.down_proj"), row("1.down_proj"))
    tables, left_out = fit(lines(of), 80)
    got = list(plain(tables))
    assert max(map(len, got)) <= 80
    for heading in ("kind", "spectrum", "modules", "capacity", "top-1", "eff. rank", "democracy"):
        assert heading in got[0]
    assert {"d_out×d_in", "zero"} <= set(left_out) <= set(LEAVING)
    at_120, more = fit(lines(of), 125)
    assert more == []
    assert "d_out×d_in" in "\n".join(plain(at_120))
    # Modules that have not moved are not left out.
    moved = spectra(row("0.q"), row("1.q", spectral_norm=0, top_share_1=None))
    assert printed(moved, 80)[0].endswith("zero")


def test_several_checkpoints_have_one_column_each():
    rows = [row("q", step=1), row("v", step=1), row("q", step=20, top_share_1=0.5)]
    heading, *table = printed(spectra(*rows))
    assert heading.split() == ["a", "step", "1", "step", "20"]
    by_label = {" ".join(line.split()[:-2]): line.split()[-2:] for line in table}
    assert by_label["method"] == ["lora", "lora"]
    assert by_label["modules"] == ["2", "1"]
    assert by_label["spectrum"] == ["█▄▂▁", "█▄▂▁"]
    assert by_label["top-1"] == ["1.000", "0.500"]
    assert by_label["v"] == ["1.000", "–"]
    assert "zero" not in by_label
    assert table[4].startswith("‖ΔW‖_F")
    more = [row("q", run=run) for run in "ab"] + [row("q", run="c", spectral_norm=0)]
    heading, *table = printed(spectra(*more))
    assert heading.split() == ["a", "b", "c"]
    assert [line.split()[-1] for line in table if line.startswith("zero")] == ["1"]
    assert not any(line.startswith("  q") for line in table)  # one kind


def test_checkpoints_that_do_not_fit_continue_below():
    of = spectra(*(row("q", step=step) for step in range(20)))
    got = printed(of, 80)
    assert max(map(len, got)) <= 80
    steps = [word for line in got if line.startswith("a ") for word in line.split()[2::2]]
    assert steps == [str(step) for step in range(20)]


def test_a_sparkline_is_the_median_shape_of_what_moved():
    s = {"0.q": np.r_[4.0, 2, 0, 0], "1.q": np.r_[9.0, 0, 0, 0], "2.q": np.zeros(4)}
    rows = [row("0.q"), row("1.q"), row("2.q", spectral_norm=0)]
    assert "█▂▁▁ " in printed(spectra(*rows, **s))[1]
    assert "  –  " in printed(spectra(rows[2], **s))[1]
    long = spectra(row("q"), q=np.linspace(1, 0, 100))
    assert " █▇▆▅▃▂▁▁ " in printed(long)[1]


def test_one_checkpoint_is_said_in_words():
    rows = [row(f"{i}.q", top_share_1=share) for i, share in enumerate((0.6, 0.9, 0.91))]
    by_chance = null.of_row(rows[0], 1)["top_share_1"].mean
    assert statement(rows) == (
        "a (lora, rank 4): in the median of 3 modules the first direction holds 90 % of ΔW's"
        f" energy ({100 * by_chance:.0f} % in a random update), and 3 of 4 directions are in use."
    )
    undrawn = [line | {"democracy": None} for line in rows]
    assert "random" not in statement(undrawn)
    rows.append(row("3.q", spectral_norm=0, top_share_1=None))
    assert statement(rows).endswith("ΔW = 0 in 1 of 4 modules.")


def test_what_has_not_moved_or_has_one_direction_is_said_so():
    zero = row("q", run="b", step=5, spectral_norm=0, top_share_1=None)
    assert statement([zero]) == (
        "b step 5 (lora, rank 4): nothing has moved. ΔW = 0 in 1 of 1 module."
    )
    one = row("q", r=1, capacity=1)
    assert "in its one module one direction is all there is" in statement([one])
    assert "ranks 1 to 4" in statement([one, row("v")])


def test_of_several_checkpoints_the_shares_are_given_beside_chance():
    """Which is more dominated is said elsewhere: a larger share of a lower rank may be chance."""
    low = row("q", run="low", r=2, capacity=2, top_share_1=0.75)
    high = row("q", run="high", d_out=300, d_in=200, r=32, capacity=32, top_share_1=0.7)
    words = statement([low, high, row("q", run="between", top_share_1=0.7)])
    assert words.startswith("Share of ΔW's energy in the first direction, median over modules: low")
    assert "high (70 %, by chance 7 %), between (70 %" in words
    many = [row("q", run=f"r{n}", top_share_1=n / 10) for n in (5, 9, 3, 7)]
    words = statement(many)
    assert "from r3 (30 %" in words
    assert " to r9 (90 %" in words
    assert "r5" not in words
    none = [line | {"top_share_1": None} for line in (low, high)]
    assert "none of which can be compared" in statement(none)


def test_remarks_tell_of_noise_and_of_other_tensors():
    assert list(remarks([row("q", floor=None)], [])) == []
    rows = [
        row("q", floor=0.1, above_floor=1, spectral_norm=1.0),
        row("v", floor=0.1, above_floor=2, spectral_norm=1.0),  # exactly half is not most
        row("k", floor=0.1, above_floor=0, spectral_norm=0.0),  # ΔW = 0 is not noise
    ]
    faint, other = remarks(rows, [{"run": "a", "name": "head", "what": "a head"}] * 2)
    assert faint.startswith("In 1 module more than half of the values")
    assert other.startswith("2 items without ΔW (heads")


def test_a_remark_shows_the_spectrum_without_noise_where_that_is_noticed():
    noisy = {"floor": 0.1, "above_floor": 4, "effective_rank": 91.0, "top_share_1": 0.1}
    noisy |= {"effective_rank_denoised": 70.0, "top_share_1_denoised": 0.115}
    unknown = noisy | dict.fromkeys(results.DENOISED)
    (line,) = remarks([row("q", **noisy), row("v", **unknown)], [])
    assert line == (
        "a: eff. rank 70.00 (for 91.00) and top-1 0.115 (for 0.100) without the rounding noise,"
        " estimated in 1 module of 2."
    )
    same = noisy | {"effective_rank_denoised": 90.5}
    assert list(remarks([row("q", **same)], [])) == []
    assert list(remarks([row("q", **unknown)], [])) == []


def test_the_legend_explains_the_printed_columns():
    for words in (
        "spectrum",
        "top-k",
        "by chance",
        "eff. rank",
        "stable",
        "used",
        "democracy",
        "zero",
        "medians",
    ):
        assert words in EXPLANATION
