"""Updates compared with their base, printed from rows made by hand."""

import pytest

from analysis.base import landing
from analysis.tables import base as base_table
from analysis.tables.base import EXPLANATION
from analysis.tables.text import plain


def lines(*arguments):
    """The printed lines, however wide."""
    return list(plain(base_table.lines(*arguments)))


def row(module="0.q", run="a", step=None, **changes):
    """A row as `landing.analyse` makes it, without landing and intruders."""
    facts = dict.fromkeys(landing.ROW_COLUMNS) | dict.fromkeys(landing.COLUMNS, 2.0)
    facts |= {"run": run, "step": step, "module": module, "kind": module.split(".")[-1]}
    return facts | {"d_out": 40, "d_in": 20} | changes


def landed(first, last):
    shares = dict.fromkeys(landing.LANDING_COLUMNS, 0.0)
    ends = {f"{side}_1": first for side in ("left", "right")}
    return shares | ends | {f"{side}_10": last for side in ("left", "right")}


def test_a_table_has_one_line_per_kind_with_medians():
    rows = [row("0.q"), row("1.q", relative_spectral=4.0), row("0.v", amplification_16=None)]
    heading, columns, q, v, everything, end = lines(rows)
    assert (heading, end) == ("a  compared with its base", "")
    assert columns.split()[-3:] == ["4", "16", "rank"]
    assert q.split()[:3] == ["q", "2", "3"]
    assert v.split()[-3:] == ["2", "–", "2"]
    assert everything.split()[:2] == ["all", "3"]


def test_checkpoints_have_tables_of_their_own():
    got = [line for line in lines([row(step=1), row(step=2)]) if "compared" in line]
    assert got == ["a  step 1  compared with its base", "a  step 2  compared with its base"]


def test_landing_and_intruders_are_shown_if_computed():
    plain = list(lines([row()]))
    assert not any("lands" in line or "intruders" in line for line in plain)
    curve = {
        f"{prefix}intruders_{epsilon}": number * epsilon
        for prefix, number in (("", 10), ("null_", 1))
        for epsilon in landing.EPSILONS
    }
    rows = [
        row(**landed(0.5, 0.125), intruders=3, **curve),
        row("1.q", **landed(0.25, 0.0), intruders=4, **curve),
    ]
    _, columns, q, _, gap, epsilons, of_update, of_null, end = lines(rows)
    assert gap == end == ""
    assert epsilons.split()[-9:] == [f"0.{i}" for i in range(1, 10)]
    assert of_update.split() == ["ΔW", *"123456789"]
    assert of_null.split() == ["random", "updates", *(f"0.{i}" for i in range(1, 10))]
    headings = " ".join(columns.split())
    assert headings.endswith(
        "rank lands left first lands left last lands right first lands right last intruders"
    )
    # 20 directions of W0 in R^40 and in R^20, a tenth of them in each decile.
    shares = "0.375 (0.050) 0.062 (0.050) 0.375 (0.100) 0.062 (0.100)".split()
    assert q.split()[-10:] == [*shares, "3.5", "(0.5)"]


@pytest.mark.parametrize("words", ["amplified", "lands", "intruders", "medians", "2410.21228"])
def test_the_legend_explains_the_printed_columns(words):
    assert words in EXPLANATION
