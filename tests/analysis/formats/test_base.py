"""The base: its names against those of a checkpoint."""

import json

import numpy as np
import pytest

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.formats import base


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (["model.layers.0.q.weight"], ["layers.0.q.weight"], 1),
        (["layers.0.q.weight"], ["model.layers.0.q.weight", "model.norm.weight"], 1),
        (["base_model.model.model.h.0.q.weight"], ["transformer.h.0.q.weight"], 1),
        # A head outside the common prefix meets its own name.
        (
            ["layers.0.q.weight", "layers.1.q.weight", "lm_head.weight"],
            [f"x.y.{n}.weight" for n in ("model.layers.0.q", "model.layers.1.q", "lm_head")],
            3,
        ),
        # Another layer, another module: no match, however alike the rest is.
        (["model.layers.7.q.weight"], ["model.layers.0.q.weight"], 0),
        (["lin.weight"], ["other.weight"], 0),
    ],
)
def test_names_meet_after_one_prefix_of_either_side(ours, theirs, pairs):
    assert len(base.align(ours, theirs)) == pairs


@pytest.mark.parametrize("transposed", [False, True])
def test_a_square_weight_is_turned_only_if_it_is_stored_turned(rng, transposed):
    W = rng.standard_normal((4, 4))
    want = W.T if transposed else W
    np.testing.assert_array_equal(base.as_matrix(W, (4, 4), transposed), want)


@pytest.mark.parametrize(
    ("stored", "shape", "want"),
    [
        ((5, 3), (5, 3), lambda W: W),
        ((5, 3), (3, 5), lambda W: W.T),
        ((6, 2, 3, 3), (6, 18), lambda W: W.reshape(6, 18)),
        ((), (1, 1), lambda W: W.reshape(1, 1)),
    ],
)
def test_a_weight_becomes_the_matrix_of_its_update(rng, stored, shape, want):
    W = rng.standard_normal(stored)
    np.testing.assert_array_equal(base.as_matrix(np.asarray(W), shape, False), want(np.asarray(W)))


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match=r"is \(5, 3\) in the base; expected \(4, 3\)"):
        base.as_matrix(np.ones((5, 3)), (4, 3), True)


def test_the_distance_is_exact_over_blocks(rng, monkeypatch):
    W, W0 = rng.standard_normal((2, 11, 3))
    want = np.linalg.norm(W - W0)
    for rows in (1, 4, 11, 1024):
        monkeypatch.setattr(base, "ROWS", rows)
        np.testing.assert_allclose(base.distance(W, W0), want, rtol=1e-14)
    assert base.distance(np.array(3.0), np.array(1.0)) == 2.0


@pytest.mark.parametrize(("model_type", "conv1d"), [("gpt2", True), ("llama", False)])
def test_conv1d_is_told_by_the_config(tmp_path, model_type, conv1d):
    assert not base.has_conv1d(Place(tmp_path))  # no config
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert base.has_conv1d(Place(tmp_path)) is conv1d
