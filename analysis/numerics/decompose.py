"""Compute the singular values of an update, or its singular vectors too, with an error bound.

A low-rank update is never multiplied out. If L_B L_Bᵀ = BᵀB and L_A L_Aᵀ = AAᵀ, there are Q_B
and Q_A with orthonormal columns such that B = Q_B L_Bᵀ and A = L_A Q_Aᵀ; so the singular values of
B A are those of the small core L_BᵀL_A. `kronecker` has those of a Kronecker product.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis import CheckpointError, extras
from analysis.numerics import density, device, kronecker, metrics, topk, turning
from analysis.numerics.turning import Turning
from analysis.update import DenseUpdate, KroneckerUpdate, LowRankUpdate, Update, float64

EPS = float(np.finfo(np.float64).eps)
# Cholesky of the Gram matrices is used up to this condition number, QR of the factors beyond it.
MAX_CONDITION = 1e3
# The same for singular vectors, whose orthogonality suffers by the square of the condition number.
MAX_CONDITION_OF_VECTORS = 1e2
SMALLEST_SQUARE = 1e-200  # squares in a Gram matrix that are smaller have lost digits
LARGEST = 1e300  # beyond it, sums over the singular values of several modules would overflow
K = 64  # values that "topk" computes by default
# What a core is taken to do: floating-point operations of a whole spectrum, and entries of ΔW that
# are multiplied with a few vectors, per second.
RATE, PASS = 2e10, 1e9
# From this size on, a Gram matrix is computed in so many panels of columns, its upper triangle left
# out; smaller ones keep the last digits that were published.
LARGE, PANELS = 1024, 8
ROWS = 2048  # rows of a dense update that are converted to float64 at a time


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of an update, and how they were computed.

    s: (capacity,), float64, descending.
    algorithm: "cholesky" or "qr" of the factors; "kronecker" from those of two matrices; "gram" or
        "svd" of a dense update; "topk" or "density" if s holds only the largest values of one.
    error_bound: |s − exact| is at most this.
    floor: the noise floor of ΔW; None if nothing was rounded.
    noise: the root mean square of its rounding; None if it is not known.
    norm: ‖ΔW‖_F, if s holds only the largest values; None if it holds all.
    bounds: measure -> lower bound, upper bound, and when they hold (`topk.Top.bounds`), then.
    estimates: measure -> estimate of a number that needs all values, after "density".
    """

    s: np.ndarray
    algorithm: str
    error_bound: float
    floor: float | None = None
    noise: float | None = None
    norm: float | None = None
    bounds: dict[str, tuple[float, float, str]] | None = None
    estimates: dict[str, float] | None = None


METHODS = ("auto", "svd", "topk", "density")


@dataclass(frozen=True)
class Method:
    """How updates are decomposed.

    name: "auto", the fastest algorithm that keeps its bound (Cholesky or QR of the factors; for a
        dense update the eigenvalues of its Gram matrix), or "svd", the most accurate one (QR of the
        factors; a full SVD). "topk" computes only the k largest values of a dense update (`topk`),
        "density" the largest ones and estimates of what the others add up to (`density`); a
        low-rank update is decomposed by "auto" then.
    k: values of "topk".
    seconds: for "auto", how long one dense update may take on a core of RATE and PASS; beyond it
        "density" or, where that takes longer too, "topk" is used. It goes by the shape alone, so
        that the choice does not depend on how busy the machine is. None for any time.

    Raises ValueError for an unknown name.
    """

    name: str = "auto"
    k: int = K
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"method is {self.name!r}; expected one of {', '.join(METHODS)}")

    def of(self, shape: tuple[int, int]) -> str:
        """Return the name that applies to a dense update of a shape (d_out, d_in).

        >>> method = Method("auto", seconds=5)
        >>> method.of((2048, 2048)), method.of((4096, 4096)), method.of((28672, 8192))
        ('auto', 'density', 'topk')
        """
        if self.name != "auto" or self.seconds is None:
            return self.name
        small, large = sorted(shape)
        if (small**2 * large + 4 / 3 * small**3) / RATE <= self.seconds:
            return "auto"
        passes = 2 * (density.STEPS + 16)
        return "density" if passes * small * large / PASS <= self.seconds else "topk"


