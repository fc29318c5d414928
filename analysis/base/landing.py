"""Compare an update with the weight that it changes: its size, and where in it the energy lands.

W0 (d_out, d_in) is read for one module at a time; ΔW comes decomposed (`numerics.decompose`), and
its factors are never multiplied out. Sizes and amplifications take one to four seconds for a W0 of
4096 × 4096. Landing and intruders need every singular vector of W0; `base.vectors.estimate` says
how long that takes, and the vectors are kept in a cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis import CheckpointError, checkpoint, extras
from analysis.base import vectors as base_vectors
from analysis.base.beside import collect
from analysis.formats import Options
from analysis.numerics import decompose, metrics, parallel
from analysis.numerics.decompose import EPS, Basis, Decomposition
from analysis.pairs import meeting
from analysis.pairs.members import ONE, Member, Members
from analysis.results import AgainstBase, Row
from analysis.update import DenseUpdate, Update, float64

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

COLUMNS = (
    "relative_spectral", "relative_frobenius",
    "amplification_4", "amplification_16", "amplification_k",
    "base_share_k", "base_share_chance",
)  # fmt: skip
DECILES = 10
LANDING_COLUMNS = tuple(
    f"{side}_{part}" for side in ("left", "right") for part in (*range(1, DECILES + 1), "outside")
)
TOP = 10  # vectors of W0 + ΔW that can be intruders
EPSILON = 0.5  # a vector is an intruder if its largest |cosine| with one of W0 is below
EPSILONS = tuple(round(0.1 * i, 1) for i in range(1, 10))  # the same for the curve
INTRUDER_COLUMNS = (
    *(f"intruders_{epsilon}" for epsilon in EPSILONS),
    *(f"null_intruders_{epsilon}" for epsilon in EPSILONS),
)
DRAWS = 3  # random updates for the null of the intruders
ROW_COLUMNS = (*ONE, *COLUMNS, *LANDING_COLUMNS, "intruders", *INTRUDER_COLUMNS)
SOON = 60.0  # seconds; landing is computed without being requested if it takes less
SEED = 0
SMALL = 256  # up to this size, a full SVD is faster than a Krylov method for the largest values
RESOLVED = 1e-6  # of the largest value; the square of a smaller value has lost digits
TIED = 1e-9  # of the largest value; singular vectors of values closer than that span one plane


@np.errstate(over="ignore", invalid="ignore")  # a ratio beyond float64 is None
def against(
    update: Update, decomposition: Decomposition, W0: np.ndarray
) -> dict[str, float | None]:
    """Return the size of ΔW relative to W0, and the part of W0 in its directions, by COLUMNS.

    relative_spectral, relative_frobenius: ‖ΔW‖/‖W0‖ in either norm.
    amplification_4, _16, _k: ‖ΔW‖_F / ‖U_kᵀ W0 V_k‖_F, U_k and V_k being the first k singular
        vectors of ΔW, at k = 4, 16 and the rank of ΔW (Hu et al. 2021, 7.3): how much larger ΔW is
        than what W0 already did between these directions.
    base_share_k: the share of W0's energy there, ‖U_kᵀ W0 V_k‖²_F / ‖W0‖²_F, at the rank of ΔW,
        in [0, 1].
    base_share_chance: its mean over random directions.

    ΔW -> c·ΔW multiplies sizes and amplifications by |c| and does not change shares; rotating ΔW
    and W0 together changes nothing. If the values k and k + 1 are equal, U_k is not unique, and
    neither are the numbers that depend on it. A number is None if k exceeds the rank, if W0 = 0, or
    if W0 has only rounding in these directions; for ΔW = 0 the sizes are 0 and the rest is None.
    One float64 copy of W0 is made. Raises CheckpointError if the shapes differ.
    """
    if W0.shape != update.shape:
        raise CheckpointError(f"{update.name}: is {W0.shape} in the base; expected {update.shape}")
    W, rank = float64(W0), decomposition.rank
    size = metrics.frobenius_norm(decomposition.s)
    size0 = float(np.linalg.norm(W))
    core = decomposition.left.vectors(rank).T @ W @ decomposition.right.vectors(rank)

    def amplification(k: int) -> float | None:
        if not 1 <= k <= rank:
            return None
        there = float(np.linalg.norm(core[:k, :k]))
        return _ratio(size, there if there > max(W.shape) * EPS * size0 else 0.0)

    share = _ratio(float(np.linalg.norm(core)), size0) if rank else None
    return {
        "relative_spectral": _ratio(float(decomposition.s[0]), spectral_norm(W)),
        "relative_frobenius": _ratio(size, size0),
        "amplification_4": amplification(4),
        "amplification_16": amplification(16),
        "amplification_k": amplification(rank),
        "base_share_k": None if share is None else share**2,
        "base_share_chance": rank**2 / W.size if rank else None,
    }


def _ratio(a: float, b: float) -> float | None:
    """Return a / b, both nonnegative; None if it is not a finite number."""
    return a / b if 0 < b < math.inf and math.isfinite(a / b) else None


def spectral_norm(W: np.ndarray) -> float:
    """‖W‖₂, up to rounding; W (d_out, d_in), float64."""
    return float(_top(W, 1)[1][0])


def _top(W: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return U (d_out, k) and s (k,), the k largest singular values and their left vectors.

    Accurate up to rounding. Computed by ARPACK on the smaller Gram matrix, which is not formed, to
    convergence; by a full SVD if that matrix is small, or if it would lose the smallest of the
    values.
    """
    m, size = min(W.shape), float(np.abs(W).max())
    found = _krylov(W, k, size) if m > max(SMALL, 2 * k) and size > 0 else None
    if found is not None:
        return found
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    return U[:, :k], s[:k]


