"""The summary of spectra by kind, and how it is printed, on rows made by hand."""

import numpy as np

from analysis import results
from analysis.tables.spectrum import EXPLANATION, MEASURES, lines, remarks, summary


def row(module, run="a", step=None, **changes):
    """A row as `spectrum.analyse` makes it, with a number of its own in every measure."""
    facts = dict.fromkeys(results.COLUMNS) | {name: float(len(module)) for name in MEASURES}
    facts |= {"run": run, "step": step, "module": module, "kind": module.split(".")[-1]}
    return facts | {"method": "lora", "d_out": 12, "d_in": 10, "capacity": 4} | changes


def test_measures_are_the_numbers_of_a_row():
    assert (MEASURES[0], MEASURES[-1]) == ("capacity", "top_share_1_denoised")
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
    headings = [line for line in lines(rows) if line.endswith("(lora)")]
    assert headings == ["a  step 2  (lora)", "a  step 1  (lora)", "b  (lora)"]


def test_a_table_has_one_line_per_kind():
    rows = [row("0.q"), row("0.up"), row("1.q", d_out=20, method="full")]
    heading, columns, *table, end = lines(rows)
    assert (heading, end) == ("a  (lora, full)", "")
    assert [line.split()[0] for line in table] == ["q", "up", "all"]
    assert table[0].split()[1:4] == ["2", "2", "shapes"]
    assert table[1].split()[1:5] == ["1", "12×10", "4", "4"]
    assert len({len(line) for line in (columns, *table)}) == 1


def test_undefined_numbers_are_dashes():
    (_, _, line, *_) = lines([row("q", democracy=None, utilisation=None)])
    assert line.split()[-3:] == ["–", "–", "0"]


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
    for words in ("top-k", "eff. rank", "stable", "used", "democracy", "zero", "medians"):
        assert words in EXPLANATION
