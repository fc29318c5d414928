"""The command multilora.figures: figures from the tables in a directory."""

import picture_tables

from analysis import store
from multilora import figures as command


def test_a_table_without_rows_is_refused(tmp_path, run_main):
    (tmp_path / "cuts.csv").write_text("method,seed,kind,k,score\n")
    status, _, err = run_main(command.main, tmp_path)
    assert status == 2
    assert "cuts.csv: has no row" in err[0]


def test_every_figure_whose_table_is_there_is_drawn_again(tmp_path, run_main, rng):
    methods_rows = picture_tables.methods_rows(rng)
    cut_rows = picture_tables.cut_rows(rng)
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
