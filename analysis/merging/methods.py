"""The methods of merging by name, and the cut of their results to a rank.

A weight multiplies its ΔW before any of them: every method merges the wᵢ ΔWᵢ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from analysis import UserError
from analysis.merging import core, dare, iso, knots, ties, tsv
from analysis.merging.joint import check_finite, merged_update
from analysis.merging.settings import Settings
from analysis.numerics import compress, decompose, metrics
from analysis.pairs import combine
from analysis.update import LowRankUpdate, Update


def total(updates: Sequence[LowRankUpdate], settings: Settings) -> LowRankUpdate:
    """Return Σ ΔWᵢ by putting the factors side by side, which rounds nothing; of rank Σ rᵢ.

    Task arithmetic (Ilharco et al., arXiv 2212.04089), PEFT's "cat". No setting changes it. Raises
    CheckpointError for NaN or Inf.
    """
    for update in updates:
        check_finite(update)
    merged = combine.weighted_sum([(1.0, update) for update in updates])
    assert isinstance(merged, LowRankUpdate)
    return merged


Method = Callable[[Sequence[LowRankUpdate], Settings], Update]
METHODS: dict[str, Method] = {
    "sum": total,
    "ties": ties.merge,
    "dare": dare.merge,
    "knots": knots.merge,
    "tsv": tsv.merge,
    "iso": iso.merge,
    "core": core.merge,
}


ONE_AT_A_TIME = Lock()  # of the modules that are merged in parallel, for those held as a matrix


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged update, and what the cut to its rank has cost.

    update: the factors. error: ‖ΔW − exact‖_F/‖exact‖_F, where exact is what the method gives
    before the cut; 0 if nothing was cut, and if that is zero.
    """

    update: LowRankUpdate
    error: float


def capacity(updates: Sequence[LowRankUpdate]) -> int:
    """Return the largest rank that the sum can have: min(Σ rᵢ, d_out, d_in)."""
    return min(sum(update.r for update in updates), *updates[0].shape)


def merge(method: str, updates: Sequence[LowRankUpdate], settings: Settings) -> Merged:
    """Return the merged update of one module.

    method: a key of METHODS.
    updates: one or more of one shape, the weights already in their scales.
    settings: `rank` is the rank that the result may have, and no more than `capacity` has a
        meaning; if it is None, a result in factors is kept whole, and that of ties or dare, which
        has full rank, is cut to `capacity`.

    Raises UserError for an unknown method, CheckpointError for NaN or Inf.
    """
    if method not in METHODS:
        raise UserError(f"--method {method!r}; expected one of {', '.join(METHODS)}")
    exact = METHODS[method](updates, settings)
    r = min(settings.rank or capacity(updates), capacity(updates))
    if not isinstance(exact, LowRankUpdate):
        with ONE_AT_A_TIME:
            return _cut(exact, updates, r)
    if settings.rank is None or exact.r <= r:
        return Merged(exact, 0.0)
    found = decompose.decomposition(exact, compress.METHOD)
    return Merged(compress.cut(exact, found, r), _lost(found.s, r))


def _cut(exact: Update, updates: Sequence[LowRankUpdate], r: int) -> Merged:
    """Return the best update of rank r of a matrix that was made of `updates`."""
    found = decompose.decomposition(exact)
    merged = merged_update(updates, *compress.factors(found, r), exact.method)
    return Merged(merged, _lost(found.s, r))


def _lost(s: np.ndarray, r: int) -> float:
    """Return √Σ_{i>r} sᵢ² / √Σ sᵢ², the relative error of a best cut; 0 if s is zero."""
    size = metrics.frobenius_norm(s)
    return metrics.frobenius_norm(np.append(s[r:], 0.0)) / size if size > 0 else 0.0
