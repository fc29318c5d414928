"""Compare the spectra of two checkpoints, module by module, and say which is more dominated.

The measures are of two families. The energy shares top_share_1, 4 and 16 look at the whole
spectrum: the share of ΔW's energy in a fixed number of directions. effective_rank and gini of
s[:k], k being the smaller of the two capacities, look at how even these k values are, whatever lies
beyond them; held_k is the share of the energy that they hold. If only one family tells the two
apart, the sentence at the end says so.

No measure is free of capacity: two random updates of ranks 8 and 64 differ in all of them. So each
is also compared beyond chance, that is beyond its mean for random updates of the same shape,
capacity and kind (`null.chance`): the measure minus that mean, or the effective rank divided by it.
A difference that is there only before chance is accounted for is explained by the capacities.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from analysis.names import run_key
from analysis.numerics import null, statistics
from analysis.pairs import meeting
from analysis.results import Row, Spectra, grouped

TABLE = "comparison.csv"
SHARES = {"top_share_1": 1, "top_share_4": 4, "top_share_16": 16}
WITHIN = ("effective_rank_k", "gini_k")
MEASURES = (*SHARES, *WITHIN)
COLUMNS = (
    "run_a", "step_a", "run_b", "step_b", "module", "layer", "kind", "part",
    "r_a", "r_b", "capacity_a", "capacity_b", "k",
    "top_share_1_a", "top_share_1_b", "top_share_4_a", "top_share_4_b",
    "top_share_16_a", "top_share_16_b", "effective_rank_k_a", "effective_rank_k_b",
    "gini_k_a", "gini_k_b", "held_k_a", "held_k_b",
    "top_share_1_beyond_a", "top_share_1_beyond_b", "top_share_1_spread",
    "top_share_4_beyond_a", "top_share_4_beyond_b", "top_share_4_spread",
    "top_share_16_beyond_a", "top_share_16_beyond_b", "top_share_16_spread",
    "effective_rank_k_beyond_a", "effective_rank_k_beyond_b", "effective_rank_k_spread",
    "gini_k_beyond_a", "gini_k_beyond_b", "gini_k_spread",
    "log_distance", "wasserstein",
)  # fmt: skip

# A measure is clear if one side is more dominated in at least this share of the modules,
CLEAR = 0.75
# and the median difference is at least this part of the measure's range, which is 1, or k
# directions for an effective rank; beyond chance the range is 1.
SMALLEST = 0.01
# A module counts only if the difference beyond chance is more than this many times as large as the
# standard deviation of that difference between two random updates.
SPREADS = 2.5
# Values that differ by less than this, relative to them, are equal: rounding of the same spectrum.
TIE = 1e-9

Checkpoint = tuple[str, int | None]  # run, step
Chances = Mapping[str, null.Chance]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The measures of two checkpoints, module by module.

    rows: one per module that both have, keyed by COLUMNS; None if a number is undefined.
    only_a, only_b: modules that only one of them has.
    zero: modules left out because ΔW = 0 in one of them.
    shapes: modules left out because their shapes differ.
    undrawn: modules left out because the checkpoints have too many shapes for their size
        (`null.drawn`).
    """

    a: Checkpoint
    b: Checkpoint
    rows: list[Row]
    only_a: list[str]
    only_b: list[str]
    zero: list[str]
    shapes: list[str]
    undrawn: list[str]


@dataclass(frozen=True)
class Reading:
    """One measure over the modules.

    a, b, difference: medians of the measure for a, for b, and of a − b, over the modules counted
        below, or over all if there are none.
    beyond_a, beyond_b, beyond: the same of the measure beyond chance.
    more_a, more_b: the numbers of modules in which a, and b, is more dominated.
    modules: the number of modules whose capacities do not determine the measure.
    more: "a" or "b", the one that is clearly more dominated, also beyond chance; None if neither.
    by_capacity: "a" or "b", the one that is clearly more dominated, but not beyond chance; None if
        neither is.
    """

    a: float
    b: float
    difference: float
    beyond_a: float
    beyond_b: float
    beyond: float
    more_a: int
    more_b: int
    modules: int
    more: str | None
    by_capacity: str | None