def singular_values(update: Update, method: str = "auto") -> np.ndarray:
    """Singular values of ΔW, (capacity,), float64, descending; all zero for ΔW = 0.

    method and errors: as for `spectrum`.

    >>> update = LowRankUpdate("q_proj", B=np.diag([3.0, 4.0]), A=np.eye(2), scale=0.5)
    >>> singular_values(update).round(6).tolist()
    [2.0, 1.5]
    """
    return spectrum(update, method).s


def spectrum(update: Update, method: str | Method = "auto") -> Spectrum:
    """Return the singular values of ΔW, the algorithm that was used and its error bound.

    method: its name, or with settings. Raises CheckpointError if ΔW holds NaN or Inf.

    >>> nearly_equal = np.array([[1.0, 1.0], [0.0, 1e-9]])  # its columns
    >>> spectrum(LowRankUpdate("q_proj", B=np.eye(2), A=np.eye(2))).algorithm
    'cholesky'
    >>> spectrum(LowRankUpdate("q_proj", B=nearly_equal, A=np.eye(2))).algorithm
    'qr'
    """
    method = Method(method) if isinstance(method, str) else method
    if isinstance(update, LowRankUpdate):
        result = _low_rank(update, "svd" if method.name == "svd" else "auto")
    elif isinstance(update, KroneckerUpdate):
        s, bound = kronecker.singular_values(update)
        result = Spectrum(_finite(s, "ΔW", update), "kronecker", bound)
    else:
        result = _dense(update, method.of(update.shape), method.k)
        noise = update.noise() if update.noise and result.s[0] > 0 else None
        result = replace(result, floor=_floor(update), noise=noise)
    _check_size(result.s, result.error_bound, update)
    return result


