"""Updates as factors and as matrices: shapes, capacities, parts, exact conversion."""

import ml_dtypes
import numpy as np
import pytest

from analysis.update import DenseUpdate, LowRankUpdate, float64


@pytest.mark.parametrize(
    ("d_out", "d_in", "r", "capacity"), [(9, 5, 2, 2), (3, 8, 6, 3), (7, 4, 9, 4)]
)
def test_low_rank_update_is_scale_times_product(rng, d_out, d_in, r, capacity):
    B, A = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
    update = LowRankUpdate("layer", B, A, scale=-0.5)
    assert update.shape == (d_out, d_in)
    assert update.capacity == capacity
    slow = [
        [-0.5 * sum(B[i, m] * A[m, j] for m in range(r)) for j in range(d_in)] for i in range(d_out)
    ]
    np.testing.assert_allclose(update.dense(), slow, rtol=0, atol=1e-14)


def test_stacked_modules_are_parts_that_sum_to_the_update(rng):
    B, A = rng.standard_normal((5, 6)), rng.standard_normal((6, 4))
    update = LowRankUpdate("layer", B, A, scale=2.0, part="law", stacked=3, method="multilora")
    parts = update.unstacked()
    assert [part.part for part in parts] == ["law1", "law2", "law3"]
    assert all((part.stacked, part.capacity, part.scale) == (1, 2, 2.0) for part in parts)
    np.testing.assert_array_equal(parts[1].B, B[:, 2:4])
    np.testing.assert_array_equal(parts[1].A, A[2:4])
    np.testing.assert_allclose(sum(part.dense() for part in parts), update.dense(), atol=1e-14)


def test_dense_update_loads_only_when_asked():
    loads = []
    update = DenseUpdate("layer", (3, 2), lambda: loads.append(1) or np.ones((3, 2), np.float32))
    assert (update.shape, update.capacity, loads) == ((3, 2), 2, [])
    assert update.dense().dtype == np.float64
    assert loads == [1]


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, ml_dtypes.float8_e4m3fn]
)
def test_float64_keeps_every_value(rng, dtype):
    x = rng.standard_normal((40, 50)).astype(dtype)
    assert float64(x).dtype == np.float64
    assert np.array_equal(float64(x).astype(dtype).view(np.uint8), x.view(np.uint8))


def test_float64_keeps_every_bfloat16_there_is():
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # the signalling NaNs among them
        want = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(float64(bits.view(ml_dtypes.bfloat16)), want)
