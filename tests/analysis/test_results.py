"""Rows grouped by columns; empty results share nothing; how results are shown in a notebook."""

import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis import UserError, results, spectrum
from analysis.results import Merging, Similarity, Spectra, grouped


def test_columns_are_unique():
    assert len(set(results.COLUMNS)) == len(results.COLUMNS)


def test_rows_are_grouped_in_order_of_first_appearance():
    rows = [{"run": run, "kind": kind, "n": n} for n, (run, kind) in enumerate(["bv", "aq", "bv"])]
    assert grouped(rows, "run", "kind") == {("b", "v"): [rows[0], rows[2]], ("a", "q"): [rows[1]]}
    assert list(grouped(rows, "run", "kind")) == [("b", "v"), ("a", "q")]
    assert grouped(rows) == {(): rows}
    assert grouped([], "run") == {}
    with pytest.raises(KeyError):
        grouped(rows, "absent")


@pytest.mark.parametrize("kind", [Spectra, Similarity, Merging])
def test_empty_results_share_nothing(kind):
    one, other = kind(), kind()
    one.rows.append({})
    one.skipped.append({})
    assert (other.rows, other.skipped) == ([], [])


# In a notebook


@pytest.fixture
def some(write_adapter, lora_tensors):
    """Spectra of two checkpoints; one of the updates is zero."""
    tensors = lora_tensors("l.0.q", "l.1.q")
    tensors["base_model.model.l.1.q.lora_B.weight"][:] = 0
    return spectrum.analyse([write_adapter(tensors, name) for name in "ab"])


def test_a_frame_has_the_rows_with_nan_where_undefined(some):
    frame = some.to_frame()
    assert [frame.index.name, *frame.columns] == list(results.COLUMNS)
    assert list(frame.index) == [row["key"] for row in some.rows]
    for row in some.rows:
        for column in results.COLUMNS[1:]:
            got = frame.at[row["key"], column]
            assert got == row[column] or (row[column] is None and (got is None or np.isnan(got)))
    means = frame.groupby("run")["top_share_1"].mean()  # of the update that moved
    assert means["a"] == some.rows[0]["top_share_1"]
    assert all(frame[column].dtype.kind in "if" for column in ("step", "floor", "gini", "rank"))
    assert Spectra().to_frame().shape == (0, len(results.COLUMNS) - 1)


def test_a_frame_says_what_to_install_where_pandas_is_missing(some, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas: python -m pip install 'multilora\[notebooks\]'"):
        some.to_frame()


def test_results_do_not_import_pandas():
    code = "import sys, analysis.spectrum; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Cells(HTMLParser):
    """The tags of a table, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert attributes == []

    def handle_data(self, data):
        self.texts.append(data)


TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_the_table_of_a_notebook_has_the_first_rows(some):
    table = Cells(some._repr_html_())
    assert table.tags == TAGS
    assert table.texts[0] == "4 of 4 updates; 0 skipped. All columns: to_frame()"
    row = table.texts[1 + len(results.SHORT) :][: len(results.SHORT)]
    first = some.rows[0]
    assert row[:6] == ["a", "–", "l.0.q", "–", "4", format(first["frobenius_norm"], ".4g")]
    many = Spectra(rows=some.rows * 30)
    assert many._repr_html_().count("<tr>") == results.SHOWN + 1
    assert "20 of 120 updates" in many._repr_html_()
    assert "0 of 0 updates" in Spectra()._repr_html_()


def test_names_of_strangers_stay_text_in_a_notebook(write_adapter, lora_tensors):
    name = "l.0.<script>alert('x')</script><img src=x onerror=y>&\x1b[2J"
    table = Cells(spectrum.analyse(write_adapter(lora_tensors(name)))._repr_html_())
    assert table.tags == TAGS
    assert "l.0.<script>alert('x')</script><img src=x onerror=y>&\\x1b[2J" in table.texts
