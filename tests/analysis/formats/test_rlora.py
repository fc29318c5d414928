"""R-LoRA as the analysis reads it."""

import numpy as np
from own_files import N, R, assert_near, block, raw
from safetensors.numpy import load_file, save_file

from analysis import checkpoint
from analysis.numerics import decompose
from analysis.pairs import meeting as pairing
from analysis.update import LowRankUpdate, Other


def test_rlora_is_its_mean_and_its_heads_relative_to_their_start(write_own):
    path = write_own("rlora")
    entries = list(checkpoint.scan(path))
    t, scale = raw(path, "rlora"), 8 / R**0.5
    parts = {e.part: e for e in entries if isinstance(e, LowRankUpdate)}
    assert list(parts) == ["mean", "head1", "head2", "head3"]
    total = 0
    for i in range(N):
        left = scale * np.hstack([block(t["B"], i), -block(t["B0"], i)])
        want = left @ np.vstack([t["A"], t["A0"]])
        assert_near(parts[f"head{i + 1}"].dense(), want)
        total = total + want / N
    assert_near(parts["mean"].dense(), total)
    for part, update in parts.items():
        assert (update.name, update.method, update.capacity) == ("layers.0.q", "rlora", 2 * R)
        assert update.of_parts == (part == "mean")
    assert [e.name for e in entries if isinstance(e, Other)] == ["base_model.model.score.weight"]


def test_rlora_that_was_not_trained_has_no_update(write_own):
    path = write_own("rlora")
    file = path / "adapter_model.safetensors"
    stored = load_file(file)
    for part in "AB":
        name = f"base_model.model.layers.0.q.rlora_{part}"
        stored[f"{name}0"] = stored[name]
    save_file(stored, file)
    for update in checkpoint.read(path):
        assert not update.dense().any()
        assert not decompose.singular_values(update).any()


def test_the_mean_is_not_compared_with_the_heads_it_is_made_of(write_own):
    (run,) = checkpoint.runs([write_own("rlora")])
    updates = list(checkpoint.read(run.path))
    assert [update.part for update in pairing.parts(updates)] == ["head1", "head2", "head3"]
    # Between two runs it meets the other's mean.
    meeting = [
        (a.part, b.part) for a, b in pairing.match_parts(updates, updates, lambda u: u.part)[0]
    ]
    assert ("mean", "mean") in meeting
    assert len(meeting) == 4