class Agreement(StrEnum):
    """The result of all measures together."""

    ALL = "all measures"
    BOTH = "energy shares and within s[:k]"
    SHARES = "energy shares only"
    WITHIN = "within s[:k] only"
    DISAGREE = "measures disagree"
    NONE = "no clear difference"
    CAPACITY = "follows from the capacities"
    EXPLAINED = "the capacities explain the difference"
    NOTHING = "nothing to compare"


@dataclass(frozen=True, eq=False)
class Finding:
    """A comparison with its result.

    comparison: the rows of the two checkpoints.
    readings: measure -> its reading; empty without common modules.
    held: medians of held_k of a and of b; None without common modules.
    log_distance, wasserstein: medians over the modules; None if there is no value.
    agreement: the result of all measures together.
    more: "a" or "b", the more dominated one; None if neither is.
    sentence: the result in words.
    """

    comparison: Comparison
    readings: dict[str, Reading]
    held: tuple[float, float] | None
    log_distance: float | None
    wasserstein: float | None
    agreement: Agreement
    more: str | None
    sentence: str


def findings(spectra: Spectra) -> list[Finding]:
    """Return a finding for every pair of checkpoints that `pairs` chooses."""
    return [judge(pair_spectra(spectra, a, b)) for a, b in pairs(spectra.rows)]


def rows(findings: Iterable[Finding]) -> list[Row]:
    """Return the rows of all comparisons, one after the other."""
    return [row for finding in findings for row in finding.comparison.rows]


def checkpoints(rows: Iterable[Row]) -> list[Checkpoint]:
    """Return the checkpoints (run, step) of the rows, in order of first appearance."""
    return list(dict.fromkeys((row["run"], row["step"]) for row in rows))


