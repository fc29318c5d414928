"""What a claim is and what tables hold of it; differences by seed, and numbers in words."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis import UserError
from analysis.numerics.statistics import (
    Claim,
    Difference,
    Outcome,
    Verdict,
    paired,
    paired_in_common,
)
from analysis.results import Row
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

# What is fixed for several claims: the least that matters of a score, of overlap above chance, and
# the two ways to cut an update.
POINT = "a point is about the standard error of one run's mean over the 1,500 test items"
MARGIN = 0.1
CUTS = ("keep", "remove")


@dataclass(frozen=True)
class Beside:
    """A table that is shown with a claim and decides nothing: cells, the heading first."""

    title: str
    cells: list[list[str]]


@dataclass(frozen=True)
class Found:
    """What the tables hold of a claim: differences by measure, remarks, and tables beside."""

    differences: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One primary measure of a claim.

    what: the measure in words; why: what the smallest difference that matters is for; against:
    the constant that a single method's values are compared with, where there is no other method.
    """

    claim: Claim
    what: str
    why: str
    against: float = 0.0


@dataclass(frozen=True)
class Stated:
    """A claim: its number and words, its parts, and how they are measured. It needs all parts."""

    number: str
    words: str
    parts: tuple[Part, ...]
    measured: Callable[[Tables], Found]


@dataclass(frozen=True)
class Judged:
    """A claim, what the tables hold of it, and the verdicts: one a part, and of the whole."""

    stated: Stated
    found: Found
    verdicts: tuple[Verdict, ...]
    outcome: Outcome

    @property
    def disagree(self) -> list[str]:
        """The secondary measures that say the opposite of the verdict on a part."""
        return list(dict.fromkeys(name for verdict in self.verdicts for name in verdict.disagree))


def by_seed(rows: Iterable[Row], method: str, **where: Any) -> dict[int, Row]:
    """The rows of a method by seed; ValueError where a seed stands there twice."""
    found: dict[int, Row] = {}
    for row in rows:
        if row["method"] == method and all(row[name] == value for name, value in where.items()):
            if row["seed"] in found:
                raise UserError(f"two rows of {method}, seed {row['seed']}; expected one")
            found[row["seed"]] = row
    return found


# Measures of the first k values or directions, which only runs of one k may be compared by.
AT_K = (
    *("effective_rank_k", "gini_k", "held_k", "left_phi_k", "right_phi_k"),
    *("left_above_chance", "right_above_chance"),
)


def between(
    rows: Sequence[Row], a: str, b: str, columns: Iterable[str], **where: Any
) -> tuple[dict[str, Difference], list[str]]:
    """a − b by column, paired on the seeds that both have, and what there is to say of them."""
    of_a, of_b = (by_seed(rows, method, **where) for method in (a, b))
    absent = [method for method, of in ((a, of_a), (b, of_b)) if not of]
    if absent:
        return {}, [f"There is no run of {' and '.join(absent)}."]
    differences = {}
    notes = []
    ks = {row.get("k") for row in (*of_a.values(), *of_b.values())}
    for column in columns:
        if column in AT_K and len(ks) > 1:
            notes.append(
                f"{a} and {b} were measured at k = {', '.join(map(str, sorted(ks, key=str)))}:"
                " measures at different k are not compared."
            )
            continue
        values = [{seed: row.get(column) for seed, row in of.items()} for of in (of_a, of_b)]
        if not any(value is not None for of in values for value in of.values()):
            continue
        difference, lost = paired_in_common(*values)
        if difference:
            differences[column] = difference
        if lost:
            common = sorted(values[0].keys() & values[1].keys() - set(lost))
            notes.append(
                f"{a} − {b}: seeds {listed(lost)} are not there for both: paired on"
                f" {listed(common) or 'none'}. Train what is missing and report again."
            )
    return differences, list(dict.fromkeys(notes))


def single(
    rows: Sequence[Row], method: str, against: Mapping[str, float], **where: Any
) -> tuple[dict[str, Difference], list[str]]:
    """A method's values by column, less the constant of each."""
    of = by_seed(rows, method, **where)
    if not of:
        return {}, [f"There is no run of {method}."]
    differences = {}
    for column, constant in against.items():
        values = {seed: row[column] for seed, row in of.items() if row.get(column) is not None}
        if values:
            differences[column] = paired(values, dict.fromkeys(values, constant))
    return differences, []


def measures(parts: Sequence[Part]) -> list[str]:
    """All measures that the parts name, the primary ones first."""
    primary = [part.claim.primary for part in parts]
    secondary = [name for part in parts for name in part.claim.secondary]
    return list(dict.fromkeys([*primary, *secondary]))


def listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def methods(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def over_seeds(rows: Sequence[Row], method: str, column: str, form: str = ".3f") -> str:
    values = [row.get(column) for row in rows if row["method"] == method]
    return mean_text(values, form)


def mean_text(values: Iterable[float | None], form: str = ".3f") -> str:
    """The mean of what is defined, and its range over seeds; a dash for nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{np.mean(known):{form}}"
    return f"{mean} ±{(max(known) - min(known)) / 2:{form}}" if len(known) > 1 else mean


def count_text(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


def says(difference: Difference, direction: int) -> int:
    """1: the interval lies on the side of `direction`; −1: on the other; 0: on both."""
    if direction * difference.low > 0 and direction * difference.high > 0:
        return 1
    return -1 if direction * difference.low < 0 and direction * difference.high < 0 else 0


def number_text(difference: Difference, against: float = 0.0) -> str:
    """The mean and its interval, the constant that was taken off put back."""
    form = ".3g" if against else "+.3g"
    mean = format(difference.mean + against, form)
    if math.isnan(difference.low):
        return f"{mean} [no interval]"
    if len(difference.values) == 1:
        return f"{mean} (exact)"
    low, high = (format(x + against, form) for x in (difference.low, difference.high))
    return f"{mean} [{low}, {high}]"


WORDS = {
    **{f"top_share_{k}": f"top-{k} share" for k in (1, 4, 16)},
    "top_share_1_above_null": "top-1 share above the random null's",
    "effective_rank_k": "effective rank of s[:k]",
    "gini_k": "Gini of s[:k]",
    "log_distance": "log distance of the spectra",
    "left_above_chance": "φ(i, i) above chance, mean over i, left",
    "right_above_chance": "φ(i, i) above chance, mean over i, right",
    "left_phi_k": "φ(k, k) left",
    "right_phi_k": "φ(k, k) right",
    "overlap_above_chance": "overlap above chance",
    **{
        f"{side}_above_margin": f"overlap above chance, {side}, less {MARGIN}"
        for side in ("left", "right")
    },
    "log2_ratio": "log₂ of the ratio to the null",
    "score": "mean score",
    **{
        f"{kind} {family}": f"{family}, {kind}"
        for kind in ("keep", "remove")
        for family in FAMILIES
    },
    **{f"{kind} of the whole": f"relative to the whole update's score, {kind}" for kind in CUTS},
    **{
        f"score_{family} − {other}": f"{family}, MultiLoRA − {other}"
        for family in FAMILIES
        for other in ("lora", "full")
    },
}


def words_of(measure: str) -> str:
    return WORDS.get(measure, measure)
