"""An update → its singular values, or U, s, Vh, with a bound on their error.

A low-rank update is never multiplied out. With L_B L_Bᵀ = BᵀB and L_A L_Aᵀ = AAᵀ there are Q_B
and Q_A of orthonormal columns such that B = Q_B L_Bᵀ and A = L_A Q_Aᵀ; so the singular values of
B A are those of the small core L_BᵀL_A.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis import CheckpointError
from analysis.update import DenseUpdate, LowRankUpdate, Update, float64

EPS = float(np.finfo(np.float64).eps)
MAX_CONDITION = 1e3  # beyond it, QR of the factors instead of Cholesky of their Grams
SMALLEST_SQUARE = 1e-200  # below it, the squares in a Gram matrix have lost digits
LARGEST = 1e300  # beyond it, sums over the values of several modules would overflow
ROWS = 2048  # of a dense update in float64 at a time


@dataclass(frozen=True, eq=False)
class Spectrum:
    """s (capacity,), float64, descending; |s − exact| <= error_bound; by which algorithm.

    floor: the largest singular value of the rounding noise in ΔW, None where nothing was rounded.
    """

    s: np.ndarray
    algorithm: str
    error_bound: float
    floor: float | None = None


def singular_values(update: Update, method: str = "auto") -> np.ndarray:
    """Singular values of ΔW (capacity,), float64, descending; all zero for ΔW = 0."""
    return spectrum(update, method).s


def spectrum(update: Update, method: str = "auto") -> Spectrum:
    """Singular values of ΔW with the algorithm that was used and its error bound.

    method: "auto", the fastest that keeps its bound (Cholesky or QR of the factors; for a dense
    update the eigenvalues of its Gram matrix), or "svd", the most accurate (QR of the factors;
    a full SVD). Raises CheckpointError where ΔW holds NaN or Inf.
    """
    if method not in ("auto", "svd"):
        raise ValueError(f"method is {method!r}; expected 'auto' or 'svd'")
    if isinstance(update, LowRankUpdate):
        result = _low_rank(update, method)
    else:
        result = _dense_svd(update) if method == "svd" else _dense_gram(update)
        floor = update.floor() if callable(update.floor) else update.floor
        result = replace(result, floor=floor)
    if not max(result.s.sum(), result.error_bound) < LARGEST:
        raise CheckpointError(f"{_label(update)}: ΔW is too large for float64")
    return result


def svd(update: Update) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (d_out, k), s (k,), Vh (k, d_in) of ΔW, k its capacity, as `scipy.linalg.svd` gives them.

    Signs are free, and vectors rotate within ties; where s = 0 they are an arbitrary orthonormal
    completion. Raises CheckpointError where ΔW holds NaN or Inf.
    """
    if isinstance(update, DenseUpdate):
        return np.linalg.svd(_finite(update.dense(), "ΔW", update), full_matrices=False)
    Q_B, R_B = np.linalg.qr(_finite(float64(update.B), "B", update))
    Q_A, R_A = np.linalg.qr(_finite(float64(update.A), "A", update).T)
    P, s, Qh = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    k = update.capacity
    sign = -1.0 if update.scale < 0 else 1.0
    return sign * (Q_B @ P)[:, :k], abs(update.scale) * s[:k], (Qh @ Q_A.T)[:k]