def pairs(rows: Iterable[Row]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Return the pairs of checkpoints to compare: every two runs, and the steps of each run.

    A run with several steps is compared with other runs by its last step; inside the run each step
    is compared with the next, and the first with the last. A checkpoint without a step comes after
    those with one.
    """
    runs: dict[str, list[Checkpoint]] = {}
    for run, step in checkpoints(rows):
        runs.setdefault(run, []).append((run, step))
    for steps in runs.values():
        steps.sort(key=lambda checkpoint: (checkpoint[1] is None, checkpoint[1] or 0))
    chosen = list(itertools.combinations([steps[-1] for steps in runs.values()], 2))
    for steps in runs.values():
        chosen += itertools.pairwise(steps)
        if len(steps) > 2:
            chosen.append((steps[0], steps[-1]))
    return chosen


def name(checkpoint: Checkpoint) -> str:
    """Return run, or run@step, as in the keys of the rows."""
    return run_key(*checkpoint)


def pair_spectra(spectra: Spectra, a: Checkpoint, b: Checkpoint) -> Comparison:
    """Return the comparison of two checkpoints in `spectra`, matched by module and part.

    If one of them has a module without parts, it is compared with each part of the other.
    """
    of_a, of_b = (
        grouped((row for row in spectra.rows if (row["run"], row["step"]) == c), "module")
        for c in (a, b)
    )
    drawn = null.drawn([row for row in spectra.rows if (row["run"], row["step"]) in (a, b)])
    comparison = Comparison(a, b, rows=[], only_a=[], only_b=[], zero=[], shapes=[], undrawn=[])
    for module in dict.fromkeys([*of_a, *of_b]):
        matches, only_a, only_b = meeting.match_parts(
            of_a.get(module, []), of_b.get(module, []), lambda row: row["part"]
        )
        comparison.only_a.extend(map(_name, only_a))
        comparison.only_b.extend(map(_name, only_b))
        for row_a, row_b in matches:
            if any(row_a[d] != row_b[d] for d in ("d_out", "d_in")):
                comparison.shapes.append(_name(row_a))
            elif 0 in (row_a["spectral_norm"], row_b["spectral_norm"]):
                comparison.zero.append(_name(row_a))
            elif not {(row["d_out"], row["d_in"], row["r"]) for row in (row_a, row_b)} <= drawn:
                comparison.undrawn.append(_name(row_a))
            else:
                s_a, s_b = (spectra.s[row["key"]] for row in (row_a, row_b))
                comparison.rows.append(_row(row_a, s_a, row_b, s_b))
    return comparison


def _name(row: Row) -> str:
    return row["module"] + (f"#{row['part']}" if row["part"] else "")


def _row(row_a: Row, s_a: np.ndarray, row_b: Row, s_b: np.ndarray) -> Row:
    """Return the row of one module, by COLUMNS."""
    k = min(s_a.size, s_b.size)
    distance = log_distance(s_a, s_b, min(k, row_a["rank"], row_b["rank"]))
    row: Row = {
        "run_a": row_a["run"],
        "step_a": row_a["step"],
        "run_b": row_b["run"],
        "step_b": row_b["step"],
        "module": row_a["module"],
        "layer": row_a["layer"],
        "kind": row_a["kind"],
        "part": row_a["part"] or row_b["part"],
        "r_a": row_a["r"],
        "r_b": row_b["r"],
        "capacity_a": s_a.size,
        "capacity_b": s_b.size,
        "k": k,
        "log_distance": None if np.isnan(distance) else distance,
        "wasserstein": wasserstein(s_a, s_b, min(row_a["d_out"], row_a["d_in"])),
    }
    for side, s in (("a", s_a), ("b", s_b)):
        for measure, value in statistics.comparable(s, k).items():
            row[f"{measure}_{side}"] = value
    row |= _beyond(row, null.of_row(row_a, k), null.of_row(row_b, k))
    return {column: row[column] for column in COLUMNS}


def _beyond(row: Row, chance_a: Chances, chance_b: Chances) -> Row:
    """Return the columns of what the measures in `row` are beyond chance.

    The spread is the standard deviation of the difference between two random updates, one of each
    capacity and kind.
    """
    found: Row = {}
    for measure in MEASURES:
        spreads = []
        for side, chance in (("a", chance_a[measure]), ("b", chance_b[measure])):
            value = row[f"{measure}_{side}"]
            ratio = measure == "effective_rank_k"
            found[f"{measure}_beyond_{side}"] = (
                value / chance.mean if ratio else value - chance.mean
            )
            spreads.append(chance.spread / chance.mean if ratio else chance.spread)
        found[f"{measure}_spread"] = math.hypot(*spreads)
    return found


def unlike(row: Row) -> bool:
    """Return whether the two updates of a row differ in capacity or kind, so that chance does."""
    return any(row[f"{column}_a"] != row[f"{column}_b"] for column in ("r", "capacity"))


def log_distance(a: np.ndarray, b: np.ndarray, common: int) -> float:
    """Root mean square of log(aᵢ/‖a‖_F) − log(bᵢ/‖b‖_F) over i = 1…common, at least 0.

    a, b: singular values, descending; the norms are over all of them. common: the number of values
    that both have above their rank cutoff, since the logarithm of a smaller value is that of
    rounding or noise. A value of 0, and all after it, never count. Unchanged by scaling a or b;
    0.69 is a factor of 2. nan if no value is left.
    """
    common = min(common, int(np.count_nonzero(a)), int(np.count_nonzero(b)))
    if common <= 0:
        return math.nan
    ratio = statistics.normalised(a)[:common] / statistics.normalised(b)[:common]
    return float(np.sqrt(np.mean(np.log(ratio) ** 2)))


def wasserstein(a: np.ndarray, b: np.ndarray, d: int) -> float:
    """Wasserstein-1 distance between the distributions of all d singular values of ΔW/‖ΔW‖_F.

    a, b: singular values, descending; d = min(d_out, d_in). Values that a parametrisation does not
    have are zero in ΔW and count as zero, so that the number depends on the two matrices and not on
    their factors: (1/d) Σᵢ |aᵢ/‖a‖_F − bᵢ/‖b‖_F|, i = 1…d, since pairing sorted values is an
    optimal coupling. Over the first k values only, it would change with unused capacity, and pairs
    of different k could not be compared. Lies in [0, 1/√d]; of the order of 1/d for low ranks.
    """
    k = max(a.size, b.size)
    difference = np.zeros(k)
    difference[: a.size] += statistics.normalised(a)
    difference[: b.size] -= statistics.normalised(b)
    return float(np.abs(difference).sum() / d)


def judge(comparison: Comparison) -> Finding:
    """Return which of the two checkpoints is more dominated, and by which measures.

    A measure is clear if one side is more dominated (a larger share or Gini coefficient, a smaller
    effective rank) in at least CLEAR of the modules, and the median difference on that side is at
    least SMALLEST of the measure's range; and if both are so beyond chance too, where a module
    counts only if its difference is more than SPREADS standard deviations between random updates.
    If only the first holds, unlike capacities or kinds explain the difference. A module counts
    for a measure only if the smaller capacity does not determine it: top_share_4 of an adapter of
    rank 4 is 1 by construction, as is the effective rank of one value. See `Agreement` for the
    results: all measures that count are clear and agree; some of both families; those of one family
    only; they disagree; none is clear; none is, because the capacities explain the difference; no
    measure counts, because one side has a single value; there is no common module.
    """
    rows = comparison.rows
    readings = {measure: reading(rows, measure) for measure in MEASURES} if rows else {}
    clear = {measure: r.more for measure, r in readings.items() if r.more}
    explained = [measure for measure, r in readings.items() if r.by_capacity]
    agreement, more = _agreement(readings, clear)
    held_a, held_b, distance, wasserstein_distance = (
        statistics.median([row[column] for row in rows])
        for column in ("held_k_a", "held_k_b", "log_distance", "wasserstein")
    )
    held = None if held_a is None or held_b is None else (held_a, held_b)
    return Finding(
        comparison,
        readings,
        held=held,
        log_distance=distance,
        wasserstein=wasserstein_distance,
        agreement=agreement,
        more=more,
        sentence=_sentence(comparison, agreement, clear, explained, held),
    )


def _agreement(readings: dict[str, Reading], clear: dict[str, str]) -> tuple[Agreement, str | None]:
    """Return the result of all measures, and the side, "a" or "b", that is more dominated.

    clear: measure -> the side that is more dominated, for the measures that are clear.
    """
    counting = sum(reading.modules > 0 for reading in readings.values())
    if not readings:
        return Agreement.NOTHING, None
    if not counting:
        return Agreement.CAPACITY, None
    if not clear:
        explained = any(reading.by_capacity for reading in readings.values())
        return (Agreement.EXPLAINED if explained else Agreement.NONE), None
    if len(set(clear.values())) == 2:
        return Agreement.DISAGREE, None
    more = next(iter(clear.values()))
    if len(clear) == counting:
        return Agreement.ALL, more
    if not clear.keys() & set(WITHIN):
        return Agreement.SHARES, more
    return (Agreement.BOTH if clear.keys() & SHARES.keys() else Agreement.WITHIN), more


def reading(rows: Sequence[Row], measure: str) -> Reading:
    """Return the reading of one measure over the rows, of which there is at least one."""
    free = [row for row in rows if row["k"] > SHARES.get(measure, 1)]
    a, b, beyond_a, beyond_b, spread, k = (
        np.array([row[column] for row in free or rows])
        for column in (*_columns(measure), f"{measure}_spread", "k")
    )
    # Positive if a is more dominated, as a part of the measure's range.
    excess, beyond = a - b, beyond_a - beyond_b
    if measure == "effective_rank_k":
        excess, beyond = -excess / k, -beyond
    # Between updates of one capacity and kind chance cancels, and only its spread counts.
    explained = any(unlike(row) for row in free or rows)
    same = np.abs(a - b) <= TIE * np.maximum(np.abs(a), np.abs(b))
    excess[same] = 0
    beyond[same] = 0
    more, more_beyond = (
        _clear(values, at_least) if free else None
        for values, at_least in ((excess, 0.0), (beyond, SPREADS * spread))
    )
    return Reading(
        a=float(np.median(a)),
        b=float(np.median(b)),
        difference=float(np.median(a - b)),
        beyond_a=float(np.median(beyond_a)),
        beyond_b=float(np.median(beyond_b)),
        beyond=float(np.median(beyond_a - beyond_b)),
        more_a=int(np.count_nonzero(excess > 0)) if free else 0,
        more_b=int(np.count_nonzero(excess < 0)) if free else 0,
        modules=len(free),
        more=more if more == more_beyond else None,
        by_capacity=more if more != more_beyond and explained else None,
    )


def _columns(measure: str) -> tuple[str, ...]:
    """The columns of a measure and of what it is beyond chance, for a and b."""
    return tuple(f"{measure}{what}_{side}" for what in ("", "_beyond") for side in "ab")


def _clear(excess: np.ndarray, beyond: float | np.ndarray) -> str | None:
    """Return the side, "a" or "b", that is clearly more dominated; None if neither is.

    excess (modules,): positive where a is more dominated; beyond: a module counts from there on.
    """
    for label, side in (("a", 1), ("b", -1)):
        count = np.count_nonzero(side * excess > beyond)
        if count >= CLEAR * excess.size and side * np.median(excess) >= SMALLEST:
            return label
    return None


def k_range(rows: Sequence[Row]) -> str:
    """Return the range of k over the rows in words: 8, or 4…8."""
    k = {row["k"] for row in rows}
    return f"{min(k)}" if len(k) == 1 else f"{min(k)}…{max(k)}"


def heading(measure: str, k: str) -> str:
    """Return the name of a measure in words, for tables and sentences."""
    if measure in SHARES:
        return f"top-{SHARES[measure]}"
    return f"{'eff. rank' if measure == 'effective_rank_k' else 'Gini'} of s[:{k}]"


def _sentence(
    comparison: Comparison,
    agreement: Agreement,
    clear: dict[str, str],
    explained: Sequence[str],
    held: tuple[float, float] | None,
) -> str:
    """Return the result in a sentence.

    explained: the measures whose difference the capacities explain; the other arguments are those
    of `Finding` and `_agreement`.
    """
    names = {"a": name(comparison.a), "b": name(comparison.b)}
    both = f"{names['a']} and {names['b']}"
    if agreement is Agreement.NOTHING or held is None:
        return f"{both} have no update in common that could be compared."
    k = k_range(comparison.rows)
    by = {
        side: ", ".join(heading(measure, k) for measure, more in clear.items() if more == side)
        for side in "ab"
    }
    if agreement is Agreement.CAPACITY:
        return f"Which of {both} is more dominated follows from the capacities: k = {k}."
    if agreement is Agreement.NONE:
        return f"No clear difference in how dominated {both} are by their top values."
    if agreement is Agreement.EXPLAINED:
        measures = ", ".join(heading(measure, k) for measure in explained)
        return f"{both} differ by {measures}: the capacities explain the difference."
    if agreement is Agreement.DISAGREE:
        return (
            f"The measures disagree: {names['a']} is more dominated by {by['a']},"
            f" {names['b']} by {by['b']}."
        )
    (side,) = set(clear.values())
    other = names["b" if side == "a" else "a"]
    result = f"{names[side]} is more dominated than {other}"
    if agreement is Agreement.ALL:
        return f"{result}, by all measures."
    if agreement is Agreement.BOTH:
        return f"{result}, by {by[side]}; the other measures are not clear."
    if agreement is Agreement.SHARES:
        return (
            f"{result} by energy shares only ({by[side]}); by how uneven the top {k} values are it"
            " is not clear."
        )
    return (
        f"{result} by how uneven its top {k} values are, which hold {held[0]:.3f} and"
        f" {held[1]:.3f} of the energy; by energy shares it is not clear."
    )


def as_json(finding: Finding) -> Row:
    """Return the finding as a dict for strict JSON, without the rows of its modules."""
    comparison = finding.comparison
    (run_a, step_a), (run_b, step_b) = comparison.a, comparison.b
    more = {"a": name(comparison.a), "b": name(comparison.b)}
    held_a, held_b = finding.held or (None, None)
    return {
        "run_a": run_a,
        "step_a": step_a,
        "run_b": run_b,
        "step_b": step_b,
        "modules": len(comparison.rows),
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
        "zero": comparison.zero,
        "shapes": comparison.shapes,
        "undrawn": comparison.undrawn,
        "measures": {measure: vars(reading) for measure, reading in finding.readings.items()},
        "held_a": held_a,
        "held_b": held_b,
        "log_distance": finding.log_distance,
        "wasserstein": finding.wasserstein,
        "outcome": finding.agreement.value,
        "more_dominated": more[finding.more] if finding.more else None,
        "sentence": finding.sentence,
    }
