"""An update → its singular values, or its singular vectors too, with a bound on their error.

A low-rank update is never multiplied out. With L_B L_Bᵀ = BᵀB and L_A L_Aᵀ = AAᵀ there are Q_B
and Q_A of orthonormal columns such that B = Q_B L_Bᵀ and A = L_A Q_Aᵀ; so the singular values of
B A are those of the small core L_BᵀL_A.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis import CheckpointError
from analysis.numerics import metrics
from analysis.update import DenseUpdate, LowRankUpdate, Update, float64

EPS = float(np.finfo(np.float64).eps)
MAX_CONDITION = 1e3  # beyond it, QR of the factors instead of Cholesky of their Grams
# The same for vectors, whose orthogonality suffers by the square of it.
MAX_CONDITION_OF_VECTORS = 1e2
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
        result = replace(result, floor=_floor(update))
    _check_size(result.s, result.error_bound, update)
    return result


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal columns M @ P, (d, k); P None stands for the identity. Never multiplied out."""

    M: np.ndarray
    P: np.ndarray | None = None

    def vectors(self, k: int | None = None) -> np.ndarray:
        """The first k of the columns, (d, k)."""
        return self.M[:, :k] if self.P is None else self.M @ self.P[:, :k]

    def against(self, other: "Basis") -> np.ndarray:
        """The cosines of our columns with those of `other`, (k, other's k), signs free."""
        C = self.M.T @ other.M
        C = C if self.P is None else self.P.T @ C
        return C if other.P is None else C @ other.P


@dataclass(frozen=True, eq=False)
class Decomposition:
    """ΔW = U diag(s) Vᵀ: left is U (d_out, k), right is V (d_in, k), k the capacity.

    rank: how many of the values are told from zero, and from the rounding noise of a difference;
    beyond it the vectors are noise, or an arbitrary orthonormal completion. error_bound: of s.
    """

    left: Basis
    s: np.ndarray
    right: Basis
    rank: int
    error_bound: float


def decomposition(update: Update, method: str = "auto") -> Decomposition:
    """Singular values and vectors of ΔW; the vectors of a low-rank one are never multiplied out.

    Signs are free, and vectors rotate within ties. method: as for `spectrum`; "svd" always takes
    QR of the factors. Raises CheckpointError where ΔW holds NaN or Inf.
    """
    if isinstance(update, DenseUpdate):
        import torch

        W = update.dense()
        _magnitude(W, update)
        U, s, Vh = (M.numpy() for M in torch.linalg.svd(torch.from_numpy(W), full_matrices=False))
        left, right, bound = Basis(U), Basis(Vh.T), float(max(W.shape) * EPS * s[0])
        floor = _floor(update)
    else:
        floor = None
        with np.errstate(all="ignore"):
            roots = _roots(update, method == "auto", MAX_CONDITION_OF_VECTORS, bases=True)
            core = _finite(roots.L_B.T @ roots.L_A, "B·A", update)
            X, s, Yh = np.linalg.svd(core, full_matrices=False)
            k, scale = update.capacity, abs(update.scale)
            sign = -1.0 if update.scale < 0 else 1.0
            left = _through(roots.B, roots.L_B, sign * X[:, :k], roots.algorithm)
            right = _through(roots.A, roots.L_A, Yh.T[:, :k], roots.algorithm)
            s, bound = scale * s[:k], scale * roots.error_bound(float(s[0]))
    _check_size(s, bound, update)
    return Decomposition(left, s, right, rank(s, bound, update, floor), bound)


