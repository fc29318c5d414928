"""Methods and seeds: where labels come from, and which pairs stand for what."""

import json

import numpy as np
import pytest

from analysis import similarity
from analysis.checkpoint import Run, runs
from analysis.pairs import repeatability
from analysis.pairs.repeatability import Label


@pytest.fixture
def seeds(write_adapter, lora_tensors):
    """Two seeds each of two methods, as training writes them: with their run.json."""
    paths = []
    for method in ("lora", "full"):
        for seed in (0, 1):
            path = write_adapter(lora_tensors("q", "v"), f"{method}-s{seed}")
            (path / "run.json").write_text(json.dumps({"method": method, "seed": seed}))
            paths.append(path)
    return paths


def test_labels_come_from_run_json(seeds):
    assert repeatability.labels(runs(seeds)) == {
        "lora-s0": Label("lora", 0),
        "lora-s1": Label("lora", 1),
        "full-s0": Label("full", 0),
        "full-s1": Label("full", 1),
    }


def test_groups_name_the_method_and_run_json_the_seed(seeds):
    found = repeatability.labels(runs(seeds), [("mine", str(seeds[3]), str(seeds[0]))])
    assert found["full-s1"] == Label("mine", 1)
    assert found["lora-s0"] == Label("mine", 0)
    assert found["lora-s1"] == Label("lora", 1)


def test_without_run_json_the_place_in_the_group_is_the_seed(write_adapter, lora_tensors):
    paths = [write_adapter(lora_tensors("q"), name) for name in "ab"]
    # A path to the weights is one to their directory.
    groups = [("mine", paths[0], f"{paths[1]}/adapter_model.safetensors")]
    assert repeatability.labels(runs([paths[0], groups[0][2]]), groups) == {
        "a": Label("mine", 0),
        "b": Label("mine", 1),
    }


def test_a_run_of_steps_is_no_seed(write_adapter, lora_tensors, tmp_path):
    for step in (1, 2):
        write_adapter(lora_tensors("q"), f"run/checkpoint-{step}")
    path = str(tmp_path / "run")
    with pytest.raises(ValueError, match="run: 2 checkpoints; expected one"):
        repeatability.labels(runs([path]), [("mine", path)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"method": 3, "seed": 0}',
        '{"method": "lora", "seed": "one"}',
        "\xff",
        "[" * 100_000,  # nested deeper than a parser follows
    ],
)
def test_a_run_json_of_another_kind_says_nothing(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    assert repeatability.labels([Run(tmp_path, "run", None)]) == {}


def test_only_pairs_of_different_seeds_count(seeds):
    found = similarity.analyse(seeds)
    table = repeatability.between(found.rows, found.phi, repeatability.labels(runs(seeds)))
    assert [(row["method_a"], row["method_b"], row["run_pairs"]) for row in table] == [
        ("lora", "lora", 1),
        ("lora", "full", 2),
        ("full", "full", 1),
    ]
    across = [
        row
        for row in found.rows
        if {row["run_a"], row["run_b"]} in ({"lora-s0", "full-s1"}, {"lora-s1", "full-s0"})
    ]
    assert len(across) == 4
    assert table[1]["modules"] == 2
    for column in ("left_phi_k", "right_above_chance", "cosine"):
        want = np.mean([row[column] for row in across])
        assert table[1][column] == pytest.approx(want, abs=1e-14)


def test_k_is_the_smallest_of_all(write_adapter, lora_tensors):
    paths = [
        write_adapter(lora_tensors("q", r=r), name, r=r)
        for name, r in (("a0", 2), ("a1", 2), ("b0", 5), ("b1", 5))
    ]
    groups = [("a", *paths[:2]), ("b", *paths[2:])]
    found = similarity.analyse(paths)
    table = repeatability.between(found.rows, found.phi, repeatability.labels(runs(paths), groups))
    assert [row["k"] for row in table] == [2, 2, 2]
    of_b = next(row for row in found.rows if (row["run_a"], row["run_b"]) == ("b0", "b1"))
    assert of_b["k"] == 5
    assert table[2]["left_phi_k"] == found.phi[f"{of_b['key']}#left"][1, 1]


def test_one_seed_has_no_repeatability(seeds):
    found = similarity.analyse([seeds[0], seeds[2]])
    assert repeatability.between(found.rows, found.phi, repeatability.labels(runs(seeds))) == []
    assert repeatability.between(found.rows, found.phi, {}) == []


def test_what_is_undetermined_is_left_out_of_the_means(seeds):
    found = similarity.analyse(seeds)
    labels = repeatability.labels(runs(seeds))
    row = next(row for row in found.rows if {row["run_a"], row["run_b"]} == {"lora-s0", "lora-s1"})
    found.phi[f"{row['key']}#left"][-1] = np.nan
    table = repeatability.between(found.rows, found.phi, labels)
    other = next(
        r
        for r in found.rows
        if r["run_a"] == row["run_a"] and r["run_b"] == row["run_b"] and r is not row
    )
    assert table[0]["left_phi_k"] == other["left_phi_k"]
