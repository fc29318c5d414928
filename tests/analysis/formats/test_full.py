"""Full fine-tuning as this project stores it."""

import ml_dtypes
import numpy as np
import pytest
from entries import reasons, scan

from analysis import CheckpointError


def test_full_fine_tuning_is_what_was_stored(write_delta, rng):
    W = rng.standard_normal((5, 7)).astype("f4")
    path = write_delta(
        {"model.layers.0.q": W},
        vectors={"model.norm": {"frobenius_norm": 0.25}},
        tied=["lm_head"],
    )
    entries = scan(path)
    update = entries["model.layers.0.q"]
    assert (update.shape, update.floor, update.method) == ((5, 7), 1e-9, "full")
    np.testing.assert_array_equal(update.dense(), W)
    assert "norm 0.25" in entries["model.norm"].what
    assert "tied" in entries["lm_head"].what


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_full_fine_tuning_in_other_dtypes(write_delta, rng, dtype):
    W = rng.standard_normal((5, 7)).astype(dtype)
    np.testing.assert_array_equal(scan(write_delta({"q": W}))["q"].dense(), W.astype(np.float64))


def test_full_fine_tuning_that_disagrees_with_its_config_is_skipped(write_delta):
    W = np.ones((2, 2), "f4")
    facts = {"floor": 0.0}
    path = write_delta(
        {
            "good": W,
            "extra": W,
            "vector": np.ones(3, "f4"),
            "whole": np.ones((2, 2), "i4"),
            "bad": W,
        },
        modules={
            **{"good": facts, "vector": facts, "whole": facts},
            **{"missing": facts, "bad": {"floor": -1}, "odd": 3},
        },
    )
    found = reasons(path)
    assert found.keys() == {"extra", "vector", "whole", "missing", "bad", "odd"}
    assert "extra: is in delta.safetensors, not in delta_config.json" in found["extra"]
    assert "missing: is in delta_config.json, not in delta.safetensors" in found["missing"]
    assert "vector: is F32 (3,); expected a floating-point matrix" in found["vector"]
    assert "whole: is I32 (2, 2)" in found["whole"]
    assert "bad: floor is -1; expected at least 0" in found["bad"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"version": 2}, "version 2; expected 'multilora-delta', version 1"),
        ({"format": None}, "format None"),
        ({"modules": []}, None),
        ({"modules": [1]}, "modules is a list; expected a dict"),
        ({"tied": 3}, "tied is a int; expected a list"),
        ({"vectors": {"norm": {}}}, "norm: frobenius_norm is None"),
    ],
)
def test_full_fine_tuning_with_a_broken_config(write_delta, config, words):
    path = write_delta({"q": np.ones((2, 2), "f4")}, **config)
    if words is None:
        assert reasons(path).keys() == {"q"}
    else:
        with pytest.raises(CheckpointError, match=words):
            scan(path)