def svd(update: Update) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (d_out, k), s (k,), Vh (k, d_in) of ΔW, k its capacity, as `scipy.linalg.svd` gives them.

    Signs are free, and vectors rotate within ties; where s = 0 they are an arbitrary orthonormal
    completion. Raises CheckpointError where ΔW holds NaN or Inf.
    """
    found = decomposition(update, "svd")
    return found.left.vectors(), found.s, found.right.vectors().T


def rank(s: np.ndarray, error_bound: float, update: Update, floor: float | None = None) -> int:
    """How many of the values are told from zero: from their error, rounding and the noise floor."""
    rounding = max(update.shape) * EPS * s[0]
    return metrics.rank(s, max(error_bound, floor or 0.0, rounding))


def _floor(update: DenseUpdate) -> float | None:
    return update.floor() if callable(update.floor) else update.floor


@dataclass(frozen=True, eq=False)
class _Roots:
    """B (d_out, r) and A, turned, (d_in, r), in float64, with L Lᵀ the Gram matrix of each.

    After "qr", B and A are the orthonormal columns of each instead, if they were asked for.
    condition: the larger condition of the two L, scaled to unit rows.
    """

    B: np.ndarray
    A: np.ndarray
    L_B: np.ndarray
    L_A: np.ndarray
    algorithm: str
    condition: float

    def error_bound(self, s1: float) -> float:
        """Of the singular values of L_BᵀL_A, the largest of which is s1.

        ΔW is a sum of products bᵢaᵢ; where they cancel, s₁ is smaller than the largest of them
        and its error is not. (Row i of L is as long as column i of its factor.)
        """
        products = np.linalg.norm(self.L_B, axis=1) * np.linalg.norm(self.L_A, axis=1)
        size = max(s1, float(products.max()))
        return 10 * self.L_B.shape[0] * EPS * self.condition * size


def _roots(update: LowRankUpdate, cholesky: bool, max_condition: float, bases: bool) -> _Roots:
    """Cholesky of both Gram matrices where they are well conditioned, else QR of both factors."""
    B, A = float64(update.B), float64(update.A).T
    root_B = _cholesky(B, max_condition) if cholesky else None
    root_A = _cholesky(A, max_condition) if root_B else None
    if root_B and root_A:
        (L_B, condition_B), (L_A, condition_A) = root_B, root_A
        return _Roots(B, A, L_B, L_A, "cholesky", max(condition_B, condition_A))
    B, A = _finite(B, "B", update), _finite(A, "A", update)
    if not bases:
        L_B, L_A = (np.transpose(np.linalg.qr(M, mode="r")) for M in (B, A))
        return _Roots(B, A, L_B, L_A, "qr", 1.0)
    (Q_B, R_B), (Q_A, R_A) = (np.linalg.qr(M) for M in (B, A))
    return _Roots(Q_B, Q_A, R_B.T, R_A.T, "qr", 1.0)


def _through(M: np.ndarray, L: np.ndarray, X: np.ndarray, algorithm: str) -> Basis:
    """The vectors that X is in the coordinates of the core; M = Q Lᵀ, or Q itself after "qr"."""
    return Basis(M, X if algorithm == "qr" else np.linalg.solve(L.T, X))


def _low_rank(update: LowRankUpdate, method: str) -> Spectrum:
    with np.errstate(all="ignore"):  # NaN, Inf and overflow are found by what they lead to
        roots = _roots(update, method == "auto", MAX_CONDITION, bases=False)
        core = _finite(roots.L_B.T @ roots.L_A, "B·A", update)
        s = np.linalg.svd(core, compute_uv=False)[: update.capacity]
        scale = abs(update.scale)
        return Spectrum(scale * s, roots.algorithm, scale * roots.error_bound(float(s[0])))


def _cholesky(M: np.ndarray, max_condition: float) -> tuple[np.ndarray, float] | None:
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
    if not lengths[0] <= max_condition * lengths[-1]:
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


def _check_size(s: np.ndarray, error_bound: float, update: Update) -> None:
    if not max(s.sum(), error_bound) < LARGEST:
        raise CheckpointError(f"{_label(update)}: ΔW is too large for float64")


def _label(update: Update) -> str:
    return f"{update.source}: {update.name}" if update.source else update.name
