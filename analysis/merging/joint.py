"""Coordinates of several low-rank updates in one pair of bases, where merging costs little.

B = [B₁ … Bₙ] = Q_B R_B and [A₁; …; Aₙ]ᵀ = Q_A R_A, both by QR. With Cᵢ = scaleᵢ R_B,ᵢ R_A,ᵢᵀ, of
the columns of R that belong to adapter i, ΔWᵢ = Q_B Cᵢ Q_Aᵀ: singular values, inner products and
sums of the ΔWᵢ are those of the cores Cᵢ, which have at most Σ rᵢ rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import CheckpointError
from analysis.numerics import metrics
from analysis.numerics.decompose import EPS
from analysis.update import LowRankUpdate, coarsest, float64


@dataclass(frozen=True, eq=False)
class Joint:
    """ΔWᵢ = left @ cores[i] @ right.T for the updates of one module.

    left (d_out, m), right (d_in, n): orthonormal columns, m = min(d_out, Σ rᵢ) and
        n = min(d_in, Σ rᵢ).
    cores: one (m, n) for each update, float64.
    of: the updates, whose names and dtypes a merged update takes.
    """

    left: np.ndarray
    right: np.ndarray
    cores: list[np.ndarray]
    of: Sequence[LowRankUpdate]

    def update(self, core: np.ndarray, method: str) -> LowRankUpdate:
        """Return left @ core @ right.T as factors of the rank of the core, at least 1.

        core (m, n): B holds its left singular vectors times √s, and A the right ones, so that both
        have the same size.
        """
        X, s, Yh = np.linalg.svd(core, full_matrices=False)
        k = max(rank(s, core.shape), 1)
        root = np.sqrt(s[:k])
        B, A = self.left @ (X[:, :k] * root), (root[:, None] * Yh[:k]) @ self.right.T
        return merged_update(self.of, B, A, method)


def joint(updates: Sequence[LowRankUpdate]) -> Joint:
    """Return the updates in their joint bases.

    updates: at least one, all of one shape. Raises CheckpointError, naming the file, if a factor
    holds NaN or Inf.

    >>> b = LowRankUpdate("q_proj", B=np.array([[3.0], [4.0]]), A=np.array([[0.0, 2.0]]))
    >>> together = joint([b])
    >>> abs(together.cores[0]).round(6).tolist()
    [[10.0]]
    """
    for update in updates:
        check_finite(update)
    sizes = np.cumsum([update.r for update in updates])[:-1]
    left, of_B = np.linalg.qr(np.hstack([float64(update.B) for update in updates]))
    right, of_A = np.linalg.qr(np.vstack([float64(update.A) for update in updates]).T)
    blocks = zip(np.hsplit(of_B, sizes), np.hsplit(of_A, sizes), updates, strict=True)
    return Joint(left, right, [u.scale * (b @ a.T) for b, a, u in blocks], updates)


def check_finite(update: LowRankUpdate) -> None:
    """Raise CheckpointError, naming file and module, if a factor or the scale is NaN or Inf."""
    for name, factor in (("B", update.B), ("A", update.A), ("scale", np.asarray(update.scale))):
        if not np.isfinite(float64(factor)).all():
            raise CheckpointError(
                f"{update.source}: {update.name}: {name} holds NaN or Inf; expected finite numbers"
            )


def rank(s: np.ndarray, shape: tuple[int, int]) -> int:
    """Return the number of singular values s of a matrix of this shape that are not rounding.

    >>> rank(np.array([2.0, 1.0, 1e-17]), (3, 3))
    2
    """
    return metrics.rank(s, max(shape) * EPS * s[0]) if s.size and s[0] > 0 else 0


def merged_update(
    updates: Sequence[LowRankUpdate], B: np.ndarray, A: np.ndarray, method: str
) -> LowRankUpdate:
    """Return the update B @ A with the name, part and source of the first of `updates`.

    Its stored dtypes are the coarsest of theirs, as those of a sum.
    """
    first = updates[0]
    of_B, of_A = zip(*(update.stored for update in updates), strict=True)
    return LowRankUpdate(
        first.name,
        B,
        A,
        part=first.part,
        method=method,
        source=first.source,
        dtypes=(coarsest(*of_B), coarsest(*of_A)),
    )
