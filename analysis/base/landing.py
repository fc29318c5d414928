"""An update beside the weight that it changes: how large it is, and where in it it lands.

W0 (d_out, d_in) is read for one module at a time, ΔW comes decomposed (`numerics.decompose`), and
its factors are never multiplied out. Sizes and amplification take one to four seconds for a W0 of
4096 × 4096; where ΔW lands and what intrudes need every singular vector of W0, which costs as much
as `estimate` says and is kept in a cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import CheckpointError, checkpoint
from analysis.base import vectors as base_vectors
from analysis.base.weights import open_base
from analysis.formats import Options
from analysis.names import expression
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Basis, Decomposition
from analysis.pairs import meeting
from analysis.pairs.members import ONE, Member, Members, over_modules
from analysis.results import AgainstBase, Row
from analysis.update import Update, float64

COLUMNS = (
    *("relative_spectral", "relative_frobenius"),
    *("amplification_4", "amplification_16", "amplification_k"),
    *("base_share_k", "base_share_chance"),
)
DECILES = 10
LANDING_COLUMNS = tuple(
    f"{side}_{part}" for side in ("left", "right") for part in (*range(1, DECILES + 1), "outside")
)
ROW_COLUMNS = (*ONE, *COLUMNS, *LANDING_COLUMNS, "intruders")
SOON = 60.0  # seconds: where ΔW lands is computed without asking
SEED = 0
SMALL = 256  # up to it, LAPACK finds all values sooner than a Krylov space finds the largest
RESOLVED = 1e-6  # of the largest value: below it, the square of a value has lost digits
TIED = 1e-9  # of the largest value: closer than that, two singular vectors are one plane


@np.errstate(over="ignore", invalid="ignore")  # there is no ratio to what is beyond float64
def against(update: Update, found: Decomposition, W0: np.ndarray) -> dict[str, float | None]:
    """The size of ΔW beside W0, and what of W0 lies in its directions, by COLUMNS.

    relative_*: ‖ΔW‖/‖W0‖ in either norm. amplification_k: ‖ΔW‖_F / ‖U_kᵀ W0 V_k‖_F, U_k and V_k
    the first k singular vectors of ΔW, at k = 4, 16 and (`_k`) its rank (Hu et al. 2021, 7.3): how
    much larger ΔW is than what W0 already did between its directions. base_share_k: the share of
    W0's energy there, ‖U_kᵀ W0 V_k‖²_F / ‖W0‖²_F at the rank of ΔW, in [0, 1], and its mean over
    random directions. ΔW -> c·ΔW multiplies sizes and amplifications by |c| and leaves shares;
    rotations of ΔW and W0 together leave all. Where the k-th and next value are equal, U_k is not
    unique, nor is what rests on it.

    None: k beyond the rank, W0 = 0, nothing of W0 there but rounding; for ΔW = 0 the sizes are 0
    and the rest None. One float64 copy of W0 is made. Raises CheckpointError for another shape.
    """
    if W0.shape != update.shape:
        raise CheckpointError(f"{update.name}: is {W0.shape} in the base; expected {update.shape}")
    W, rank = float64(W0), found.rank
    size = metrics.frobenius_norm(found.s)
    size0 = float(np.linalg.norm(W))
    core = found.left.vectors(rank).T @ W @ found.right.vectors(rank)

    def amplification(k: int) -> float | None:
        if not 1 <= k <= rank:
            return None
        there = float(np.linalg.norm(core[:k, :k]))
        return _ratio(size, there if there > max(W.shape) * EPS * size0 else 0.0)

    share = _ratio(float(np.linalg.norm(core)), size0) if rank else None
    return {
        "relative_spectral": _ratio(float(found.s[0]), spectral_norm(W)),
        "relative_frobenius": _ratio(size, size0),
        "amplification_4": amplification(4),
        "amplification_16": amplification(16),
        "amplification_k": amplification(rank),
        "base_share_k": None if share is None else share**2,
        "base_share_chance": rank**2 / W.size if rank else None,
    }


def _ratio(a: float, b: float) -> float | None:
    """a / b where it is a number; a and b not negative."""
    return a / b if 0 < b < math.inf and math.isfinite(a / b) else None


def spectral_norm(W: np.ndarray) -> float:
    """‖W‖₂, to rounding; W (d_out, d_in) float64."""
    return float(_top(W, 1)[1][0])


def _top(W: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """U (d_out, k) and s (k,): the k largest singular values and their left vectors, to rounding.

    By ARPACK on the smaller Gram matrix, which is not formed, run until it gains no more; by a full
    SVD where that is small, or where a Gram matrix would lose the values.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    m, size = min(W.shape), float(np.abs(W).max())
    if m > max(SMALL, 2 * k) and size > 0:
        tall = W if W.shape[0] >= W.shape[1] else W.T
        gram = LinearOperator((m, m), lambda x: tall.T @ (tall @ (x / size)) / size, dtype=W.dtype)
        v0 = np.random.default_rng(SEED).standard_normal(m)
        try:
            V = eigsh(gram, k, v0=v0)[1]
            P, s, Qh = np.linalg.svd(tall @ V, full_matrices=False)
            if s[-1] > RESOLVED * s[0]:
                return (P if tall is W else V @ Qh.T), s
        except ArpackNoConvergence:
            pass
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    return U[:, :k], s[:k]


