"""Two checkpoints' spectra, module by module: which rests on fewer directions, how far apart.

Only measures that hold between capacities are read, in two families. The energy shares top_share_1,
4 and 16 look at the whole spectrum: how much of ΔW's energy lies in a fixed number of directions.
effective_rank and gini of s[:k], k the smaller of the two capacities, look at how even these k
values are, whatever else there is; held_k says how much of the energy they hold. Where only one
family tells the two apart, the sentence at the end says so.
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
    *("run_a", "step_a", "run_b", "step_b", "module", "layer", "kind", "part"),
    *("capacity_a", "capacity_b", "k"),
    *(f"{measure}_{side}" for measure in (*MEASURES, "held_k") for side in "ab"),
    *("log_distance", "wasserstein"),
)

# A measure is clear where one side is the more dominated in this share of the modules,
CLEAR = 0.75
# and the median difference is at least this part of the measure's range: 1, or k directions.
SMALLEST = 0.01
# Values closer than this, relative to them, are equal: what rounding leaves of one spectrum.
TIE = 1e-9

Checkpoint = tuple[str, int | None]  # run and step


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two checkpoints, module by module.

    rows: one a module that both have, keyed by COLUMNS, None where a number is undefined; only_a,
    only_b: the names of the others; zero: modules left out because ΔW = 0 on a side; shapes:
    modules left out because they are not of one shape.
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

    a, b, difference: medians, of a − b for the last; more_a, more_b: in how many of `modules` each
    is the more dominated. modules: those whose capacities leave the measure free; medians are over
    them, or over all where there is none. more: "a" or "b" where that is clear, else None.
    """

    a: float
    b: float
    difference: float
    more_a: int
    more_b: int
    modules: int
    more: str | None


class Agreement(StrEnum):
    """What the measures say together."""

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
    """A comparison, what each measure says, what they say together, and that in a sentence.

    more: "a" or "b", the more dominated, or None. Medians over modules, None without any: held,
    of both sides, and the two distances.
    """

    comparison: Comparison
    readings: dict[str, Reading]
    held: tuple[float, float] | None
    log_distance: float | None
    wasserstein: float | None
    outcome: Agreement
    more: str | None
    sentence: str


def findings(spectra: Spectra) -> list[Finding]:
    """What there is to say about every pair of checkpoints that `pairs` chooses."""
    return [judge(pair_spectra(spectra, a, b)) for a, b in pairs(spectra.rows)]


def rows(found: Iterable[Finding]) -> list[Row]:
    """The rows of all comparisons, one after the other."""
    return [row for finding in found for row in finding.comparison.rows]


def checkpoints(rows: Iterable[Row]) -> list[Checkpoint]:
    """Runs and steps, in order of first appearance."""
    return list(dict.fromkeys((row["run"], row["step"]) for row in rows))


