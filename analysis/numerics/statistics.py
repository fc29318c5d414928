"""Summarise numbers over modules and runs, and judge claims that were fixed beforehand.

Bands of spectra over modules, measures to compare between capacities, paired differences between
methods over runs, and verdicts on claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from analysis import extras
from analysis.numerics import metrics


def normalised(s: np.ndarray) -> np.ndarray:
    """Return s / ‖s‖_F, so that updates of any size can share an axis; zeros for ΔW = 0.

    >>> normalised(np.array([4.0, 3.0])).tolist()
    [0.8, 0.6]
    """
    norm = metrics.frobenius_norm(s)
    return s / norm if norm > 0 else s


def band(
    spectra: Sequence[np.ndarray], quantile: float = 0.1, k: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (low, median, high) of the normalised singular values over modules, three arrays (k,).

    spectra: one array per module; each is divided by its norm over all its values.
    quantile: low and high are the `quantile` and 1 − `quantile` quantiles.
    k: use only the first k values; all of them by default. Raises ValueError if the spectra then
        differ in length.

    >>> low, median, high = band([np.array([4.0, 3.0]), np.array([3.0, 0.0])], quantile=0)
    >>> low.tolist(), median.round(6).tolist(), high.tolist()
    ([0.8, 0.0], [0.9, 0.3], [1.0, 0.6])
    """
    values = [normalised(s)[:k] for s in spectra]
    lengths = {value.size for value in values}
    if len(lengths) != 1:
        raise ValueError(f"spectra have lengths {sorted(lengths)}; expected one length")
    low, median, high = np.quantile(values, (quantile, 0.5, 1 - quantile), axis=0)
    return low, median, high


def comparable(s: np.ndarray, k: int) -> dict[str, float]:
    """Return the measures of concentration to compare between capacities of at least k.

    They depend on the capacity all the same: compare each beyond its mean for random updates
    (`null.chance`).

    top_share_1, 4 and 16 of the whole spectrum; effective_rank_k and gini_k of s[:k]; held_k, the
    share of the energy that s[:k] holds. nan for ΔW = 0. Raises ValueError if s has fewer than k
    values.

    >>> measures = comparable(np.array([4.0, 3.0, 0.0]), k=2)
    >>> {name: round(value, 3) for name, value in measures.items() if name.endswith(("_1", "_k"))}
    {'top_share_1': 0.64, 'effective_rank_k': 1.98, 'gini_k': 0.071, 'held_k': 1.0}
    """
    if s.size < k:
        raise ValueError(f"s has {s.size} values; expected at least k = {k}")
    return {
        "top_share_1": metrics.top_share(s, 1),
        "top_share_4": metrics.top_share(s, 4),
        "top_share_16": metrics.top_share(s, 16),
        "effective_rank_k": metrics.effective_rank(s[:k]),
        "gini_k": metrics.gini(s[:k]),
        "held_k": metrics.top_share(s, k),
    }


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not None; None if all are.

    >>> median([1.0, None, 3.0, 4.0]), median([None])
    (3.0, None)
    """
    defined = [value for value in values if value is not None]
    if len(defined) == 1:  # a table can have thousands of these
        return float(defined[0])
    return float(np.median(defined)) if defined else None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all are.

    >>> mean([1.0, None, 3.0]), mean([None])
    (2.0, None)
    """
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


CONFIDENCE = 0.95  # of every interval


@dataclass(frozen=True)
class Difference:
    """A paired difference a − b between two methods over runs.

    values: one difference per seed, in the order of the seeds.
    mean: of the values.
    low, high: Student's interval of the mean, nan for one run.
    positive, negative: the numbers of values above and below 0.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    positive: int
    negative: int


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Return the difference a − b between the runs of two methods, paired by seed.

    a, b: seed -> value of that run, usually a mean over modules. Raises ValueError if the seeds
    differ, if there is none, or if a value is not finite.

    >>> difference = paired({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.25})
    >>> difference.values, difference.mean, difference.positive
    ((0.25, 0.5), 0.375, 2)
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
    """Return (`paired` over the seeds that have a value in both, the other seeds, ascending).

    The difference is None if there is no such seed.

    >>> difference, lost = paired_in_common({0: 0.5, 1: 0.75, 2: None}, {0: 0.25, 2: 0.25})
    >>> difference.values, lost
    ((0.25,), [1, 2])
    """
    known_a, known_b = (
        {seed: value for seed, value in values.items() if value is not None} for values in (a, b)
    )
    common = known_a.keys() & known_b.keys()
    lost = sorted((a.keys() | b.keys()) - common)
    if not common:
        return None, lost
    difference = paired(
        {seed: known_a[seed] for seed in common}, {seed: known_b[seed] for seed in common}
    )
    return difference, lost


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), Student's t interval of the mean over the last axis.

    values (…, n) -> two arrays (…), nan for n = 1; the confidence is CONFIDENCE. Exact for normal
    values at any n ≥ 2; a bootstrap of so few values covers far less than it claims.

    >>> low, high = interval(np.array([1.0, 2.0, 3.0]))
    >>> round(float(low), 3), round(float(high), 3)
    (-0.484, 4.484)
    """
    with extras.named():
        from scipy.special import stdtrit

    n = values.shape[-1]
    mean = values.mean(axis=-1)
    if n < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


@dataclass(frozen=True)
class Claim:
    """A claim about a difference, fixed before the difference is measured.

    name: the claim in words.
    primary: the measure that decides.
    direction: +1 or −1, the sign that its difference is claimed to have.
    delta: the smallest difference that matters, ≥ 0.
    secondary: other measures -> their directions; they can disagree, but not decide.
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
    """The judgement of a claim in one word."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """The judgement of a claim.

    disagree: the secondary measures that contradict the outcome; line: everything in one sentence.
    """

    outcome: Outcome
    disagree: tuple[str, ...]
    line: str


def verdict(claim: Claim, differences: Mapping[str, Difference]) -> Verdict:
    """Judge a claim by the measured differences, which are given by measure.

    Supported: the whole interval of the primary measure lies beyond delta on the claimed side.
    Contradicted: it lies beyond 0 on the other side. Undecided: neither, as after one run. Not
    measured: the primary measure is not in `differences`. A secondary measure disagrees if its
    whole interval lies beyond 0 on the side opposite to the claimed one or, if the claim is
    contradicted, on the claimed side.

    >>> claim = Claim("LoRA is dominated", primary="gini", direction=1, delta=0.05)
    >>> difference = paired({0: 0.5, 1: 0.51, 2: 0.52}, {0: 0.25, 1: 0.25, 2: 0.25})
    >>> print(verdict(claim, {"gini": difference}).outcome)
    supported
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
    """Return whether the whole interval lies beyond `bound` on a side, +1 or −1.

    False for one run, which has no interval.
    """
    nearest = difference.low if side > 0 else -difference.high
    return nearest > bound


def _words(difference: Difference) -> str:
    runs = f"n = {len(difference.values)} ({difference.positive} +, {difference.negative} −)"
    return f"mean difference {difference.mean:+.3g}, {_between(difference)}, {runs}"


def _between(difference: Difference) -> str:
    if np.isnan(difference.low):
        return "no interval"
    return f"{CONFIDENCE:.0%} interval {difference.low:+.3g} to {difference.high:+.3g}"
