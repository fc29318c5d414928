"""Print the effect of merging updates: each pair by kind and in words, each adapter, the whole."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.names import run_key
from analysis.numerics import statistics
from analysis.numerics.subspaces import SIDES
from analysis.pairs import merging
from analysis.results import RUNS, Merging, Row, grouped, pair_name
from analysis.tables.text import Block, Statement, Table, counted, percent, run_heading

# Below this |cosine|, ‖ΔW_a + ΔW_b‖² is within 10 % of ‖ΔW_a‖² + ‖ΔW_b‖², whatever the norms.
UNRELATED = 0.1
# From this |cosine| on, at most 5 % of the energy of two updates of equal norm lies outside their
# common direction.
SAME = 0.9
# Shares of an update's energy inside the other's directions, in excess of chance.
SOME, MUCH = 0.1, 0.5
# Norm ratios from which the smaller update has at most a tenth, a hundredth of the larger's energy.
LARGER, DWARFS = 10**0.5, 10.0

EXPLANATION = f"""\
ΔW = U diag(s) Vᵀ reads the directions V and writes the directions U; its top directions are those
that hold 90 % of its energy Σs², and any that storage cannot separate from the last of them.
cosine: ⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖); a/b: ‖ΔW_a‖_F/‖ΔW_b‖_F; writes, reads: share of the energy of
one update that lies in the other's top left (output) and top right (input) directions, in brackets
what random directions would hold; opposite: share of entries with opposite signs, 0.5 by chance,
and arccos(cosine)/π for Gaussian entries; if there are more than 10⁶ entries, it is estimated from
a seeded sample of 10⁶ entries (standard error 0.0005 for independent entries, up to 0.016 for
entries of very low rank); an entry that is exactly zero is opposite to none.

Of the sum ΔW_a + ΔW_b: energy: ‖ΔW_a + ΔW_b‖²/(‖ΔW_a‖² + ‖ΔW_b‖²), 1 if nothing is cancelled or
strengthened; ‖sum‖₂: s₁; eff. rank: exp of the entropy of s/Σs; 90 %, 99 %: number of directions
that hold this share of its energy; "a 99 %" and "b 99 %": the same of a and b. The average
½(ΔW_a + ΔW_b) has half the s, half the norms, and the same ranks. Numbers are medians over modules.

Of an adapter beside all the others: writes, reads: share of its energy in the span of the top
directions of all others, in brackets by chance; aligned: ‖ΠΔW‖_F/‖ΔW‖_F, where Π projects on the
merged update's top output directions, all but 5 % of its norm (arXiv 2502.04959), in brackets by
chance; cosine: with the merged update. Of the merged update: interference: the sum of the absolute
entries of (UᵀU − I)Σ(VᵀV − I) over the directions of all adapters, by Σσ, 0 if no two share
directions (arXiv 2412.00081); aligned: mean and least of the adapters; conflict: share of entries
that are positive in one adapter and negative in another, of n independent ones 1 − 2^(1−n);
max/min: the norms of the largest and the smallest adapter; energy: ‖ΔW‖² by the sum of theirs;
eff. rank, top 1 (share of the first direction): the adapters' mean → the merged update; 99 %: its
directions that hold 99 % of its energy; error: ‖ΔW − exact‖_F/‖exact‖_F of a cut to a rank.

In words: a |cosine| below {UNRELATED:g} is unrelated; from {SAME:g} on, the direction is nearly the
same or opposite. Updates overlap if at least {100 * MUCH:g} % of the energy that chance leaves
outside the other's directions lies inside them, and overlap partly from {100 * SOME:g} % on. An
update of less than 1/{DWARFS:g} of the other's norm hardly counts.

