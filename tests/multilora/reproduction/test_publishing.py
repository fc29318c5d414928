"""Results that are copied to the published figures."""

import json

import pytest
from killed import at_every_call

from analysis.files import exchange
from multilora.reproduction import publishing, tables
from multilora.reproduction.publishing import publish


def results_in(directory, word):
    """Write results with one table, a figure and two blocks."""
    directory.mkdir()
    (directory / "record.json").write_text("{}")
    row = {"method": "lora", "seed": 1, "k": 2, "score": 0.5}
    shares = {"top_share_1": 0.5, "top_share_1_above_null": 0.25}
    tables.write(directory, {"methods": [row | shares]})
    (directory / "a.png").write_text(word)
    for name in ("seed-5", "grid"):
        block = directory / "blocks" / name
        block.mkdir(parents=True)
        (block / "spectra.safetensors").write_text(word)
    return directory


def names(directory):
    return sorted(f.relative_to(directory).as_posix() for f in directory.rglob("*") if f.is_file())


def test_publishing_takes_tables_figures_and_blocks_and_judges_the_claims(tmp_path):
    results, to = results_in(tmp_path / "full", "fresh"), tmp_path / "figures"
    publish(results, to)
    judged = ["claims.json", "claims.md"]
    assert names(to) == sorted([*names(results), *judged])
    assert (to / "blocks/grid/spectra.safetensors").read_text() == "fresh"


def test_publishing_takes_the_place_of_an_earlier_run_and_of_nothing_else(tmp_path):
    results, to = results_in(tmp_path / "full", "fresh"), results_in(tmp_path / "figures", "before")
    for name in (
        "old.csv",
        "blocks/grid/old.csv",
        "README",
        "quick/methods.csv",
        "blocks/wild/w.csv",
    ):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_text("before")
    publish(results, to)
    assert {"old.csv", "blocks/grid/old.csv"}.isdisjoint(names(to))
    # Another kind, another directory, and a block that was made on another day.
    assert {"README", "quick/methods.csv", "blocks/wild/w.csv"} <= set(names(to))
    assert (to / "a.png").read_text() == "fresh"


def test_published_claims_show_earlier_tables_beside(tmp_path):
    results, to = results_in(tmp_path / "full", "fresh"), tmp_path / "figures"
    to.mkdir()
    results_in(to / "earlier", "seen before")
    publish(results, to)
    assert "seeds 0–4" in (to / "claims.md").read_text()
    assert "earlier" in json.loads((to / "claims.json").read_text())


def test_results_are_not_published_onto_themselves(tmp_path):
    (tmp_path / "methods.csv").write_text("a")
    with pytest.raises(ValueError, match="expected another directory than"):
        publish(tmp_path, tmp_path / "." / "")
    assert (tmp_path / "methods.csv").read_text() == "a"


def test_killed_at_any_moment_the_published_directory_is_all_old_or_all_new(tmp_path):
    results, to = results_in(tmp_path / "full", "fresh"), results_in(tmp_path / "figures", "before")
    (to / "old.csv").write_text("before")
    seen = set()
    for _ in at_every_call(lambda: publishing._exchange(results, to), to):
        exchange.complete(to)
        seen.add(((to / "a.png").read_text(), (to / "old.csv").exists()))
        (to / "old.csv").write_text("before")
        (to / "a.png").write_text("before")
    assert seen == {("before", True), ("fresh", False)}