def _low_rank(update: LowRankUpdate, method: str) -> Spectrum:
    """Cholesky of both Gram matrices where they are well conditioned, else QR of both factors."""
    B, A = float64(update.B), float64(update.A).T
    with np.errstate(all="ignore"):  # NaN, Inf and overflow are found by what they lead to
        root_B = _cholesky(B) if method == "auto" else None
        root_A = _cholesky(A) if root_B else None
        if root_B and root_A:
            (L_B, condition_B), (L_A, condition_A) = root_B, root_A
            algorithm, condition = "cholesky", max(condition_B, condition_A)
        else:
            B, A = _finite(B, "B", update), _finite(A, "A", update)
            L_B, L_A = (np.transpose(np.linalg.qr(M, mode="r")) for M in (B, A))
            algorithm, condition = "qr", 1.0
        core = _finite(L_B.T @ L_A, "B·A", update)
        s = np.linalg.svd(core, compute_uv=False)[: update.capacity]
        # ΔW is a sum of products bᵢaᵢ; where they cancel, s₁ is smaller than the largest of
        # them and its error is not. (Row i of L is as long as column i of its factor.)
        products = np.linalg.norm(L_B, axis=1) * np.linalg.norm(L_A, axis=1)
        size = max(float(s[0]), float(products.max()))
        bound = 10 * update.B.shape[1] * EPS * condition * size
        scale = abs(update.scale)
        return Spectrum(scale * s, algorithm, scale * bound)


def _cholesky(M: np.ndarray) -> tuple[np.ndarray, float] | None:
    """L with L Lᵀ = MᵀM and the condition of L scaled to unit rows; None where QR must do.

    A Gram matrix of more columns than M has rows is singular, and of any size. Unit diagonal
    first: columns of M of very different length would be bad conditioning only in appearance
    (van der Sluis 1969).
    """
    if M.shape[1] > M.shape[0]:
        return None
    G = M.T @ M
    d2 = np.diagonal(G)
    # The comparison is false for NaN and Inf as well.
    if not (np.all(d2 > SMALLEST_SQUARE) and np.all(d2 < 1 / SMALLEST_SQUARE)):
        return None
    d = np.sqrt(d2)
    try:
        L = np.linalg.cholesky(G / np.outer(d, d))
    except np.linalg.LinAlgError:
        return None
    lengths = np.linalg.svd(L, compute_uv=False)
    if not lengths[0] <= MAX_CONDITION * lengths[-1]:
        return None
    return d[:, None] * L, float(lengths[0] / lengths[-1])


def _dense_gram(update: DenseUpdate) -> Spectrum:
    """Square roots of the eigenvalues of the smaller Gram matrix, in float64."""
    import torch  # its LAPACK is 3 to 4 times faster here than scipy's, and 2 s slower to import

    W = update.load()
    W = W if W.shape[0] >= W.shape[1] else W.T
    size = _magnitude(W, update)
    if size == 0:
        return Spectrum(np.zeros(update.capacity), "gram", 0.0)
    G = torch.zeros(W.shape[1], W.shape[1], dtype=torch.float64)
    for i in range(0, W.shape[0], ROWS):
        # By size, so that no square overflows or vanishes.
        rows = torch.from_numpy(float64(W[i : i + ROWS]) / size)
        G.addmm_(rows.T, rows)
    values = torch.linalg.eigvalsh(G).numpy()[::-1]
    s = size * np.sqrt(np.maximum(values, 0.0))
    return Spectrum(s, "gram", float(np.sqrt(max(W.shape) * EPS) * s[0]))


def _dense_svd(update: DenseUpdate) -> Spectrum:
    import torch

    W = update.load()
    _magnitude(W, update)
    s = torch.linalg.svdvals(torch.from_numpy(np.array(W, dtype=np.float64))).numpy()
    return Spectrum(s, "svd", float(max(W.shape) * EPS * s[0]))


def _magnitude(W: np.ndarray, update: DenseUpdate) -> float:
    """max |W|; CheckpointError for NaN or Inf."""
    low, high = W.min(), W.max()  # both carry a NaN on
    _finite(np.array([low, high]), "ΔW", update)
    return max(float(high), -float(low))


def _finite(x: np.ndarray, what: str, update: Update) -> np.ndarray:
    if not np.isfinite(x).all():
        raise CheckpointError(f"{_label(update)}: {what} holds NaN or Inf; expected finite numbers")
    return x


def _label(update: Update) -> str:
    return f"{update.source}: {update.name}" if update.source else update.name
