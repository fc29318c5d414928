"""Updates of one module with known factors, and the row of a pair of them."""

import numpy as np

from analysis.numerics import decompose
from analysis.pairs.merging import merge_row
from analysis.update import DenseUpdate, LowRankUpdate


def low_rank(B, A, scale=1.0, name="layers.0.q", source="a.safetensors"):
    return LowRankUpdate(name, B, A, scale, source=source)


def dense(W, name="layers.0.q", source="delta.safetensors"):
    return DenseUpdate(name, W.shape, lambda: W, source=source)


def from_spectrum(U, s, V):
    return low_rank(U * s, V.T)


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def merged(a, b):
    return merge_row(a, b, decompose.decomposition(a), decompose.decomposition(b))