def pairs(rows: Iterable[Row]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Which checkpoints are compared: every two runs, and the steps of each run.

    Of a run with several steps, its last meets the other runs; inside the run each step meets the
    next, and the first the last. A checkpoint without a step comes after those that have one.
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
    """run, or run@step, as in the keys of the rows."""
    return run_key(*checkpoint)


def pair_spectra(spectra: Spectra, a: Checkpoint, b: Checkpoint) -> Comparison:
    """The spectra of two checkpoints, paired by module and part.

    Where one side of a module has no parts, it meets each part of the other.
    """
    of_a, of_b = (
        grouped((row for row in spectra.rows if (row["run"], row["step"]) == c), "module")
        for c in (a, b)
    )
    found = Comparison(a, b, rows=[], only_a=[], only_b=[], zero=[], shapes=[])
    for module in dict.fromkeys([*of_a, *of_b]):
        met, only_a, only_b = meeting.meeting(
            of_a.get(module, []), of_b.get(module, []), lambda row: row["part"]
        )
        found.only_a.extend(map(_name, only_a))
        found.only_b.extend(map(_name, only_b))
        for row_a, row_b in met:
            if any(row_a[d] != row_b[d] for d in ("d_out", "d_in")):
                found.shapes.append(_name(row_a))
            elif 0 in (row_a["spectral_norm"], row_b["spectral_norm"]):
                found.zero.append(_name(row_a))
            else:
                s_a, s_b = (spectra.s[row["key"]] for row in (row_a, row_b))
                found.rows.append(_row(row_a, s_a, row_b, s_b))
    return found


def _name(row: Row) -> str:
    return row["module"] + (f"#{row['part']}" if row["part"] else "")


def _row(row_a: Row, s_a: np.ndarray, row_b: Row, s_b: np.ndarray) -> Row:
    """The line of one module, by COLUMNS."""
    k = min(s_a.size, s_b.size)
    distance = log_distance(s_a, s_b, min(k, row_a["rank"], row_b["rank"]))
    measures = zip(
        statistics.comparable(s_a, k).items(), statistics.comparable(s_b, k).values(), strict=True
    )
    line: Row = {
        **{"run_a": row_a["run"], "step_a": row_a["step"]},
        **{"run_b": row_b["run"], "step_b": row_b["step"]},
        **{column: row_a[column] for column in ("module", "layer", "kind")},
        "part": row_a["part"] or row_b["part"],
        **{"capacity_a": s_a.size, "capacity_b": s_b.size, "k": k},
        "log_distance": None if np.isnan(distance) else distance,
        "wasserstein": wasserstein(s_a, s_b, min(row_a["d_out"], row_a["d_in"])),
    }
    for (measure, a), b in measures:
        line |= {f"{measure}_a": a, f"{measure}_b": b}
    return {column: line[column] for column in COLUMNS}


def log_distance(a: np.ndarray, b: np.ndarray, common: int) -> float:
    """Root mean square of log(aᵢ/‖a‖_F) − log(bᵢ/‖b‖_F) over i = 1…common.

    common: how many values both have above their rank cutoff, since the logarithm of a value
    below it is one of rounding or noise; the norms count all values. At least 0, unchanged by
    scaling a or b; 0.69 is a factor of 2. nan where common is 0.
    """
    if common == 0:
        return float("nan")
    ratio = statistics.normalised(a)[:common] / statistics.normalised(b)[:common]
    return float(np.sqrt(np.mean(np.log(ratio) ** 2)))


def wasserstein(a: np.ndarray, b: np.ndarray, d: int) -> float:
    """Wasserstein-1 distance of the distributions of all d singular values of ΔW/‖ΔW‖_F.

    a, b descending; d = min(d_out, d_in). What a parametrisation does not have is zero in ΔW, and
    counts as that, so that the number is one of the two matrices, whatever they are factored
    into: (1/d) Σᵢ |aᵢ/‖a‖_F − bᵢ/‖b‖_F|, i = 1…d, for sorted values are an optimal coupling. Over
    the first k values only it would change with the capacity that is not used, and pairs of
    different k could not be compared. Lies in [0, 1/√d], of the order of 1/d for low ranks.
    """
    k = max(a.size, b.size)
    difference = np.zeros(k)
    difference[: a.size] += statistics.normalised(a)
    difference[: b.size] -= statistics.normalised(b)
    return float(np.abs(difference).sum() / d)


def judge(comparison: Comparison) -> Finding:
    """Which of the two is the more dominated, by which measures.

    A measure says so where it is clear: in at least CLEAR of the modules one side is the more
    dominated (a larger share or Gini coefficient, a smaller effective rank), and the median
    difference on that side is at least SMALLEST of the measure's range. Modules count for a
    measure only where the smaller capacity leaves it free: top_share_4 of an adapter of rank 4 is
    1 by construction, as is the effective rank of one value. Outcomes: all measures that count
    say the same; some of both families do, and none contradicts; one family only; they disagree;
    none is clear; no measure counts, since one side has a single value; no module in common.
    """
    rows = comparison.rows
    readings = {measure: reading(rows, measure) for measure in MEASURES} if rows else {}
    said = {measure: r.more for measure, r in readings.items() if r.more}
    free = sum(reading.modules > 0 for reading in readings.values())
    more = next(iter(said.values()), None)
    if not rows:
        outcome = Agreement.NOTHING
    elif not free:
        outcome = Agreement.CAPACITY
    elif not said:
        outcome = Agreement.NONE
    elif len(set(said.values())) == 2:
        outcome, more = Agreement.DISAGREE, None
    elif len(said) == free:
        outcome = Agreement.ALL
    elif not said.keys() & set(WITHIN):
        outcome = Agreement.SHARES
    else:
        outcome = Agreement.BOTH if said.keys() & SHARES.keys() else Agreement.WITHIN
    held_a, held_b, log, far = (
        statistics.median([row[column] for row in rows])
        for column in ("held_k_a", "held_k_b", "log_distance", "wasserstein")
    )
    held = None if held_a is None or held_b is None else (held_a, held_b)
    sentence = _sentence(comparison, outcome, said, held)
    return Finding(comparison, readings, held, log, far, outcome, more, sentence)


def reading(rows: Sequence[Row], measure: str) -> Reading:
    """What one measure says of the modules; at least one."""
    free = [row for row in rows if row["k"] > SHARES.get(measure, 1)]
    counted = free or rows
    a, b, k = (np.array([row[c] for row in counted]) for c in (f"{measure}_a", f"{measure}_b", "k"))
    rank = measure == "effective_rank_k"
    # Positive where a is the more dominated, in parts of the measure's range.
    excess = (b - a) / k if rank else a - b
    excess[np.abs(a - b) <= TIE * np.maximum(np.abs(a), np.abs(b))] = 0
    more_a, more_b = (int(np.count_nonzero(side * excess > 0)) for side in (1, -1))
    more = None
    for label, count, side in (("a", more_a, 1), ("b", more_b, -1)):
        if free and count >= CLEAR * len(free) and side * np.median(excess) >= SMALLEST:
            more = label
    difference = float(np.median(a - b))
    medians = float(np.median(a)), float(np.median(b)), difference
    return Reading(*medians, *((more_a, more_b) if free else (0, 0)), len(free), more)


def k_range(rows: Sequence[Row]) -> str:
    """k of the modules in words: 8, or 4…8."""
    k = {row["k"] for row in rows}
    return f"{min(k)}" if len(k) == 1 else f"{min(k)}…{max(k)}"


def heading(measure: str, k: str) -> str:
    """What a measure is called in words."""
    if measure in SHARES:
        return f"top-{SHARES[measure]}"
    return f"{'eff. rank' if measure == 'effective_rank_k' else 'Gini'} of s[:{k}]"


def _sentence(
    comparison: Comparison,
    outcome: Agreement,
    said: dict[str, str],
    held: tuple[float, float] | None,
) -> str:
    """The outcome, as one says it of these two."""
    names = {"a": name(comparison.a), "b": name(comparison.b)}
    both = f"{names['a']} and {names['b']}"
    if outcome is Agreement.NOTHING or held is None:
        return f"{both} have no update in common that could be compared."
    k = k_range(comparison.rows)
    by = {
        side: ", ".join(heading(measure, k) for measure, more in said.items() if more == side)
        for side in "ab"
    }
    if outcome is Agreement.CAPACITY:
        return f"Which of {both} is the more dominated follows from the capacities: k = {k}."
    if outcome is Agreement.NONE:
        return f"No clear difference in how dominated {both} are by their top values."
    if outcome is Agreement.DISAGREE:
        return (
            f"The measures disagree: {names['a']} is the more dominated by {by['a']},"
            f" {names['b']} by {by['b']}."
        )
    (side,) = set(said.values())
    other = names["b" if side == "a" else "a"]
    clear = f"{names[side]} is more dominated than {other}"
    if outcome is Agreement.ALL:
        return f"{clear}, by all measures."
    if outcome is Agreement.BOTH:
        return f"{clear}, by {by[side]}; the other measures are not clear."
    if outcome is Agreement.SHARES:
        return f"{clear}, by energy shares only ({by[side]}); within s[:{k}] it is not clear."
    return (
        f"{clear}, within s[:{k}] only, which holds {held[0]:.3f} and {held[1]:.3f} of the energy;"
        " by energy shares it is not clear."
    )


def as_json(finding: Finding) -> Row:
    """All but the rows of a finding, as strict JSON can hold it."""
    comparison = finding.comparison
    (run_a, step_a), (run_b, step_b) = comparison.a, comparison.b
    more = {"a": name(comparison.a), "b": name(comparison.b)}
    return {
        **{"run_a": run_a, "step_a": step_a, "run_b": run_b, "step_b": step_b},
        "modules": len(comparison.rows),
        **{part: getattr(comparison, part) for part in ("only_a", "only_b", "zero", "shapes")},
        "measures": {measure: vars(reading) for measure, reading in finding.readings.items()},
        **{"held_a": finding.held and finding.held[0], "held_b": finding.held and finding.held[1]},
        **{"log_distance": finding.log_distance, "wasserstein": finding.wasserstein},
        "outcome": finding.outcome.value,
        "more_dominated": more[finding.more] if finding.more else None,
        "sentence": finding.sentence,
    }
