"""Which tables each figure is drawn from."""

from pathlib import Path

import picture_tables
import pytest

from analysis import UserError, store
from multilora.reproduction import figures
from multilora.reproduction.tables import parsed

PUBLISHED = Path(__file__).parents[3] / "figures"


@pytest.mark.parametrize("name", figures.SOURCES)
def test_the_published_tables_have_the_columns_that_a_figure_needs(name):
    for table, columns in figures.SOURCES[name].tables.items():
        path = PUBLISHED / table
        if not path.is_file():
            pytest.skip(f"{table} is not published yet")
        assert parsed(path, path.read_bytes(), columns.split()) != []


def test_only_the_named_figures_are_drawn(tmp_path, rng):
    for name, rows in (
        ("methods", picture_tables.methods_rows(rng)),
        ("cuts", picture_tables.cut_rows(rng)),
    ):
        store.write_text(tmp_path / f"{name}.csv", store.csv_text(rows, list(rows[0])))
    assert figures.draw(tmp_path, ["cut_curves", "dynamics"]) == [tmp_path / "cut_curves.png"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("methods.csv", "cuts.csv", "cut_curves.png", "cut_curves.pdf")
    }


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "cuts.csv").write_text("method,seed,kind,k,score\n")
    with pytest.raises(UserError, match=r"cuts\.csv: has no row; expected at least one"):
        figures.draw(tmp_path)
