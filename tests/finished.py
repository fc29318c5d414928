"""Finished runs, made of a checkpoint and a run.json."""

import json

from multilora.reproduction import trained
from multilora.tasks.example import FAMILIES

MACHINE = {
    "machine": "x86_64",
    "cpu": "A",
    "instructions": "AVX2",
    "threads": 1,
    "device": "cpu",
}


def facts(method, seed, **settings):
    """Return the content of a run.json, as far as it is read."""
    scores = {"families": dict.fromkeys(FAMILIES, 0.5), "mean": 0.5, "tasks": {"sort": 0.25}}
    return {
        **{"fingerprint": "f", "method": method, "seed": seed, "parameters": 10},
        "settings": {"method": method.split()[0], "n": 3} | settings,
        **{"arguments": {"learning_rate": 0.003}, "base": {"sha256": {"model": "a"}}},
        "scores": {"test": scores, "validation": scores | {"mean": 0.75}},
        "environment": MACHINE | {"python": "3.12"},
    }


def run_of(path, method, seed, **settings):
    """Write the run.json of a checkpoint and return it as a finished run."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(facts(method, seed, **settings)))
    return trained.trained(path)