These numbers do not tell the accuracy of the merged model, which depends on the inputs and on all
layers together: only an evaluation on both tasks tells it. Updates that share nothing can disturb
one another through the layers in between, and updates that conflict can merge well."""

# Heading, and the columns and formats that make a cell.
PRINTED = (
    ("cosine", (("cosine", "{:.3f}"),)),
    ("a/b", (("norm_ratio", "{:.3g}"),)),
    ("a writes in b", (("shared_left_a", "{:.3f}"), ("chance_left_a", " ({:.3f})"))),
    ("a reads in b", (("shared_right_a", "{:.3f}"), ("chance_right_a", " ({:.3f})"))),
    ("b writes in a", (("shared_left_b", "{:.3f}"), ("chance_left_b", " ({:.3f})"))),
    ("b reads in a", (("shared_right_b", "{:.3f}"), ("chance_right_b", " ({:.3f})"))),
    ("opposite", (("opposite_sign", "{:.3f}"),)),
    ("energy", (("sum_energy", "{:.3f}"),)),
    ("‖sum‖₂", (("sum_spectral_norm", "{:.3g}"),)),
    ("eff. rank", (("sum_effective_rank", "{:.2f}"),)),
    ("90 %", (("sum_rank_90", "{:g}"),)),
    ("99 %", (("sum_rank_99", "{:g}"), ("sum_capacity", " of {:g}"))),
    ("a 99 %", (("rank_99_a", "{:g}"),)),
    ("b 99 %", (("rank_99_b", "{:g}"),)),
)

OF_ADAPTER = (
    ("‖ΔW‖_F", (("frobenius_norm", "{:.3g}"),)),
    ("eff. rank", (("effective_rank", "{:.2f}"), ("capacity", " of {:g}"))),
    ("top 1", (("top_share_1", "{:.3f}"),)),
    ("writes in others", (("shared_left", "{:.3f}"), ("chance_left", " ({:.3f})"))),
    ("reads in others", (("shared_right", "{:.3f}"), ("chance_right", " ({:.3f})"))),
    ("aligned", (("alignment", "{:.3f}"), ("alignment_chance", " ({:.3f})"))),
    ("cosine", (("cosine", "{:.3f}"),)),
)
OF_MERGED = (
    ("interference", (("interference_relative", "{:.3g}"),)),
    ("aligned", (("alignment", "{:.3f}"), ("alignment_min", " ≥ {:.3f}"))),
    ("conflict", (("sign_conflict", "{:.3f}"),)),
    ("max/min", (("norm_ratio", "{:.3g}"),)),
    ("energy", (("energy", "{:.3f}"),)),
    ("eff. rank", (("effective_rank_before", "{:.2f} →"), ("effective_rank", " {:.2f}"))),
    ("top 1", (("top_share_1_before", "{:.3f} →"), ("top_share_1", " {:.3f}"))),
    ("99 %", (("rank_99", "{:g}"), ("capacity", " of {:g}"))),
    ("error", (("error", "{:.3g}"),)),
)

# The effect of the sum, by the relation of two updates if neither is much the larger.
MEANING = {
    "nearly the same direction": "the sum counts what they share twice, the average once",
    "nearly opposite": "the sum cancels {cancelled} of their energy",
    "partly aligned": (
        "the sum strengthens what they share ({gained} more energy than the two apart)"
    ),
    "conflicting": "the sum cancels {cancelled} of their energy",
    "almost independent": "the sum keeps both",
    "independent, overlapping only by chance": (
        "both fill so many directions that each changes what the other does; the sum cancels little"
    ),
    "overlapping, with unrelated content": (
        "each changes what the other does; the sum cancels little"
    ),
    "writing the same directions, reading others": (
        "the sum keeps both for inputs that hold the directions of only one"
    ),
    "reading the same directions, writing others": "for one input, the sum writes what both write",
    "partly overlapping, with unrelated content": (
        "where they meet, each changes what the other does; the sum keeps most of both"
    ),
}


def lines(found: Merging) -> Iterator[Block]:
    """Yield the pairs, each adapter beside the others, and the merged update, by kind of module.

    Two checkpoints are compared by kind of module and in words; of more, a pair has one line.
    """
    pairs = grouped(found.rows, *RUNS)
    if len(pairs) == 1:
        yield from _of_pair(found.rows)
    elif pairs:
        yield from _of_pairs(pairs)
    if found.adapters:
        yield from _of_adapters(found.adapters)
        yield from _of_merged(found.merged)


def _of_pair(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield a table by kind of module for two runs, and each kind in words."""
    for name in "ab":
        run, step = rows[0][f"run_{name}"], rows[0][f"step_{name}"]
        methods = ", ".join(dict.fromkeys(row[f"method_{name}"] for row in rows))
        yield f"{name}: {run_heading(run, step)}  ({methods})"
    yield _by_kind(rows, PRINTED)
    yield ""
    for kind, group in grouped(rows, "kind").items():
        yield Statement(f"{kind[0]}: {sentence(group)}")
    yield ""