def _krylov(
    W: "np.ndarray | LinearOperator", k: int, size: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what `_top` does, by ARPACK; None if it does not converge or the k-th loses digits.

    size: of a typical entry, so that no square overflows or vanishes.
    """
    with extras.named():
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    m, is_tall = min(W.shape), W.shape[0] >= W.shape[1]
    tall = W if is_tall else W.T
    gram = LinearOperator((m, m), lambda x: tall.T @ (tall @ (x / size)) / size, dtype=W.dtype)
    v0 = np.random.default_rng(SEED).standard_normal(m)
    try:
        V = eigsh(gram, k, v0=v0)[1]
    except ArpackNoConvergence:
        return None
    P, s, Qh = np.linalg.svd(tall @ V, full_matrices=False)
    if s[-1] <= RESOLVED * s[0]:
        return None
    return (P if is_tall else V @ Qh.T), s


@dataclass(frozen=True, eq=False)
class Landing:
    """The spread of the energy ‖ΔW‖²_F over the singular directions of W0, on either side.

    left: (10,), the shares ‖u0ᵢᵀΔW‖² of the left singular vectors u0ᵢ of W0, summed by decile of i
        among 1 … min(d_out, d_in), the largest singular values first.
    left_outside: the share orthogonal to all of them, which exists if d_out > d_in. left and
        left_outside sum to 1.
    right, right_outside: the same for the right singular vectors.
    """

    left: np.ndarray
    left_outside: float
    right: np.ndarray
    right_outside: float

    def columns(self) -> dict[str, float | None]:
        """Return the shares by LANDING_COLUMNS; None if undefined."""
        shares = [*self.left, self.left_outside, *self.right, self.right_outside]
        values = (float(share) if np.isfinite(share) else None for share in shares)
        return dict(zip(LANDING_COLUMNS, values, strict=True))


def landing(update: Decomposition, base: Decomposition) -> Landing:
    """Return the spread of ΔW's energy over the singular directions of W0.

    update: the decomposition of ΔW; base: that of W0, from `decompose_base`. Unchanged by
    ΔW -> c·ΔW and by rotations of both. All nan for ΔW = 0 and for W0 = 0. Among equal singular
    values of W0, and among zeros, the order is arbitrary, and the deciles with it.
    """
    left = _shares(base.left, update.left, update, base)
    right = _shares(base.right, update.right, update, base)
    return Landing(left[:-1], float(left[-1]), right[:-1], float(right[-1]))


def landing_chance(d_out: int, d_in: int) -> Landing:
    """Return the mean of `landing` over random directions of ΔW: size of each decile over d."""
    m = min(d_out, d_in)
    sizes = np.bincount(deciles(m), minlength=DECILES)
    return Landing(sizes / d_out, (d_out - m) / d_out, sizes / d_in, (d_in - m) / d_in)


def deciles(m: int) -> np.ndarray:
    """Return the decile 0 … 9 of each of m indices, (m,); they are as even as m allows."""
    return np.arange(m) * DECILES // m


def _shares(
    of_W0: Basis, of_update: Basis, update: Decomposition, base: Decomposition
) -> np.ndarray:
    """Return the shares of the deciles, and the share outside, (11,).

    of_W0, of_update: the left or the right vectors of `base` and of `update`.
    """
    if update.rank == 0 or base.rank == 0:
        return np.full(DECILES + 1, np.nan)
    s = update.s[: update.rank] / update.s[0]
    cosines = of_W0.against(of_update)[:, : update.rank]
    m, d = base.s.size, of_W0.M.shape[0]
    energy = np.bincount(deciles(m), cosines**2 @ s**2 / np.sum(s**2), minlength=DECILES)
    outside = max(0.0, 1 - float(energy.sum())) if d > m else 0.0
    shares = np.append(energy, outside)
    return shares / shares.sum()


def resemblance(
    update: Decomposition, W0: np.ndarray, base: Decomposition, top: int = TOP
) -> np.ndarray | None:
    """Return how much the first left singular vectors of W0 + ΔW resemble those of W0.

    (top,), or fewer: for each vector its largest |cosine| with a left singular vector of W0, in
    [0, 1].

    update: the decomposition of ΔW.
    W0: (d_out, d_in).
    base: the decomposition of W0, from `decompose_base`.
    top: the number of vectors of W0 + ΔW that are looked at.

    If values of W0 are equal, every vector in their span is a singular vector, and the cosine is
    that with the span. Vectors of value zero do not count, in W0 nor in W0 + ΔW. All 1 for ΔW = 0;
    None for W0 = 0.
    """
    if base.rank == 0:
        return None
    if update.rank == 0:
        return np.ones(min(top, base.rank))
    U, s = _top(_sum(W0, update), min(top, *W0.shape))
    U = U[:, s > max(W0.shape) * EPS * s[0]]
    return _greatest(base.left.against(Basis(U)), base)


def _greatest(cosines: np.ndarray, base: Decomposition) -> np.ndarray:
    """Return the largest |cosine| of each column with a vector of W0, or the span of equal ones."""
    squares = cosines[: base.rank] ** 2
    s0 = base.s[: base.rank]
    starts = np.flatnonzero(np.append(True, s0[:-1] - s0[1:] > TIED * s0[0]))
    return np.sqrt(np.add.reduceat(squares, starts, axis=0).max(axis=0))


def intruders(greatest: np.ndarray, epsilon: float = EPSILON) -> int:
    """Return how many of the first left singular vectors of W0 + ΔW resemble none of W0.

    Shuttleworth et al., arXiv 2410.21228. greatest: of `resemblance`; a vector is an intruder if it
    is smaller than epsilon.

    >>> intruders(np.array([0.9, 0.4, 0.1]))
    2
    """
    return int(np.count_nonzero(greatest < epsilon))


def null_resemblance(
    shape: tuple[int, int], norm: float, r: int | None, base: Decomposition, top: int = TOP
) -> list[np.ndarray]:
    """Return the `resemblance` for DRAWS random updates in the place of ΔW.

    shape: (d_out, d_in).
    norm: ‖ΔW‖_F, the Frobenius norm of the random updates.
    r: they are products of Gaussian factors of this rank; None: one Gaussian matrix.
    base: the decomposition of W0, which is not zero.

    In the bases of the singular vectors of W0, which leave Gaussian matrices as they are, W0 is
    diagonal: a product with W0 + B A takes (d_out + d_in)·r operations. The draws are seeded; three
    take 0.03 to 0.2 s of one core for factors of a 4096 × 4096 weight, and 3 s for a dense update.
    """
    found = []
    for seed in range(SEED, SEED + DRAWS):
        U, s = _drawn(shape, norm, r, base.s, min(top, *shape), seed)
        found.append(_greatest(U[: base.s.size, s > max(shape) * EPS * s[0]], base))
    return found


def _drawn(
    shape: tuple[int, int], norm: float, r: int | None, s0: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k left singular vectors (d_out, k) of diag(s0) + a random update, and s."""
    with extras.named():
        from scipy.sparse.linalg import LinearOperator

    (d_out, d_in), m = shape, s0.size
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((d_out, d_in if r is None else r))
    A = None if r is None else rng.standard_normal((r, d_in))
    # ‖B A‖² = ⟨BᵀB, AAᵀ⟩
    size = np.linalg.norm(B) if A is None else np.sqrt(np.sum((B.T @ B) * (A @ A.T)))
    B *= norm / size

    def times(x: np.ndarray) -> np.ndarray:
        y = B @ (x if A is None else A @ x)
        y[:m] += (s0 * x[:m].T).T
        return y

    def transposed(y: np.ndarray) -> np.ndarray:
        x = B.T @ y if A is None else A.T @ (B.T @ y)
        x[:m] += (s0 * y[:m].T).T
        return x

    if m > max(SMALL, 2 * k):
        operator = LinearOperator(
            shape, times, transposed, matmat=times, rmatmat=transposed, dtype=np.dtype(float)
        )
        found = _krylov(operator, k, size=float(s0[0]))
        if found is not None:
            return found
    W = B if A is None else B @ A
    W[np.arange(m), np.arange(m)] += s0
    return _top(W, k)


def intruder_columns(greatest: np.ndarray, of_null: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the numbers of intruders of an update and of random ones, by INTRUDER_COLUMNS.

    greatest: of `resemblance`; of_null: of `null_resemblance`, whose numbers are means.
    """
    numbers = [float(intruders(greatest, epsilon)) for epsilon in EPSILONS]
    by_null = [
        sum(intruders(drawn, epsilon) for drawn in of_null) / len(of_null) for epsilon in EPSILONS
    ]
    return dict(zip(INTRUDER_COLUMNS, [*numbers, *by_null], strict=True))


def _sum(W0: np.ndarray, update: Decomposition) -> np.ndarray:
    """Return W0 + ΔW in float64, without forming ΔW as a whole."""
    W = np.array(W0, dtype=np.float64)
    left = update.left.vectors(update.rank) * update.s[: update.rank]
    right = update.right.vectors(update.rank)
    for i in range(0, len(W), decompose.ROWS):
        W[i : i + decompose.ROWS] += left[i : i + decompose.ROWS] @ right.T
    return W


def analyse(
    paths: Sequence[str | Path | checkpoint.Run],
    model: str | Path,
    *,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    landing: bool = False,
    intruders: bool = False,
    cache: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
    progress: bool = False,
) -> AgainstBase:
    """Return, for each update of the checkpoints at `paths`, its comparison with the base.

    paths: the checkpoints; one that was not trained from `model` is skipped.
    model: the base, a directory or a name on the hub.
    options: what a checkpoint does not say of itself; by default that its base is `model`.
    modules: a regular expression that a module's name must contain.
    rename: (pattern, replacement), applied to the names of modules.
    landing: compute the landing, for which every W0 is decomposed. It is also computed if that
        takes less than a minute, or is done for the intruders.
    intruders: count the intruders, and those of random updates, for which every W0 is decomposed.
    cache: directory for decompositions of W0 that were requested; None keeps none.
    say: is called with a line about the cost of the decompositions before they start.
    progress: show a bar on stderr if dense modules take longer than two seconds.
    """
    beside = collect(paths, model, options, modules, rename)
    modules_of = beside.collected.modules.values()
    shapes = [next(iter(by_run.values()))[0].shape for by_run in modules_of]
    requested = landing or intruders
    if beside.bases:
        with parallel.reproducible():
            landing = requested or base_vectors.estimate(shapes)[0] < SOON
            line = base_vectors.estimate_line(shapes, cache) if requested else ""
        if requested:
            say(line)
        elif not landing:
            say("the landing of ΔW is left out, because it takes long: see --landing")
    row = partial(
        _row,
        with_landing=landing,
        with_intruders=intruders,
        cache=cache if requested else None,
    )
    return beside.rows(Members.of, row, progress)


def _row(
    member: Member, W0: np.ndarray, with_landing: bool, with_intruders: bool, cache: Path | None
) -> Row:
    """Return the row of one update, by ROW_COLUMNS.

    member: the update.
    W0: the weight that it changes.
    with_landing, with_intruders: whether to compute these.
    cache: directory for the decomposition of W0; None keeps none.
    """
    update = member.decomposition
    row = member.columns | against(member.update, update, W0)
    if with_landing or with_intruders:
        base = base_vectors.decompose_base(W0, cache)
        if with_landing:
            row |= landing(update, base).columns()
        if with_intruders:
            row |= _intruder_row(member.update, update, W0, base)
    return {column: row.get(column) for column in ROW_COLUMNS}


def _intruder_row(update: Update, found: Decomposition, W0: np.ndarray, base: Decomposition) -> Row:
    """Return the numbers of intruders and those of the null; nothing for W0 = 0."""
    greatest = resemblance(found, W0, base)
    if greatest is None:
        return {}
    r = None if isinstance(update, DenseUpdate) else update.r
    norm = metrics.frobenius_norm(found.s)
    # For ΔW = 0, W0 is compared with itself.
    of_null = null_resemblance(W0.shape, norm, r, base) if norm > 0 else [greatest]
    return {
        "intruders": intruders(greatest),
        **intruder_columns(greatest, of_null),
    }
