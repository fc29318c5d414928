"""The summary of comparisons, and how it is printed, on rows made by hand."""

import pytest

from analysis.numerics.statistics import mean
from analysis.numerics.subspaces import COLUMNS
from analysis.results import pair_name, run_name
from analysis.tables import similarity as similarity_table
from analysis.tables.similarity import EXPLANATION, summary
from analysis.tables.text import plain


def lines(*arguments):
    """The printed lines, however wide."""
    return list(plain(similarity_table.lines(*arguments)))


def method_lines(rows):
    return list(plain(similarity_table.method_lines(rows)))


def row(module="0.q", a=("a", None), b=("b", None), **changes):
    """A row as `similarity.analyse` makes it: φ(1) and φ(4) defined, φ(8) and φ(16) not."""
    numbers = dict.fromkeys(COLUMNS, 0.5) | {"k": 4, "undetermined": None}
    numbers |= {f"{side}_phi_{i}": None for side in ("left", "right") for i in (8, 16)}
    place = {"run_a": a[0], "step_a": a[1], "run_b": b[0], "step_b": b[1]}
    return {**place, "module": module, "kind": module.split(".")[-1], **numbers, **changes}


def test_the_summary_has_averages_by_kind_then_over_all():
    rows = [row("0.q", cosine=0.1), row("1.q", cosine=0.3), row("0.v", cosine=0.9)]
    q, v, everything = summary(rows)
    assert [(line["kind"], line["modules"], line["pairs"]) for line in (q, v, everything)] == [
        ("q", 2, 2),
        ("v", 1, 1),
        ("all", 3, 3),
    ]
    assert (q["cosine"], everything["cosine"]) == (pytest.approx(0.2), 0.3)
    assert summary(rows, mean)[-1]["cosine"] == pytest.approx(1.3 / 3)
    assert q["left_phi_8"] is None


def test_pairs_of_parts_are_counted_beside_their_modules():
    (q, _) = summary([row("0.q"), row("0.q"), row("1.q")])
    assert (q["modules"], q["pairs"]) == (2, 3)


def test_a_table_has_both_sides_and_only_cuts_that_are_defined():
    heading, columns, left, right, *_ = lines([row(left_phi_1=0.25, right_phi_1=0.75)], [], [])
    assert heading == "a ~ b, 1 module"
    assert columns.split() == (
        "kind modules k cosine ‖a‖/‖b‖ side φ(1) φ(4) φ(k) chance above chance".split()
    )
    assert left.split()[:7] == ["q", "1", "4", "0.500", "0.5", "left", "0.250"]
    assert right.split()[:2] == ["right", "0.750"]


def test_a_line_counts_what_is_undetermined():
    rows = [row("0.q", undetermined="1 4"), row("1.q", undetermined="4"), row("2.q")]
    line = "undetermined and left out: φ(1) in 1, φ(4) in 2 of 3 pairs"
    assert list(lines(rows, [], []))[-2:] == [line, ""]
    assert line in list(lines([], rows, []))
    many = [row(a=("a", i), undetermined="1") for i in range(4)]
    assert "undetermined and left out: φ(1) in 4 of 4 pairs" in list(lines(many, [], []))
    assert not any("undetermined" in line for line in lines(rows[2:], [], []))


def test_many_pairs_get_one_line_each():
    rows = [row(a=("a", i), b=("a", i + 1)) for i in range(4)]
    got = list(lines(rows, [], []))
    assert got[0] == "all modules"
    assert [line.split("  ")[0] for line in got if " ~ " in line] == [
        f"a step {i} ~ {i + 1}" for i in range(4)
    ]
    assert "a step 0 ~ 1, 1 module" in list(lines(rows[:3], [], []))


def test_parts_are_averaged_by_means():
    inside = [row(a=("a", None), b=("a", None), cosine=cosine) for cosine in (0.0, 0.0, 0.9)]
    heading, _, left, *_ = lines([], inside, [])
    assert heading == "a: its parts compared with one another, means of 3 pairs"
    assert left.split()[3] == "0.300"


def method(a, b, k=4, **changes):
    columns = ("phi_k", "chance_k", "above_chance")
    numbers = {f"{side}_{column}": 0.25 for side in ("left", "right") for column in columns}
    return {"method_a": a, "method_b": b, "k": k, "run_pairs": 1} | numbers | changes


def test_methods_are_a_matrix_with_the_repeatability_on_its_diagonal():
    rows = [method("lora", "lora", left_phi_k=0.9), method("lora", "full", k=2)]
    _, _, heading, lora, full, *right, end = method_lines(rows)
    assert heading.split() == ["left", "(chance", "0.250)", "lora", "full"]
    assert lora.split() == ["lora", "0.900", "(+0.250)", "0.250", "(+0.250)", "at", "2"]
    assert full.split() == ["full", "0.250", "(+0.250)", "at", "2", "–"]
    assert right[0].startswith("right")
    assert end == ""
    assert list(method_lines(rows))[:2] == list(lines([], [], rows))[:2]


def test_names_of_runs_and_pairs():
    assert run_name(row(a=("a", 5)), "a") == "a step 5"
    assert pair_name(row()) == "a ~ b"
    assert pair_name(row(a=("a", 1), b=("a", 2))) == "a step 1 ~ 2"
    assert pair_name(row(a=("a", 1), b=("b", 1))) == "a step 1 ~ b step 1"
    # Two parts of one run without steps.
    assert pair_name(row(b=("a", None))) == "a ~ a"


def test_the_legend_explains_the_printed_columns():
    for words in ("φ(i)", "chance", "left", "right", "cosine", "‖a‖/‖b‖", "Frobenius", "medians"):
        assert words in EXPLANATION
