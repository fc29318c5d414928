"""The parts of a claim, and the differences between runs that it is judged by.

A `Statement` of the paper has one part or several, or none if it gets a table and no verdict. Each
`Part` holds one `statistics.Claim`: a primary measure, a direction and a bound. `Evidence` holds
the differences that the tables of a reproduction give for these measures, and a `Judgement` the
verdicts that follow. Every difference is one between two measured numbers, never between a number
and a bare constant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import UserError
from analysis.numerics.statistics import (
    Claim,
    Difference,
    Outcome,
    Verdict,
    paired_in_common,
)
from analysis.results import Row
from multilora.reproduction.claims.wording import listed
from multilora.reproduction.tables import Tables

# Measures of the first k values or directions. Runs with different k are not compared by them.
AT_K = (
    "effective_rank_k",
    "effective_rank_k_of_null",
    "gini_k",
    "gini_k_above_null",
    "held_k",
    "left_phi_k",
    "right_phi_k",
    "left_above_chance",
    "right_above_chance",
)


@dataclass(frozen=True)
class Supplement:
    """A table shown with a claim, without influence on its verdict.

    cells: rows of text, the heading first.
    """

    title: str
    cells: list[list[str]]


@dataclass(frozen=True)
class Evidence:
    """The measured differences that a claim is judged by.

    differences: by name of the measure.
    notes: sentences about them.
    supplements: further tables.
    result: what is said of a statement without parts, in a few words.
    """

    differences: Mapping[str, Difference] = field(default_factory=dict)
    notes: Sequence[str] = ()
    supplements: Sequence[Supplement] = ()
    result: str = ""


@dataclass(frozen=True)
class Part:
    """One primary measure of a statement.

    claim: the primary measure, its direction and bound, and the secondary measures.
    what: the primary measure in words.
    why: the reason for the bound.
    """

    claim: Claim
    what: str
    why: str


@dataclass(frozen=True)
class Statement:
    """A numbered claim, in words, that is supported if all of its parts are.

    parts: none for a statement that is not judged: arithmetic, or counts of settings.
    gather: the function that takes the evidence for all parts from the tables.
    """

    number: str
    words: str
    parts: tuple[Part, ...]
    gather: Callable[[Tables], Evidence]


@dataclass(frozen=True)
class Judgement:
    """A statement, its evidence, one verdict per part, and the outcome of the whole.

    outcome: None for a statement without parts, unless it was not measured.
    """

    statement: Statement
    evidence: Evidence
    verdicts: tuple[Verdict, ...]
    outcome: Outcome | None

    @property
    def disagree(self) -> list[str]:
        """The secondary measures that contradict the verdict on a part."""
        return list(dict.fromkeys(name for verdict in self.verdicts for name in verdict.disagree))


def by_seed(rows: Iterable[Row], method: str, **where: Any) -> dict[int, Row]:
    """Return {seed: row} of a method, for rows whose columns have the values of `where`.

    Raises UserError if two rows have the same seed.
    """
    row_of: dict[int, Row] = {}
    for row in rows:
        if row["method"] == method and all(row[name] == value for name, value in where.items()):
            if row["seed"] in row_of:
                raise UserError(f"two rows of {method}, seed {row['seed']}; expected one")
            row_of[row["seed"]] = row
    return row_of


def between(
    rows: Sequence[Row], a: str, b: str, columns: Iterable[str], **where: Any
) -> tuple[dict[str, Difference], list[str]]:
    """Return ({column: a − b paired by seed}, notes).

    rows: of one table.
    a, b: methods; only seeds that both have count.
    columns: measures to compare; a measure that is undefined for every pair is left out.
    where: column=value that the rows must have.

    The notes say which runs or seeds are missing and which measures cannot be compared. Raises
    UserError if two rows of a method have the same seed.
    """
    rows_a, rows_b = (by_seed(rows, method, **where) for method in (a, b))
    absent = [method for method, of_method in ((a, rows_a), (b, rows_b)) if not of_method]
    if absent:
        return {}, [f"There is no run of {' and '.join(absent)}."]
    differences = {}
    notes = []
    ks = {row.get("k") for row in (*rows_a.values(), *rows_b.values())}
    for column in columns:
        if column in AT_K and len(ks) > 1:
            notes.append(
                f"{a} and {b} were measured at k = {', '.join(map(str, sorted(ks, key=str)))}:"
                " measures at different k are not compared."
            )
            continue
        of_a, of_b = (
            {seed: row.get(column) for seed, row in of_method.items()}
            for of_method in (rows_a, rows_b)
        )
        if not any(value is not None for value in (*of_a.values(), *of_b.values())):
            continue
        difference, lost = paired_in_common(of_a, of_b)
        if difference:
            differences[column] = difference
        if lost:
            common = sorted(of_a.keys() & of_b.keys() - set(lost))
            notes.append(
                f"{a} − {b}: seeds {listed(lost)} are missing for one of the two; paired on seeds"
                f" {listed(common) or 'none'}. Train the missing runs and report again."
            )
    return differences, list(dict.fromkeys(notes))


def measures(parts: Sequence[Part]) -> list[str]:
    """Return the names of all measures of the parts, the primary ones first."""
    primary = [part.claim.primary for part in parts]
    secondary = [name for part in parts for name in part.claim.secondary]
    return list(dict.fromkeys([*primary, *secondary]))


def methods(rows: Iterable[Row]) -> list[str]:
    """Return the methods of the rows, in order of first appearance."""
    return list(dict.fromkeys(row["method"] for row in rows))


def agreement(difference: Difference, direction: int) -> int:
    """Return 1 if the interval lies wholly on the claimed side of zero, −1 if on the other, else 0.

    direction: +1 or −1, the claimed side.
    """
    if direction * difference.low > 0 and direction * difference.high > 0:
        return 1
    return -1 if direction * difference.low < 0 and direction * difference.high < 0 else 0
