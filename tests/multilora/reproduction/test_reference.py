"""The distance of the rows of make reproduce from the published ones."""

import json

import pytest

from multilora.reproduction import reference, tables

RUNS = {"lora-s0": "a", "lora-s1": "b", "full-s0": "c"}
METHODS = {"lora-s0": "lora", "lora-s1": "lora", "full-s0": "full"}


def results_in(directory, change=(0.0, 0.0), runs=RUNS):
    """Write methods.csv of three runs; change: of the score and top-1 share of lora, seed 1."""
    directory.mkdir()
    made_by = {"runs": runs, "methods": METHODS, "trained_on": [{"cpu": "Kind of processor"}]}
    (directory / "record.json").write_text(json.dumps(made_by))
    rows = [
        {
            "method": METHODS[name],
            "seed": int(name[-1]),
            "k": 2,
            "top_share_1": 0.5 + change[1] * (name == "lora-s1"),
            "top_share_1_above_null": 0.4,
            "effective_rank_k": 1.5,
            "score": 0.25 + change[0] * (name == "lora-s1"),
        }
        for name in METHODS
    ]
    tables.write(directory, {"methods": rows})
    return directory


def test_the_largest_distance_names_its_run_and_the_machine(tmp_path):
    own = results_in(tmp_path / "own", change=(-0.06, 0.02))
    published = results_in(tmp_path / "published")
    text = reference.distance(own, published)
    assert "made on Kind of processor): top-1 share 0.0200 (lora, seed 1)" in text
    assert "score 0.0600 (lora, seed 1)" in text
    assert "effective rank 0.000 (" in text
    assert "another processor rounds differently" in text


def test_equal_rows_need_no_reason(tmp_path):
    text = reference.distance(results_in(tmp_path / "own"), results_in(tmp_path / "published"))
    assert "score 0.0000" in text
    assert "processor rounds" not in text


@pytest.mark.parametrize("mark", ["b", "other"])
def test_runs_of_other_code_are_not_compared(tmp_path, mark):
    own = results_in(tmp_path / "own", change=(0.1, 0.1), runs=RUNS | {"lora-s1": mark})
    text = reference.distance(own, results_in(tmp_path / "published"))
    assert ("seed 1" in text) == (mark == "b")


def test_nothing_is_said_if_nothing_is_published_or_comparable(tmp_path):
    own = results_in(tmp_path / "own")
    assert reference.distance(own, tmp_path / "missing") == ""
    others = dict.fromkeys(RUNS, "x")
    assert reference.distance(own, results_in(tmp_path / "published", runs=others)) == ""
