import ml_dtypes
import numpy as np
import pytest

from analysis import CheckpointError
from analysis.numerics.floor import noise_floor, spacing

DTYPES = [
    np.float16,
    np.float32,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_spacing_is_numpys(rng, dtype):
    W = (rng.standard_normal((50, 40)) * 10.0 ** rng.integers(-9, 5, (50, 40))).astype(dtype)
    W[0, :4] = 0, 1, 2, 0.5
    np.testing.assert_array_equal(spacing(W), np.spacing(np.abs(W)).astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_spacing_is_the_step_to_the_next_number(dtype):
    width = np.dtype(dtype).itemsize
    bits = np.arange(1, 2 ** (8 * width - 1) - 1, 1 if width < 4 else 100_003)
    W = bits.astype(f"u{width}").view(dtype)
    after = (bits + 1).astype(f"u{width}").view(dtype)
    with np.errstate(invalid="ignore"):
        W, after = W.astype(np.float64), after.astype(np.float64)
    both = np.isfinite(W) & np.isfinite(after)
    W, after = W[both], after[both]
    np.testing.assert_array_equal(spacing(W.astype(dtype)[None])[0], after - W)


def outlier_columns(rng):
    W = 0.02 * rng.standard_normal((300, 200))
    W[:, :3] *= 100
    return W


CASES = {
    "gaussian": lambda rng: 0.02 * rng.standard_normal((300, 200)),
    "outliers": outlier_columns,
    "subnormal": lambda rng: 1e-7 * rng.standard_normal((200, 300)),
}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_floor_is_just_above_the_noise_itself(rng, case, dtype):
    W = CASES[case](rng)
    stored = W.astype(dtype)
    noise = np.linalg.norm(stored.astype(np.float64) - W, 2)
    assert 0.8 * noise_floor(stored) <= noise <= 1.05 * noise_floor(stored)


def test_a_formula_from_the_mean_square_would_miss_the_outliers(rng):
    """Negative control: ε·rms·(√d_out + √d_in)/√12 is far too low on outlier columns."""
    W = outlier_columns(rng)
    stored = W.astype(ml_dtypes.bfloat16)
    noise = np.linalg.norm(stored.astype(np.float64) - W, 2)
    subnormal = CASES["subnormal"](rng)
    rounded = subnormal.astype(np.float16)
    simple = 2.0**-10 * np.sqrt(np.mean(subnormal**2)) * (300**0.5 + 200**0.5) / 12**0.5
    assert simple < 0.2 * np.linalg.norm(rounded.astype(np.float64) - subnormal, 2)
    assert noise_floor(stored) > noise * 0.95


def test_two_rounded_sources_add_their_variances(rng):
    W0 = 0.02 * rng.standard_normal((300, 200))
    W = W0 + 1e-3 * rng.standard_normal((300, 200))
    a, b = W.astype(ml_dtypes.bfloat16), W0.astype(ml_dtypes.bfloat16)
    noise = np.linalg.norm((a.astype(float) - W) - (b.astype(float) - W0), 2)
    both = noise_floor(a, b)
    assert 0.8 * both <= noise <= 1.05 * both
    assert noise_floor(a, a) == pytest.approx(2**0.5 * noise_floor(a), rel=1e-14)


def test_floor_scales_with_the_weights(rng):
    W = rng.standard_normal((30, 20)).astype(np.float32)
    assert noise_floor(W * np.float32(8)) == 8 * noise_floor(W)
    assert noise_floor(W.T) == pytest.approx(noise_floor(W), rel=1e-14)


def test_blocks_do_not_change_the_floor(rng, monkeypatch):
    W = rng.standard_normal((30, 20)).astype(np.float32)
    want = noise_floor(W)
    monkeypatch.setattr("analysis.numerics.floor.BLOCK", 50)
    assert noise_floor(W) == pytest.approx(want, rel=1e-14)


def test_bad_weights_are_refused():
    with pytest.raises(CheckpointError, match="int8; expected floating point"):
        noise_floor(np.ones((3, 3), np.int8))
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        noise_floor(np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(CheckpointError, match="expected equal, 2-D"):
        noise_floor(np.ones((3, 3)), np.ones((3, 2)))
    with pytest.raises(CheckpointError, match="expected equal, 2-D"):
        noise_floor(np.ones(3))
