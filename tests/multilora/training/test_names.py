"""Names of runs: readable, fit for a file name, and different for different values."""

import re

import pytest

from multilora.training.names import run_name


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, "lora-r=26-s3"),
        ({"packing": True}, "lora-r=26-packing-s3"),
        ({"remove": False}, "lora-r=26-remove=False-s3"),
        ({"scale": 4.0, "n": 2}, "lora-r=26-scale=4-n=2-s3"),
        ({"dropout": 0.1 + 0.2}, "lora-r=26-dropout=0.30000000000000004-s3"),
        ({"target_modules": "q_proj,v_proj"}, "lora-r=26-target_modules=q_proj+v_proj-s3"),
    ],
)
def test_changes_are_named_between_method_and_seed(changes, want):
    assert run_name("lora r=26", changes, 3) == want


VALUES = [
    *("q", "v", "q,v", "v,q", "q+v", "q.v", "q|v", "q v", "", "a/q", "b/q", "b/q/", "q,a/q"),
    *("q" * 300, "q" * 301, r".*\.q_proj", r".*\.v_proj", "alpaca:a.json", "alpaca:b.json", "δ"),
    *(1, 2, 1.5, 1e-5, 1e30, 0.1, 0.1 + 1e-12, True, False),
]


def test_different_values_have_different_names_that_fit_a_file_system():
    names = [run_name("peft:DORA", {"value": value}, 0) for value in VALUES]
    assert len(set(names)) == len(VALUES)
    for name in names:
        assert re.fullmatch(r"[\w.+=-]+", name), name
        assert len(name) < 100


def test_many_changes_are_hashed_together():
    changes = {f"setting_{i}": i for i in range(30)}
    name = run_name("multilora", changes, 0)
    assert re.fullmatch(r"multilora-[0-9a-f]{8}-s0", name)
    assert run_name("multilora", changes | {"setting_7": 8}, 0) != name
