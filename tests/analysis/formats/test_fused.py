"""Blocks of fused layers against the grouped convolution, which is equal blocks of them."""

import numpy as np
import pytest
import torch

from analysis import CheckpointError
from analysis.files.tensors import Stored
from analysis.formats import fused


def stored(x):
    return Stored(x.shape, "F32", lambda: x)


@pytest.mark.parametrize(
    ("B", "A", "m"),
    [
        ((80, 4), (8, 64), 2),
        ((96, 4), (12, 64), 3),
        ((80, 4), (4, 64), 1),
        ((81, 4), (8, 64), 2),
        ((80, 4), (6, 64), 1),
        ((1, 4), (8, 64), 1),  # fewer rows than blocks
        ((80, 4, 1), (8, 64), 1),
        ((0, 4), (8, 64), 1),
        ((80, 0), (8, 64), 1),
    ],
)
def test_count_of_blocks(B, A, m):
    assert fused.count(B, A) == m


def test_equal_blocks_are_a_grouped_convolution(rng):
    A, B = rng.standard_normal((6, 7)), rng.standard_normal((15, 2))
    want = torch.nn.functional.conv1d(
        torch.from_numpy(A)[None], torch.from_numpy(B)[..., None], groups=3
    )[0].numpy()
    pieces = list(fused.cut(stored(B), stored(A), (5, 5, 5), "q"))
    np.testing.assert_allclose(np.vstack([b @ a for b, a in pieces]), want, rtol=0, atol=1e-14)


def test_unequal_blocks_have_their_own_rows(rng):
    A, B = rng.standard_normal((4, 7)), rng.standard_normal((10, 2))
    (B0, A0), (B1, A1) = fused.cut(stored(B), stored(A), (8, 2), "q")
    np.testing.assert_array_equal(B0 @ A0, B[:8] @ A[:2])
    np.testing.assert_array_equal(B1 @ A1, B[8:] @ A[2:])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), r"f: q: B is \(10, 2\), A is \(4, 7\): 2 blocks .* --blocks N,N, with a sum of 10"),
        ((10,), "expected 2 blocks with 10 rows in all, got 10"),
        ((8, 3), "got 8,3"),
        ((4, 3, 3), "got 4,3,3"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(rng, rows, words):
    A, B = rng.standard_normal((4, 7)), rng.standard_normal((10, 2))
    with pytest.raises(CheckpointError, match=words):
        list(fused.cut(stored(B), stored(A), rows, "f: q"))
