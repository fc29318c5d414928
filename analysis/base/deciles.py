"""Compare the base's own spectrum before and after: its values and its singular directions.

W0 and W0 + ΔW are multiplied out and decomposed in full, one module at a time, which takes a time
that grows with the cube of their size; `base.vectors.estimate` says how long. The singular values
of W0 are divided into ten deciles, the largest first, as for the landing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from analysis import checkpoint
from analysis.base import vectors as base_vectors
from analysis.base.beside import collect
from analysis.base.landing import DECILES, deciles
from analysis.formats import Options
from analysis.numerics import parallel
from analysis.numerics.decompose import Basis, Decomposition
from analysis.numerics.subspaces import SIDES
from analysis.pairs.members import ONE, Listed, Members
from analysis.results import AgainstBase, Row
from analysis.update import Update, float64

CHANGES = tuple(f"change_{i}" for i in range(1, DECILES + 1))
KEPT = tuple(f"{side}_kept_{i}" for side in SIDES for i in range(1, DECILES + 1))
CHANCE = tuple(f"{side}_chance" for side in SIDES)
ROW_COLUMNS = (*ONE, "unseen", *CHANGES, *KEPT, *CHANCE)
ROWS = 1024  # rows of ΔW that are rounded to bfloat16 at a time


def changes(base: Decomposition, tuned: Decomposition) -> np.ndarray:
    """Return the relative change of W0's singular values by decile, (10,), at least −1.

    Σ s / Σ s0 − 1, the sums over the decile's places in the spectra of W0 + ΔW and of W0; nan for a
    decile without a place, and where all values of W0 are zero up to rounding. Unchanged if W0 and
    ΔW are multiplied by one number or rotated together.
    """
    where = deciles(base.s.size)
    before, after = (np.bincount(where, d.s, minlength=DECILES) for d in (base, tuned))
    known = np.bincount(where[: base.rank], minlength=DECILES) > 0
    return np.divide(after, before, out=np.full(DECILES, np.nan), where=known) - 1


def kept(before: Basis, after: Basis, rank: int, m: int) -> np.ndarray:
    """Return how far each decile's subspace is kept beyond chance, (10,), at most 1.

    ‖U0ᵀU‖²_F / k − k/d, U0 and U (d, k) being the singular vectors of W0 and of W0 + ΔW at the
    decile's places: the mean squared cosine of their k principal angles, minus that of random
    subspaces. It is 1 − k/d if the subspace has not turned.

    before, after: the left or right vectors, the first m of them in R^d.
    rank: that of W0. nan for a decile that W0's vectors of value zero belong to, since any vectors
    of that space would do, and for one without a place. Where the values at the ends of a decile
    are equal, its subspace is not unique either.
    """
    where, d = deciles(m), before.M.shape[0]
    shares = np.full(DECILES, np.nan)
    U0, U = before.vectors(m), after.vectors(m)
    for i in range(DECILES):
        (places,) = np.nonzero(where == i)
        if places.size and places[-1] < rank:
            overlap = float(np.sum((U0[:, places].T @ U[:, places]) ** 2))
            shares[i] = min(overlap / places.size, 1.0) - places.size / d
    return shares


def unseen(W0: np.ndarray, dW: np.ndarray) -> float | None:
    """Return the share of ΔW's entries that a bfloat16 checkpoint would not show, in [0, 1].

    W0 (d_out, d_in), dW the same: the share, among the entries of ΔW that are not zero, of those
    where W0 and W0 + ΔW round to the same number of bfloat16, as they do where |ΔW| is below half
    of its spacing at W0. None for ΔW = 0.

    >>> unseen(np.array([[1.0, 1.0, 1.0]]), np.array([[0.0, 0.001, 0.01]]))
    0.5
    """
    same = moved = 0
    for i in range(0, len(W0), ROWS):
        change = float64(dW[i : i + ROWS])
        before = float64(W0[i : i + ROWS])
        with np.errstate(over="ignore"):
            rounded, tuned = (x.astype(ml_dtypes.bfloat16) for x in (before, before + change))
        nonzero = change != 0
        moved += int(np.count_nonzero(nonzero))
        same += int(np.count_nonzero((rounded == tuned) & nonzero))
    return same / moved if moved else None


def analyse(
    paths: Sequence[str | Path | checkpoint.Run],
    model: str | Path,
    *,
    options: Options | None = None,
    modules: str | None = None,
    cache: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
    progress: bool = False,
) -> AgainstBase:
    """Return what each update of the checkpoints at `paths` does to the spectrum of its W0.

    paths: the checkpoints, adapters or full fine-tunings of `model`.
    model: the base, a directory or a name on the hub.
    options: what a checkpoint does not say of itself; by default that its base is `model`.
    modules: a regular expression that a module's name must contain.
    cache: directory for decompositions of W0; None keeps none.
    say: is called with a line about the cost before the decompositions start.
    progress: show a bar on stderr if it takes longer than two seconds.

    Rows are keyed by ROW_COLUMNS.
    """
    beside = collect(paths, model, options, modules)
    if updates := beside.updates:
        say(_cost(updates, cache))
    return beside.rows(Members.listed, partial(_row, cache=cache), progress)


def _cost(updates: Sequence[Update], cache: Path | None) -> str:
    """Return in words what the decompositions of W0 and of W0 + ΔW take."""
    with parallel.reproducible():
        line = base_vectors.estimate_line([update.shape for update in updates], cache)
    return f"{line}; the same time again for W0 + ΔW"


def _row(one: Listed, W0: np.ndarray, cache: Path | None) -> Row:
    """Return the row of one update; cache: directory for the decomposition of W0."""
    dW = one.update.dense()
    row: Row = one.columns | {"unseen": unseen(W0, dW)}
    base = base_vectors.decompose_base(W0, cache)
    tuned = base_vectors.decompose_base(float64(W0) + dW)
    m = base.s.size
    found = [*changes(base, tuned)]
    found += [*kept(base.left, tuned.left, base.rank, m)]
    found += [*kept(base.right, tuned.right, base.rank, m)]
    numbers = (float(x) if np.isfinite(x) else None for x in found)
    row |= zip((*CHANGES, *KEPT), numbers, strict=True)
    d_out, d_in = W0.shape
    row |= {"left_chance": _chance(m, d_out), "right_chance": _chance(m, d_in)}
    return {column: row.get(column) for column in ROW_COLUMNS}


def _chance(m: int, d: int) -> float:
    """Return k/d, k being the mean size of a decile of m vectors in R^d."""
    return m / DECILES / d
