"""Planned runs that are finished without training."""

import json

from multilora.training import identity


def finish(run, score):
    """Write the files of a finished run with a score on the validation items."""
    run.out.mkdir(parents=True)
    weights = "delta" if run.settings.method == "full" else "adapter_model"
    (run.out / f"{weights}.safetensors").touch()
    made_of = identity.fingerprint(run.settings, run.arguments())
    scores = {"validation": {"mean": score}, "test": {"mean": 1 - score}}
    (run.out / "run.json").write_text(json.dumps({"fingerprint": made_of, "scores": scores}))
