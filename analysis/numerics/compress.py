"""Make the best factors of a given rank from an update, and measure how far factors are from it.

By the theorem of Eckart and Young (1936) the first r terms of ΔW = Σ sᵢ uᵢ vᵢᵀ are the nearest
matrix of rank r, in the Frobenius and in the spectral norm. Nothing of the size of ΔW is formed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.numerics import decompose
from analysis.numerics.decompose import Decomposition
from analysis.update import LowRankUpdate, coarsest, float64

METHOD = "svd"


def best(update: LowRankUpdate, r: int) -> LowRankUpdate:
    """Return the update of rank at most r that is nearest to ΔW, by B = U √S, A = √S Vᵀ, scale 1.

    r: from 1; the capacity if it is larger. B (d_out, r) and A (r, d_in) are float64, and each
    column of B is as long as its row of A. Raises CheckpointError if ΔW holds NaN or Inf.

    >>> update = LowRankUpdate("q_proj", B=np.diag([3.0, 1.0]), A=np.eye(2))
    >>> abs(best(update, 1).dense()).round(6).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    return cut(update, decompose.decomposition(update, METHOD), r)


def cut(update: LowRankUpdate, decomposition: Decomposition, r: int) -> LowRankUpdate:
    """Return `best` from a decomposition of ΔW that is there already.

    >>> update = LowRankUpdate("q_proj", B=np.diag([3.0, 1.0]), A=np.eye(2))
    >>> cut(update, decompose.decomposition(update), 1).r
    1
    """
    if r < 1:
        raise ValueError(f"r is {r}; expected at least 1")
    r = min(r, update.capacity)
    B, A = factors(decomposition, r)
    return replace(
        update,
        B=B,
        A=A,
        scale=1.0,
        stacked=1,
        dtypes=update.stored,
        sizes=None,
        inner=None,
    )


def factors(decomposition: Decomposition, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B = U √S (d_out, r) and A = √S Vᵀ (r, d_in) of the first r directions.

    >>> B, A = factors(decompose.decomposition(LowRankUpdate("q", np.eye(2), 4 * np.eye(2))), 1)
    >>> B.shape, A.shape, float(np.linalg.norm(B).round(6))
    ((2, 1), (1, 2), 2.0)
    """
    root = np.sqrt(decomposition.s[:r])
    return decomposition.left.vectors(r) * root, root[:, None] * decomposition.right.vectors(r).T


def rounded(update: LowRankUpdate, dtype: np.dtype) -> LowRankUpdate:
    """Return the update with B and A rounded to a dtype, as they will be stored.

    >>> update = LowRankUpdate("q_proj", B=np.full((2, 1), 1 / 3), A=np.ones((1, 2)))
    >>> rounded(update, np.dtype(np.float16)).B.dtype.name
    'float16'
    """
    B, A = (float64(M).astype(dtype) for M in (update.B, update.A))
    return replace(update, B=B, A=A, dtypes=None, sizes=None, inner=None)


def stored_dtype(updates: Sequence[LowRankUpdate]) -> np.dtype:
    """Return the coarsest dtype in which any of the updates is stored.

    >>> half = LowRankUpdate("q_proj", np.ones((2, 1), np.float16), np.ones((1, 2), np.float32))
    >>> stored_dtype([half]).name
    'float16'
    """
    return coarsest(*(dtype for update in updates for dtype in update.stored))


def error(exact: LowRankUpdate, stored: LowRankUpdate) -> float:
    """Return ‖ΔW − ΔW'‖/‖ΔW‖, Frobenius norms, of two updates of one shape; 0 if both are zero.

    From the factors side by side, [sB, −s'B'] and [A; A'], reduced to small matrices by QR: a
    difference of squared norms would lose every error below 1e-8.

    >>> update = LowRankUpdate("q_proj", B=np.diag([3.0, 4.0]), A=np.eye(2))
    >>> round(error(update, best(update, 1)), 6)
    0.6
    """
    size = norm([(1.0, exact)])
    difference = norm([(1.0, exact), (-1.0, stored)])
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))


def norm(weighted: Sequence[tuple[float, LowRankUpdate]]) -> float:
    """Return the Frobenius norm of Σ wᵢ ΔWᵢ, low-rank updates of one shape.

    >>> update = LowRankUpdate("q_proj", B=np.diag([3.0, 4.0]), A=np.eye(2))
    >>> round(norm([(1.0, update), (0.5, update)]), 6)
    7.5
    """
    B = np.hstack([w * u.scale * float64(u.B) for w, u in weighted])
    A = np.vstack([float64(u.A) for _, u in weighted])
    R_B, R_A = (np.asarray(np.linalg.qr(M, mode="r")) for M in (B, A.T))
    return float(np.linalg.norm(R_B @ R_A.T))
