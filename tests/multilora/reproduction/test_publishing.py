"""Results that are copied to the published figures."""

import pytest

from multilora.reproduction.publishing import publish


def test_publishing_takes_the_place_of_an_earlier_run_and_of_nothing_else(tmp_path):
    results, to = tmp_path / "full", tmp_path / "figures"
    for directory, names in (
        (results, ("methods.csv", "a.png", "claims.md", "spectrum.csv", "spectra.safetensors")),
        (to, ("methods.csv", "old.png", "quick/methods.csv")),
    ):
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(directory.name)
    publish(results, to)
    there = {f.relative_to(to).as_posix(): f.read_text() for f in to.rglob("*") if f.is_file()}
    fresh = dict.fromkeys(("methods.csv", "a.png", "claims.md"), "full")
    kept = {"quick/methods.csv": "figures"}
    assert there == fresh | kept


def test_results_are_not_published_onto_themselves(tmp_path):
    (tmp_path / "methods.csv").write_text("a")
    with pytest.raises(ValueError, match="expected another directory than"):
        publish(tmp_path, tmp_path / "." / "")
    assert (tmp_path / "methods.csv").read_text() == "a"


def test_publishing_takes_what_is_small_and_leaves_files_of_other_kinds(tmp_path):
    results, to = tmp_path / "results", tmp_path / "figures"
    for place in (results, to):
        place.mkdir()
    for name in ("methods.csv", "claims.md", "a.png", "record.json", "spectrum.csv"):
        (results / name).write_text(name)
    (results / "spectra.safetensors").write_text("large")
    for name in ("old.csv", "README"):
        (to / name).write_text("before")
    publish(results, to)
    names = {"methods.csv", "claims.md", "a.png", "record.json"}
    assert {f.name for f in to.iterdir()} == names | {"README"}
    assert (to / "a.png").read_text() == "a.png"