def _of_pairs(pairs: Mapping[tuple[Any, ...], Sequence[Row]]) -> Iterator[Block]:
    """Yield a table with one line for each pair of runs."""
    yield "Each pair, a ~ b"
    cells = [["pair", "modules", *(heading for heading, _ in PRINTED)]]
    for rows in pairs.values():
        cells.append([pair_name(rows[0]), str(len(rows)), *_cells(rows, PRINTED)])
    yield Table(cells, leaving=("‖sum‖₂", "90 %", "a 99 %", "b 99 %"))
    yield ""


def _of_adapters(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield a table with one line for each adapter, beside all the others and the merged update."""
    yield "Each adapter beside the others, and the merged update"
    cells = [["adapter", "modules", *(heading for heading, _ in OF_ADAPTER)]]
    for (run, step), group in grouped(rows, "run", "step").items():
        cells.append([run_key(run, step), str(len(group)), *_cells(group, OF_ADAPTER)])
    yield Table(cells)
    yield ""


def _of_merged(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield a table of the merged update by kind of module."""
    most = max(row["adapters"] for row in rows)
    yield f"{counted(most, 'adapter')} merged ({rows[0]['merged_by']})"
    yield _by_kind(rows, OF_MERGED)
    yield ""


Printed = Sequence[tuple[str, Sequence[tuple[str, str]]]]


def _by_kind(rows: Sequence[Row], printed: Printed) -> Table:
    """Return a table with one line for each kind of module, and one for all."""
    kinds = {kind: group for (kind,), group in grouped(rows, "kind").items()}
    cells = [["kind", "modules", *(heading for heading, _ in printed)]]
    for kind, group in [*kinds.items(), ("all", rows)]:
        cells.append([kind, str(len(group)), *_cells(group, printed)])
    return Table(cells)


def _cells(rows: Sequence[Row], printed: Printed) -> list[str]:
    return [_cell(rows, formats) for _, formats in printed]


def _cell(rows: Sequence[Row], formats: Sequence[tuple[str, str]]) -> str:
    """The medians of one or more columns, each in its format; a dash if one is undefined."""
    numbers = [(_median(rows, column), form) for column, form in formats]
    return "".join("–" if number is None else form.format(number) for number, form in numbers)


def _median(rows: Sequence[Row], column: str) -> float | None:
    """Median of a column (geometric for norm_ratio, so swapping a and b inverts it)."""
    if column == "norm_ratio" and rows:
        return math.exp(float(np.median([math.log(row[column]) for row in rows])))
    return statistics.median(row[column] for row in rows)


def sentence(rows: Sequence[Row]) -> str:
    """Describe the modules of one kind in words: their most common case, and how many differ.

    A case is a relation together with which update, if either, dwarfs the other. Numbers are
    medians over the modules of the most common case. rows: at least one.
    """
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((relation(row), _dwarfing(row["norm_ratio"])), []).append(row)
    (name, large), main = max(cases.items(), key=lambda item: len(item[1]))
    words = f"{name} ({_evidence(main)}): {_consequence(name, large, main)}{_needs(main)}"
    if len(cases) == 1:
        return words
    others = "; ".join(
        f"{len(group)} {name}{f', {large} much the larger' if large else ''}"
        for (name, large), group in cases.items()
        if group is not main
    )
    return f"in {len(main)} of {len(rows)} modules {words}. Others: {others}"


def _dwarfing(norm_ratio: float) -> str:
    """The update, "a" or "b", with over 99 % of the energy of both; "" if neither."""
    return "a" if norm_ratio >= DWARFS else "b" if norm_ratio <= 1 / DWARFS else ""


def _evidence(rows: Sequence[Row]) -> str:
    """The cosine and, per side, the larger share of an update in the other's directions."""
    middle = {column: _median(rows, column) for column in merging.COLUMNS}
    words = [f"cosine {round(middle['cosine'] or 0.0, 2) + 0.0:.2f}"]  # 0.0: no minus before zero
    for side, verb in zip(SIDES, ("written to", "read from"), strict=True):
        one = max("ab", key=lambda one: _excess(middle, side, one))
        share, chance = (percent(middle[f"{x}_{side}_{one}"] or 0.0) for x in ("shared", "chance"))
        other = "b" if one == "a" else "a"
        words.append(f"{share} of {one}'s energy {verb} {other}'s directions, by chance {chance}")
    return "; ".join(words)


def _consequence(name: str, large: str, rows: Sequence[Row]) -> str:
    """The effect of the sum on both updates.

    name: their relation. large: the update that dwarfs the other, or "".
    """
    ratio = _median(rows, "norm_ratio") or 1.0
    times = max(ratio, 1 / ratio)
    if large:
        small = "b" if large == "a" else "a"
        return (
            f"{large} is {times:.3g} times as large as {small}, which will hardly count;"
            f" the sum is nearly {large} alone"
        )
    energy = _median(rows, "sum_energy") or 0.0
    words = MEANING[name].format(cancelled=percent(1 - energy), gained=percent(energy - 1))
    if times < LARGER:
        return words
    large, small = ("a", "b") if ratio > 1 else ("b", "a")
    return f"{large} is {times:.3g} times as large as {small} and outweighs it; {words}"


def _needs(rows: Sequence[Row]) -> str:
    """The number of directions that the sum needs, or that nothing is left of it."""
    needed, capacity = _median(rows, "sum_rank_99"), _median(rows, "sum_capacity")
    if needed is None:
        return ", and nothing is left"
    return f", and needs {needed:g} of {capacity:g} directions for 99 % of its energy"


def relation(row: Row) -> str:
    """Return the relation of two updates of one module in words; a key of `MEANING`."""
    cosine = row["cosine"]
    if cosine >= SAME:
        return "nearly the same direction"
    if cosine <= -SAME:
        return "nearly opposite"
    if cosine >= UNRELATED:
        return "partly aligned"
    if cosine <= -UNRELATED:
        return "conflicting"
    writes, reads = (max(_excess(row, side, one) for one in "ab") for side in SIDES)
    if max(writes, reads) < SOME:
        chance = min(max(row[f"chance_{side}_{one}"] for one in "ab") for side in SIDES)
        return "almost independent" if chance < SOME else "independent, overlapping only by chance"
    if min(writes, reads) >= MUCH:
        return "overlapping, with unrelated content"
    if writes >= MUCH and reads < SOME:
        return "writing the same directions, reading others"
    if reads >= MUCH and writes < SOME:
        return "reading the same directions, writing others"
    return "partly overlapping, with unrelated content"


def _excess(row: Row, side: str, one: str) -> float:
    """Share of update `one` in the other's directions, on a scale from 0 (chance) to 1 (all).

    0 also if those directions span the whole space, so that the share says nothing.
    """
    shared, chance = row[f"shared_{side}_{one}"], row[f"chance_{side}_{one}"]
    return (shared - chance) / (1 - chance) if chance < 1 else 0.0
