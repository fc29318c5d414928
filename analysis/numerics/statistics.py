"""Tables → what is said about them: bands over modules, measures that hold between capacities,
differences between methods over runs, and verdicts on claims that were fixed beforehand.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from analysis.numerics import metrics


def normalised(s: np.ndarray) -> np.ndarray:
    """s / ‖s‖_F, so that spectra of updates of any size lie on one axis; zeros for ΔW = 0."""
    norm = metrics.frobenius_norm(s)
    return s / norm if norm > 0 else s


def band(
    spectra: Sequence[np.ndarray], quantile: float = 0.1, k: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, median, high) over modules of the normalised singular values, index by index.

    spectra: arrays of one length k -> three arrays (k,); low and high are the `quantile` and
    1 − `quantile` quantiles. k: look at the first k values only, of norms that count all. Spectra
    that have different lengths even then are a ValueError.
    """
    values = [normalised(s)[:k] for s in spectra]
    lengths = {value.size for value in values}
    if len(lengths) != 1:
        raise ValueError(f"spectra have lengths {sorted(lengths)}; expected one length")
    low, median, high = np.quantile(values, (quantile, 0.5, 1 - quantile), axis=0)
    return low, median, high


def comparable(s: np.ndarray, k: int) -> dict[str, float]:
    """The measures of concentration that may be compared between capacities of at least k.

    top_share_1, 4 and 16 of the whole spectrum; effective_rank and gini of s[:k], and held_k,
    the share of the energy that s[:k] holds. nan for ΔW = 0.
    """
    if s.size < k:
        raise ValueError(f"s has {s.size} values; expected at least k = {k}")
    return {
        **{f"top_share_{top}": metrics.top_share(s, top) for top in (1, 4, 16)},
        "effective_rank_k": metrics.effective_rank(s[:k]),
        "gini_k": metrics.gini(s[:k]),
        "held_k": metrics.top_share(s, k),
    }


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.median(defined)) if defined else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A paired difference between two methods over runs.

    values: a − b, in the order of the seeds; low and high: the Student interval of their mean, nan
    for one run; positive and negative: how many of the values are.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    positive: int
    negative: int


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """a − b over the runs of two methods, by seed.

    a, b: seed -> value, for the same seeds; the unit is the run, so that a value is already an
    average over modules. Raises ValueError where the seeds differ, or a value is not finite.
    """
    if a.keys() != b.keys() or not a:
        raise ValueError(f"seeds are {sorted(a)} and {sorted(b)}; expected the same, at least one")
    values = np.array([a[seed] - b[seed] for seed in sorted(a)])
    if not np.isfinite(values).all():
        raise ValueError(f"differences over seeds {sorted(a)} are {values.tolist()}; not finite")
    low, high = interval(values)
    return Difference(
        values=tuple(values.tolist()),
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        positive=int(np.count_nonzero(values > 0)),
        negative=int(np.count_nonzero(values < 0)),
    )


def paired_in_common(
    a: Mapping[int, float | None], b: Mapping[int, float | None]
) -> tuple[Difference | None, list[int]]:
    """(`paired` over the seeds at which both are defined, the other seeds, ascending).

    The difference is None where there is no such seed.
    """
    known = [{seed: v for seed, v in of.items() if v is not None} for of in (a, b)]
    common = known[0].keys() & known[1].keys()
    lost = sorted((a.keys() | b.keys()) - common)
    if not common:
        return None, lost
    return paired(*({seed: of[seed] for seed in common} for of in known)), lost


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): Student's t interval of the mean at CONFIDENCE, over the last axis.

    values (…, n) -> two arrays (…); nan for n = 1. Exact for normal values at any n ≥ 2, where a
    bootstrap of so few covers far less than it says.
    """
    from scipy.special import stdtrit

    n = values.shape[-1]
    mean = values.mean(axis=-1)
    if n < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


@dataclass(frozen=True)
class Claim:
    """What is claimed of a difference, fixed before it is measured.

    primary: the measure that decides; direction: +1 or −1, the side on which its difference is
    claimed to lie; delta: the smallest difference that matters, ≥ 0; secondary: the directions
    of other measures, which can only disagree.
    """

    name: str
    primary: str
    direction: int
    delta: float
    secondary: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        directions = (self.direction, *self.secondary.values())
        if not set(directions) <= {1, -1} or not self.delta >= 0:
            raise ValueError(
                f"{self.name}: directions {directions}, delta {self.delta}; expected 1 or -1, ≥ 0"
            )


class Outcome(StrEnum):
    """What a measurement says of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome; the secondary measures that say the opposite; all of it in one line."""

    outcome: Outcome
    disagree: tuple[str, ...]
    line: str


def verdict(claim: Claim, differences: Mapping[str, Difference]) -> Verdict:
    """What the differences say of the claim.

    Supported: the primary interval lies wholly beyond delta on the claimed side; contradicted:
    wholly beyond 0 on the other; else undecided, as after one run; not measured where the primary
    measure is not in `differences`. A secondary measure disagrees where its interval lies wholly
    beyond 0 on the side opposite to the claimed one, or, of a claim that is contradicted, on the
    claimed one.
    """
    if claim.primary not in differences:
        outcome = Outcome.NOT_MEASURED
        return Verdict(outcome, (), f"{claim.name}: {outcome}; {claim.primary}: n = 0")
    primary = differences[claim.primary]
    outcome = Outcome.UNDECIDED
    if _beyond(primary, claim.direction, claim.delta):
        outcome = Outcome.SUPPORTED
    elif _beyond(primary, -claim.direction, 0):
        outcome = Outcome.CONTRADICTED
    opposite = 1 if outcome is Outcome.CONTRADICTED else -1
    disagree = tuple(
        measure
        for measure, direction in claim.secondary.items()
        if measure in differences and _beyond(differences[measure], opposite * direction, 0)
    )
    side = "above" if claim.direction > 0 else "below"
    claimed = f"claimed {side} {claim.direction * claim.delta:+.3g}"
    line = f"{claim.name}: {outcome}; {claim.primary}: {_words(primary)}; {claimed}"
    if disagree:
        others = ", ".join(f"{name} {_between(differences[name])}" for name in disagree)
        line += f"; measures disagree: {others}"
    return Verdict(outcome, disagree, line)


def _beyond(difference: Difference, side: int, bound: float) -> bool:
    """Whether the interval lies wholly beyond `bound` on a side; never for the nan of one run."""
    nearest = difference.low if side > 0 else -difference.high
    return nearest > bound


def _words(difference: Difference) -> str:
    runs = f"n = {len(difference.values)} ({difference.positive} +, {difference.negative} −)"
    return f"mean difference {difference.mean:+.3g}, {_between(difference)}, {runs}"


def _between(difference: Difference) -> str:
    if np.isnan(difference.low):
        return "no interval"
    return f"{CONFIDENCE:.0%} interval {difference.low:+.3g} to {difference.high:+.3g}"
