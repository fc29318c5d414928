"""The base: its names against those of a checkpoint."""

import pytest


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (["model.layers.0.q.weight"], ["layers.0.q.weight"], 1),
        (["layers.0.q.weight"], ["model.layers.0.q.weight", "model.norm.weight"], 1),
        (["base_model.model.model.h.0.q.weight"], ["transformer.h.0.q.weight"], 1),
        # Another layer, another module: no match, however alike the rest is.
        (["model.layers.7.q.weight"], ["model.layers.0.q.weight"], 0),
        (["lin.weight"], ["other.weight"], 0),
    ],
)
def test_names_meet_after_one_prefix_of_either_side(ours, theirs, pairs):
    from analysis.formats.base import align

    assert len(align(ours, theirs)) == pairs
