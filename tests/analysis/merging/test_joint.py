"""Updates in their joint bases, against dense algebra."""

import ml_dtypes
import numpy as np
import pytest
from made_updates import low_rank

from analysis import CheckpointError
from analysis.merging.joint import check_finite, joint, rank


@pytest.mark.parametrize(
    ("d_out", "d_in", "ranks"), [(12, 9, (2, 3)), (4, 9, (3, 3)), (1, 1, (1,)), (6, 5, (8, 2))]
)
def test_the_cores_are_the_updates_in_orthonormal_bases(rng, d_out, d_in, ranks):
    updates = [
        low_rank(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in)), 0.3 * (-1) ** r)
        for r in ranks
    ]
    together = joint(updates)
    m, n = min(d_out, sum(ranks)), min(d_in, sum(ranks))
    np.testing.assert_allclose(together.left.T @ together.left, np.eye(m), atol=1e-14)
    np.testing.assert_allclose(together.right.T @ together.right, np.eye(n), atol=1e-14)
    for core, update in zip(together.cores, updates, strict=True):
        assert core.shape == (m, n)
        np.testing.assert_allclose(
            together.left @ core @ together.right.T, update.dense(), atol=1e-13
        )


def test_a_core_comes_back_as_balanced_factors_of_its_rank(rng):
    stored = [rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((12, 3), (3, 9))]
    updates = [low_rank(*stored), low_rank(np.ones((12, 2), "f4"), np.ones((2, 9), "f4"))]
    together = joint(updates)
    core = together.cores[0]
    update = together.update(core, "tsv")
    np.testing.assert_allclose(update.dense(), updates[0].dense(), atol=1e-13)
    assert (update.r, update.method, update.name) == (3, "tsv", "layers.0.q")
    assert update.stored == (ml_dtypes.bfloat16, ml_dtypes.bfloat16)
    np.testing.assert_allclose(np.linalg.norm(update.B, axis=0), np.linalg.norm(update.A, axis=1))
    zero = together.update(0 * core, "iso")
    assert zero.r == 1
    assert not zero.dense().any()


def test_the_rank_does_not_count_rounding():
    assert rank(np.array([1e9, 1.0, 1e-9]), (8, 8)) == 2
    assert rank(np.array([1e-200, 1e-201]), (8, 8)) == 2
    assert rank(np.zeros(3), (8, 8)) == rank(np.zeros(0), (8, 0)) == 0


@pytest.mark.parametrize(("name", "words"), [("B", "B holds"), ("A", "A holds")])
def test_factors_that_are_not_finite_are_named(name, words):
    factors = {"B": np.ones((3, 1)), "A": np.ones((1, 4))}
    factors[name][0, 0] = np.inf
    with pytest.raises(CheckpointError, match=rf"a.safetensors: layers.0.q: {words} NaN or Inf"):
        joint([low_rank(**factors)])
    with pytest.raises(CheckpointError, match="scale holds NaN or Inf"):
        check_finite(low_rank(np.ones((3, 1)), np.ones((1, 4)), np.nan))