@dataclass(frozen=True, eq=False)
class Landing:
    """How the energy ‖ΔW‖²_F is spread over the singular directions of W0, on either side.

    left (10,): the share ‖u0ᵢᵀΔW‖² of the i-th left singular vectors of W0, by decile of i among
    1 … min(d_out, d_in), the largest singular values first; left_outside: what is orthogonal to
    all of them, where d_out > d_in. They sum to 1. Likewise right.
    """

    left: np.ndarray
    left_outside: float
    right: np.ndarray
    right_outside: float

    def columns(self) -> dict[str, float | None]:
        """By LANDING_COLUMNS; None where undefined."""
        shares = [*self.left, self.left_outside, *self.right, self.right_outside]
        values = (float(share) if np.isfinite(share) else None for share in shares)
        return dict(zip(LANDING_COLUMNS, values, strict=True))


def landing(found: Decomposition, base: Decomposition) -> Landing:
    """Where ΔW lands in W0; base: `decompose_base(W0)`.

    Unchanged by ΔW -> c·ΔW and by rotations of both. All nan for ΔW = 0 and for W0 = 0. Among
    equal singular values of W0, zeros too, the order is arbitrary, and the deciles with it.
    """
    left = _shares(base.left, found.left, found, base)
    right = _shares(base.right, found.right, found, base)
    return Landing(left[:-1], float(left[-1]), right[:-1], float(right[-1]))


def landing_chance(d_out: int, d_in: int) -> Landing:
    """The mean of `landing` over random directions of ΔW: the sizes of the deciles over d."""
    m = min(d_out, d_in)
    sizes = np.bincount(_deciles(m), minlength=DECILES)
    return Landing(sizes / d_out, (d_out - m) / d_out, sizes / d_in, (d_in - m) / d_in)


def _deciles(m: int) -> np.ndarray:
    """0 … 9 for each of m indices, as evenly as m allows."""
    return np.arange(m) * DECILES // m


def _shares(
    of_W0: Basis, of_update: Basis, found: Decomposition, base: Decomposition
) -> np.ndarray:
    """The shares of the deciles, and of what is outside, (11,)."""
    if found.rank == 0 or base.rank == 0:
        return np.full(DECILES + 1, np.nan)
    s = found.s[: found.rank] / found.s[0]
    cosines = of_W0.against(of_update)[:, : found.rank]
    m, d = base.s.size, of_W0.M.shape[0]
    energy = np.bincount(_deciles(m), cosines**2 @ s**2 / np.sum(s**2), minlength=DECILES)
    outside = max(0.0, 1 - float(energy.sum())) if d > m else 0.0
    shares = np.append(energy, outside)
    return shares / shares.sum()