def _dense(update: DenseUpdate, name: str, k: int) -> Spectrum:
    if name == "svd":
        return _dense_svd(update)
    if name == "auto":
        return _dense_gram(update)
    W = update.load()
    _magnitude(W, update)
    found = density.estimate(W) if name == "density" else topk.top(W, k)
    top = found.top if isinstance(found, density.Density) else found
    if len(top.s) == update.capacity:
        return Spectrum(top.s, "svd", top.error_bound)
    bounds = found.bounds(update.capacity)
    estimates = found.values if isinstance(found, density.Density) and top.norm else None
    return Spectrum(top.s, name, top.error_bound, norm=top.norm, bounds=bounds, estimates=estimates)


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal vectors in R^d, the columns of M @ P, (d, k), which is not multiplied out.

    P: None stands for the identity.
    """

    M: np.ndarray
    P: np.ndarray | None = None

    def vectors(self, k: int | None = None) -> np.ndarray:
        """Return the first k vectors as columns, (d, k); all of them by default."""
        return self.M[:, :k] if self.P is None else self.M @ self.P[:, :k]

    def single(self) -> np.ndarray:
        """Return all vectors as columns in single precision, (d, k), twice as fast."""
        M = self.M.astype(np.float32)
        return M if self.P is None else M @ self.P.astype(np.float32)

    def against(self, other: "Basis") -> np.ndarray:
        """Return the cosines of these vectors with those of `other`, (k, other's k)."""
        C = self.M.T @ other.M
        C = C if self.P is None else self.P.T @ C
        return C if other.P is None else C @ other.P


@dataclass(frozen=True, eq=False)
class Decomposition:
    """ΔW = U diag(s) Vᵀ, with k = capacity.

    left: U, k vectors in R^d_out.
    s: (k,), float64, descending.
    right: V, k vectors in R^d_in.
    rank: number of singular values above the rank cutoff (see `rank`); the vectors beyond it are
        noise or an arbitrary orthonormal completion.
    error_bound: of s, as in `Spectrum`.
    turning: how far rounding at storage can have turned the vectors; None if nothing was rounded.
    """

    left: Basis
    s: np.ndarray
    right: Basis
    rank: int
    error_bound: float
    turning: Turning | None = None


def decomposition(update: Update, method: str = "auto") -> Decomposition:
    """Return the singular values and vectors of ΔW; those of a low-rank one as factors.

    The signs of vectors are free, and vectors of equal values rotate into one another. method: as
    for `spectrum`; "svd" always uses QR of the factors. Raises CheckpointError if ΔW holds NaN or
    Inf.

    >>> B, A = np.array([[0.0], [2.0], [0.0]]), np.array([[3.0, 4.0]])
    >>> update = LowRankUpdate("q_proj", B, A)
    >>> result = decomposition(update)
    >>> result.s.round(6).tolist(), result.rank
    ([10.0], 1)
    >>> abs(result.right.vectors()).round(6).tolist()
    [[0.6], [0.8]]
    """
    if isinstance(update, KroneckerUpdate):
        _finite(kronecker.singular_values(update)[0], "ΔW", update)
        return decomposition(kronecker.low_rank(update), method)
    if isinstance(update, DenseUpdate):
        with extras.named():
            import torch

        W = update.dense()
        _magnitude(W, update)
        # torch takes no negative strides.
        M = torch.from_numpy(np.ascontiguousarray(W))
        U, s, Vh = (x.numpy() for x in torch.linalg.svd(M, full_matrices=False))
        left, right, bound = Basis(U), Basis(Vh.T), float(max(W.shape) * EPS * s[0])
        floor = _floor(update)
        turned = turning.of_floor(s, *update.shape, floor=floor)
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
            known = turning.Core(
                s,
                of_B=scale * roots.L_B @ X[:, :k],
                of_A=scale * roots.L_A @ Yh.T[:, :k],
                norms_B=np.linalg.norm(roots.L_B, axis=1),
                norms_A=np.linalg.norm(roots.L_A, axis=1),
            )
            turned = turning.of_factors(update, known, left.single, right.single)
    _check_size(s, bound, update)
    return Decomposition(left, s, right, rank(s, bound, update, floor), bound, turned)


def svd(update: Update) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U (d_out, k), s (k,), Vh (k, d_in) of ΔW as `scipy.linalg.svd` does, k = capacity.

    The signs of vectors are free, vectors of equal values rotate into one another, and vectors of
    value 0 are an arbitrary orthonormal completion. Raises CheckpointError if ΔW holds NaN or Inf.

    >>> update = LowRankUpdate("q_proj", B=np.array([[0.0], [2.0]]), A=np.array([[3.0, 0.0, 4.0]]))
    >>> U, s, Vh = svd(update)
    >>> (U * s @ Vh).round(6).tolist() == update.dense().tolist()
    True
    """
    result = decomposition(update, "svd")
    return result.left.vectors(), result.s, result.right.vectors().T


def rank(s: np.ndarray, error_bound: float, update: Update, floor: float | None = None) -> int:
    """Return the number of singular values above the rank cutoff.

    The cutoff is the largest of `error_bound`, the noise floor (None: no noise) and the rounding
    of ΔW to float64, max(d_out, d_in) · eps · s₁; s (k,) descending, in units of ΔW.

    >>> update = LowRankUpdate("q_proj", B=np.ones((8, 4)), A=np.ones((4, 8)))
    >>> s = np.array([2.0, 1.0, 1e-9, 1e-17])
    >>> rank(s, 1e-15, update), rank(s, 1e-15, update, floor=0.1)
    (3, 2)
    """
    rounding = max(update.shape) * EPS * s[0]
    return metrics.rank(s, max(error_bound, floor or 0.0, rounding))


def _floor(update: DenseUpdate) -> float | None:
    return update.floor() if callable(update.floor) else update.floor


@dataclass(frozen=True, eq=False)
class _Roots:
    """Both factors in float64, with a root L of the Gram matrix of each: L Lᵀ is that matrix.

    B (d_out, r), A (d_in, r): the factors, A transposed; after "qr" their orthonormal columns
        instead, if these were asked for.
    L_B, L_A: (r, r), or fewer columns after "qr" of a factor that has fewer rows than columns.
    algorithm: "cholesky" or "qr".
    condition: the larger condition number of the two L, scaled to rows of length 1.
    """

    B: np.ndarray
    A: np.ndarray
    L_B: np.ndarray
    L_A: np.ndarray
    algorithm: str
    condition: float

    def error_bound(self, s1: float) -> float:
        """Error bound of the singular values of L_BᵀL_A, the largest of which is s1.

        ΔW is a sum of products bᵢaᵢ; if they cancel, s₁ is smaller than the largest of them, but
        its error is not. (Row i of L is as long as column i of its factor.)
        """
        products = np.linalg.norm(self.L_B, axis=1) * np.linalg.norm(self.L_A, axis=1)
        size = max(s1, float(products.max()))
        return 10 * self.L_B.shape[0] * EPS * self.condition * size


def _roots(update: LowRankUpdate, cholesky: bool, max_condition: float, bases: bool) -> _Roots:
    """Return roots of both Gram matrices, from Cholesky if that is accurate, else from QR.

    cholesky: False uses QR in any case.
    max_condition: the largest condition number for which Cholesky is used.
    bases: True if the orthonormal columns of the factors are needed after QR.
    """
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
    """Return the singular vectors Q X of ΔW, X being those of the core.

    M = Q Lᵀ after "cholesky"; M = Q after "qr".
    """
    return Basis(M, X if algorithm == "qr" else np.linalg.solve(L.T, X))


def _low_rank(update: LowRankUpdate, method: str) -> Spectrum:
    with np.errstate(all="ignore"):  # NaN, Inf and overflow show in the core and in s
        roots = _roots(update, method == "auto", MAX_CONDITION, bases=False)
        core = _finite(roots.L_B.T @ roots.L_A, "B·A", update)
        s = np.linalg.svd(core, compute_uv=False)[: update.capacity]
        scale = abs(update.scale)
        return Spectrum(scale * s, roots.algorithm, scale * roots.error_bound(float(s[0])))


def _cholesky(M: np.ndarray, max_condition: float) -> tuple[np.ndarray, float] | None:
    """Return L with L Lᵀ = MᵀM, and the condition number of L scaled to rows of length 1.

    None if QR must be used instead. A Gram matrix of more columns than M has rows is singular, and
    could have any size. It is scaled to a unit diagonal first: columns of M of very different
    length only look badly conditioned (van der Sluis 1969).
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
    """Singular values as square roots of the eigenvalues of the smaller Gram matrix, in float64."""
    with extras.named():
        import torch  # its LAPACK is 3 to 4 times as fast as scipy's here; the import takes 2 s

    W = update.load()
    W = W if W.shape[0] >= W.shape[1] else W.T
    size = _magnitude(W, update)
    if size == 0:
        return Spectrum(np.zeros(update.capacity), "gram", 0.0)
    n = W.shape[1]
    G = torch.zeros(n, n, dtype=torch.float64, device=device.current())
    width = -(-n // PANELS) if n >= LARGE else n
    for i in range(0, W.shape[0], ROWS):
        # Divided by the largest entry, so that no square overflows or vanishes.
        rows = torch.from_numpy(np.divide(W[i : i + ROWS], size, dtype=np.float64)).to(G.device)
        for j in range(0, n, width):
            G[j:, j : j + width].addmm_(rows[:, j:].T, rows[:, j : j + width])
    values = torch.linalg.eigvalsh(G).cpu().numpy()[::-1]  # of the lower triangle
    s = size * np.sqrt(np.maximum(values, 0.0))
    return Spectrum(s, "gram", float(np.sqrt(max(W.shape) * EPS) * s[0]))


def _dense_svd(update: DenseUpdate) -> Spectrum:
    with extras.named():
        import torch

    W = update.load()
    _magnitude(W, update)
    M = torch.from_numpy(np.array(W, dtype=np.float64)).to(device.current())
    s = torch.linalg.svdvals(M).cpu().numpy()
    return Spectrum(s, "svd", float(max(W.shape) * EPS * s[0]))


def _magnitude(W: np.ndarray, update: DenseUpdate) -> float:
    """Return max |W|; CheckpointError if W holds NaN or Inf."""
    low, high = W.min(), W.max()  # NaN if any entry is NaN
    _finite(np.array([low, high]), "ΔW", update)
    return max(float(high), -float(low))


def _finite(x: np.ndarray, what: str, update: Update) -> np.ndarray:
    """Return x; CheckpointError if it holds NaN or Inf."""
    if not np.isfinite(x).all():
        raise CheckpointError(f"{_label(update)}: {what} holds NaN or Inf; expected finite numbers")
    return x


def _check_size(s: np.ndarray, error_bound: float, update: Update) -> None:
    if not max(s.sum(), error_bound) < LARGEST:
        raise CheckpointError(
            f"{_label(update)}: ΔW is too large for float64; expected singular values that sum to"
            f" less than {LARGEST:g}"
        )


def _label(update: Update) -> str:
    return f"{update.source}: {update.name}" if update.source else update.name
