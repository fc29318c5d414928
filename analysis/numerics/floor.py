"""Estimate the rounding noise in a ΔW that is the difference of stored weights."""

import ml_dtypes
import numpy as np

from analysis import CheckpointError

BLOCK = 1 << 20  # entries that are converted to float64 at a time


def noise_floor(W: np.ndarray, W0: np.ndarray | None = None) -> float:
    """Upper estimate of the largest singular value of the rounding noise in W − W0.

    W (d_out, d_in) in the dtype in which it is stored (float64, float32, float16, bfloat16,
    float8). W0, of the same shape, is given only if the base was itself rounded: then the variances
    add. Rounding to a spacing q is uniform noise of variance v = q²/12, and the largest singular
    value of a matrix of independent entries is at most about √(max row sum of v) + √(max column
    sum of v) (Latała 2005). It covers rounding when the weights are stored, not that of every
    optimiser step. Raises CheckpointError if the dtype is not floating point or an entry is not
    finite.

    Between 1 and 2, float16 has a spacing of 2⁻¹⁰:

    >>> W = np.full((300, 300), 1.5, np.float16)
    >>> bound = 2 * np.sqrt(300 * (2.0**-10) ** 2 / 12)
    >>> round(noise_floor(W) / float(bound), 6)
    1.0
    """
    if W.ndim != 2 or (W0 is not None and W0.shape != W.shape):
        other = "" if W0 is None else f" and {W0.shape}"
        raise CheckpointError(f"noise floor: weights are {W.shape}{other}; expected equal, 2-D")
    d_out, d_in = W.shape
    column_sum, largest_row_sum = np.zeros(d_in), 0.0
    rows = max(1, BLOCK // max(1, d_in))
    for i in range(0, d_out, rows):
        q2 = spacing(W[i : i + rows]) ** 2
        if W0 is not None:
            q2 += spacing(W0[i : i + rows]) ** 2
        column_sum += q2.sum(axis=0)
        largest_row_sum = max(largest_row_sum, float(q2.sum(axis=1).max()))
    return float((np.sqrt(largest_row_sum) + np.sqrt(column_sum.max())) / np.sqrt(12))


def spacing(W: np.ndarray) -> np.ndarray:
    """Distance from each |W| to the next larger number of its dtype, float64.

    At 0 it is the smallest positive number of the dtype. Raises CheckpointError as `noise_floor`
    does.

    >>> spacing(np.array([1.0, 1.5, 2.0], np.float32)).tolist() == [2**-23, 2**-23, 2**-22]
    True
    """
    try:
        info = ml_dtypes.finfo(W.dtype)
    except ValueError:
        raise CheckpointError(
            f"noise floor: weights are {W.dtype}; expected floating point"
        ) from None
    magnitude = W.astype(np.float64)
    if not np.isfinite(magnitude).all():
        raise CheckpointError("noise floor: weights hold NaN or Inf; expected finite numbers")
    _, exponent = np.frexp(magnitude)
    _, least = np.frexp(float(info.smallest_subnormal))
    # |w| = m·2^e with m in [1/2, 1): nmant stored bits below a leading one of weight 2^(e−1).
    return np.ldexp(
        1.0, np.maximum(np.where(magnitude == 0, least, exponent) - 1 - info.nmant, least - 1)
    )
