"""Runs that cannot be read, and runs that cannot be compared."""

import json

import pytest
from finished import run_of

from multilora.reproduction import trained
from multilora.reproduction.trained import Trained


def test_a_run_of_another_version_is_refused(tmp_path):
    run = run_of(tmp_path / "lora-s0", "lora", 0)
    assert (run.method, run.seed, run.name) == ("lora", 0, "lora-s0")
    file = tmp_path / "lora-s0" / "run.json"
    old = {key: value for key, value in run.facts.items() if key not in ("scores", "environment")}
    for text, words in (
        (json.dumps(old), "lacks scores, environment: another version wrote it; remove .*lora-s0"),
        ("[]", "expected a JSON object; remove .*lora-s0 and run again"),
        ("{", "not readable as JSON.*; remove .*lora-s0 and run again"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            trained.trained(file.parent)
    file.unlink()
    with pytest.raises(ValueError, match="the run is not finished; run it again"):
        trained.trained(file.parent)


def test_runs_of_other_bases_or_of_one_seed_are_refused(tmp_path):
    runs = [run_of(tmp_path / f"lora-s{seed}", "lora", seed) for seed in (0, 1)]
    trained.check_comparable(runs)
    other = Trained(tmp_path / "x", runs[1].facts | {"base": {"sha256": {"model": "b"}}})
    with pytest.raises(ValueError, match="x: was trained from another base than"):
        trained.check_comparable([runs[0], other])
    with pytest.raises(ValueError, match="both are lora, seed 1"):
        trained.check_comparable([*runs, Trained(tmp_path / "y", runs[1].facts)])
