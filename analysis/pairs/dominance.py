"""Compare the spectra of two checkpoints, module by module, and say which is more dominated.

Only measures that may be compared between capacities are used, in two families. The energy shares
top_share_1, 4 and 16 look at the whole spectrum: the share of ΔW's energy in a fixed number of
directions. effective_rank and gini of s[:k], k being the smaller of the two capacities, look at how
even these k values are, whatever lies beyond them; held_k is the share of the energy that they
hold. If only one family tells the two apart, the sentence at the end says so.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from analysis.names import run_key
from analysis.numerics import statistics
from analysis.pairs import meeting
from analysis.results import Row, Spectra, grouped

TABLE = "comparison.csv"
SHARES = {"top_share_1": 1, "top_share_4": 4, "top_share_16": 16}
WITHIN = ("effective_rank_k", "gini_k")
MEASURES = (*SHARES, *WITHIN)
COLUMNS = (
    "run_a", "step_a", "run_b", "step_b", "module", "layer", "kind", "part",
    "capacity_a", "capacity_b", "k",
    "top_share_1_a", "top_share_1_b", "top_share_4_a", "top_share_4_b",
    "top_share_16_a", "top_share_16_b", "effective_rank_k_a", "effective_rank_k_b",
    "gini_k_a", "gini_k_b", "held_k_a", "held_k_b",
    "log_distance", "wasserstein",
)  # fmt: skip

# A measure is clear if one side is more dominated in at least this share of the modules,
CLEAR = 0.75
# and the median difference is at least this part of the measure's range, which is 1, or k
# directions for an effective rank.
SMALLEST = 0.01
# Values that differ by less than this, relative to them, are equal: rounding of the same spectrum.
TIE = 1e-9

Checkpoint = tuple[str, int | None]  # run, step


@dataclass(frozen=True, eq=False)
class Comparison:
    """The measures of two checkpoints, module by module.

    rows: one per module that both have, keyed by COLUMNS; None if a number is undefined.
    only_a, only_b: modules that only one of them has.
    zero: modules left out because ΔW = 0 in one of them.
    shapes: modules left out because their shapes differ.
    """

    a: Checkpoint
    b: Checkpoint
    rows: list[Row]
    only_a: list[str]
    only_b: list[str]
    zero: list[str]
    shapes: list[str]


@dataclass(frozen=True)
class Reading:
    """One measure over the modules.

    a, b, difference: medians of the measure for a, for b, and of a − b, over the modules counted
        below, or over all if there are none.
    more_a, more_b: the numbers of modules in which a, and b, is more dominated.
    modules: the number of modules whose capacities do not determine the measure.
    more: "a" or "b", the one that is clearly more dominated; None if neither is.
    """

    a: float
    b: float
    difference: float
    more_a: int
    more_b: int
    modules: int
    more: str | None


class Agreement(StrEnum):
    """The result of all measures together."""

    ALL = "all measures"
    BOTH = "energy shares and within s[:k]"
    SHARES = "energy shares only"
    WITHIN = "within s[:k] only"
    DISAGREE = "measures disagree"
    NONE = "no clear difference"
    CAPACITY = "follows from the capacities"
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
    comparison = Comparison(a, b, rows=[], only_a=[], only_b=[], zero=[], shapes=[])
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
        "capacity_a": s_a.size,
        "capacity_b": s_b.size,
        "k": k,
        "log_distance": None if np.isnan(distance) else distance,
        "wasserstein": wasserstein(s_a, s_b, min(row_a["d_out"], row_a["d_in"])),
    }
    for side, s in (("a", s_a), ("b", s_b)):
        for measure, value in statistics.comparable(s, k).items():
            row[f"{measure}_{side}"] = value
    return {column: row[column] for column in COLUMNS}


def log_distance(a: np.ndarray, b: np.ndarray, common: int) -> float:
    """Root mean square of log(aᵢ/‖a‖_F) − log(bᵢ/‖b‖_F) over i = 1…common, at least 0.

    a, b: singular values, descending; the norms are over all of them. common: the number of values
    that both have above their rank cutoff, since the logarithm of a smaller value is that of
    rounding or noise. Unchanged by scaling a or b; 0.69 is a factor of 2. nan if common is 0.
    """
    if common == 0:
        return float("nan")
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
    least SMALLEST of the measure's range. A module counts for a measure only if the smaller
    capacity does not determine it: top_share_4 of an adapter of rank 4 is 1 by construction, as is
    the effective rank of one value. See `Agreement` for the results: all measures that count are
    clear and agree; some of both families; those of one family only; they disagree; none is clear;
    no measure counts, because one side has a single value; there is no common module.
    """
    rows = comparison.rows
    readings = {measure: reading(rows, measure) for measure in MEASURES} if rows else {}
    clear = {measure: r.more for measure, r in readings.items() if r.more}
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
        sentence=_sentence(comparison, agreement, clear, held),
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
        return Agreement.NONE, None
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
    counted = free or rows
    a, b, k = (np.array([row[c] for row in counted]) for c in (f"{measure}_a", f"{measure}_b", "k"))
    # Positive if a is more dominated, as a part of the measure's range.
    excess = (b - a) / k if measure == "effective_rank_k" else a - b
    excess[np.abs(a - b) <= TIE * np.maximum(np.abs(a), np.abs(b))] = 0
    more_a, more_b = (int(np.count_nonzero(side * excess > 0)) for side in (1, -1))
    more = None
    for label, count, side in (("a", more_a, 1), ("b", more_b, -1)):
        if free and count >= CLEAR * len(free) and side * np.median(excess) >= SMALLEST:
            more = label
    return Reading(
        a=float(np.median(a)),
        b=float(np.median(b)),
        difference=float(np.median(a - b)),
        more_a=more_a if free else 0,
        more_b=more_b if free else 0,
        modules=len(free),
        more=more,
    )


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
    held: tuple[float, float] | None,
) -> str:
    """Return the result in a sentence; the arguments are those of `Finding` and `_agreement`."""
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
        return f"{result}, by energy shares only ({by[side]}); within s[:{k}] it is not clear."
    return (
        f"{result}, within s[:{k}] only, which holds {held[0]:.3f} and {held[1]:.3f} of the energy;"
        " by energy shares it is not clear."
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
        "measures": {measure: vars(reading) for measure, reading in finding.readings.items()},
        "held_a": held_a,
        "held_b": held_b,
        "log_distance": finding.log_distance,
        "wasserstein": finding.wasserstein,
        "outcome": finding.agreement.value,
        "more_dominated": more[finding.more] if finding.more else None,
        "sentence": finding.sentence,
    }
