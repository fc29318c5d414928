"""The distance of the rows of make reproduce from the published ones."""

import json

import pytest

from multilora.reproduction import reference, tables

RUNS = {"lora-s0": "a", "lora-s1": "b", "full-s0": "c"}
BASES = {"seeds": {"model.safetensors": "a"}}
METHODS = {"lora-s0": "lora", "lora-s1": "lora", "full-s0": "full"}


def results_in(directory, change=(0.0, 0.0), runs=RUNS, steps=3, bases=BASES):
    """Write methods.csv of three runs; change: of the score and top-1 share of lora, seed 1."""
    directory.mkdir()
    made_by = {"runs": runs, "methods": METHODS, "trained_on": [{"cpu": "Kind of processor"}]}
    made_by |= {"bases": bases, "arguments": {"steps": steps}}
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


def test_other_code_is_named_as_a_possible_reason(tmp_path):
    published = results_in(tmp_path / "published")
    own = results_in(tmp_path / "own", change=(0.1, 0.1), runs=RUNS | {"lora-s1": "other"})
    text = reference.distance(own, published)
    assert "score 0.1000 (lora, seed 1)" in text
    assert "The code has changed since they were published" in text
    same = results_in(tmp_path / "same", runs=RUNS | {"lora-s1": "other"})
    assert "changed" not in reference.distance(same, published)


@pytest.mark.parametrize("other", [{"steps": 7}, {"bases": {"seeds": "another"}}])
def test_runs_of_other_steps_or_bases_are_not_compared(tmp_path, other):
    own = results_in(tmp_path / "own", **other)
    assert reference.distance(own, results_in(tmp_path / "published")) == ""


def test_nothing_is_said_if_nothing_is_published_or_comparable(tmp_path):
    own = results_in(tmp_path / "own")
    assert reference.distance(own, tmp_path / "missing") == ""
    published = results_in(tmp_path / "published")
    rows = [row | {"seed": 9} for row in tables.load(own).of("methods")]
    tables.write(published, {"methods": rows})
    assert reference.distance(own, published) == ""