def intruders(
    found: Decomposition,
    W0: np.ndarray,
    base: Decomposition,
    top: int = 10,
    epsilon: float = 0.5,
) -> int | None:
    """How many of the first `top` left singular vectors of W0 + ΔW are new to W0.

    Those whose greatest |cosine| with any left singular vector of W0 is below epsilon (Shuttleworth
    et al., arXiv 2410.21228). base: `decompose_base(W0)`. Where values of W0 are equal, every
    vector of their span is a singular vector, and the cosine is that with the span; vectors of
    value zero do not count, on either side. 0 for ΔW = 0; None for W0 = 0.
    """
    if base.rank == 0:
        return None
    if found.rank == 0:
        return 0
    U, s = _top(_sum(W0, found), min(top, *W0.shape))
    U = U[:, s > max(W0.shape) * EPS * s[0]]
    squares = base.left.against(Basis(U))[: base.rank] ** 2
    s0 = base.s[: base.rank]
    starts = np.flatnonzero(np.append(True, s0[:-1] - s0[1:] > TIED * s0[0]))
    greatest = np.add.reduceat(squares, starts, axis=0).max(axis=0)
    return int(np.count_nonzero(greatest < epsilon**2))


def _sum(W0: np.ndarray, found: Decomposition) -> np.ndarray:
    """W0 + ΔW in float64, ΔW never whole."""
    W = np.array(W0, dtype=np.float64)
    left, right = (side.vectors(found.rank) for side in (found.left, found.right))
    left = left * found.s[: found.rank]
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
    """Every update of the checkpoints at `paths` beside the weight of `model` that it changes.

    landing, intruders: these too, for which every W0 is decomposed; landing is there wherever that
    is done, and without asking where it takes less than a minute. cache: where decompositions that
    were asked for are kept; None, nowhere. say: told what they will cost before they start. The
    rest as for `similarity.analyse`. A checkpoint that is not of this model is skipped.
    """
    runs = checkpoint.runs(paths)
    options = options or Options(base=Path(model))
    collected = meeting.collect(runs, options, expression(modules), rename)
    weights = {}
    for run in runs:
        try:
            if collected.names(run):
                names = [update.name for update in collected.updates(run)]
                weights[run.key] = open_base(model, names)
        except CheckpointError as error:
            collected.skip(run, "", f"{run.path}: {error}")
    shapes = [next(iter(by_run.values()))[0].shape for by_run in collected.modules.values()]
    asked = landing or intruders
    if weights:
        landing = asked or base_vectors.estimate(shapes)[0] < SOON
        if asked:
            say(base_vectors.estimate_line(shapes, cache))
        elif not landing:
            say("where ΔW lands is left out, as it takes long: see --landing")

    def job(members: Members) -> list[Row]:
        rows = []
        for run in (run for run in runs if run.key in weights):
            for member in members.of(run):
                try:
                    W0 = weights[run.key].weight(member.update)
                    kept = cache if asked else None
                    rows.append(_row(member, W0, landing, intruders, kept))
                except CheckpointError as error:
                    members.skip(run, str(error))
                except MemoryError:
                    members.skip(run, f"{run.path}: {members.module}: does not fit into memory")
        return rows

    rows = [row for of_module in over_modules(job, collected, progress) for row in of_module]
    return AgainstBase(rows, collected.skipped, collected.other)


def _row(
    member: Member, W0: np.ndarray, with_landing: bool, with_intruders: bool, cache: Path | None
) -> Row:
    found = member.found
    line = member.columns | against(member.update, found, W0)
    if with_landing or with_intruders:
        whole = base_vectors.decompose_base(W0, cache)
        if with_landing:
            line |= landing(found, whole).columns()
        if with_intruders:
            line["intruders"] = intruders(found, W0, whole)
    return {column: line.get(column) for column in ROW_COLUMNS}
