"""Two updates, before they are merged → what adding or averaging them keeps, cancels and needs.

Merging adds ΔW_a + ΔW_b to one base (task arithmetic, Ilharco et al., arXiv 2212.04089), or their
average ½(ΔW_a + ΔW_b). ΔW = U diag(s) Vᵀ: an update reads the directions V and writes the
directions U. Two updates of which each reads and writes its own do not interfere in this layer;
where they meet they strengthen or cancel one another, as the cosine tells.

Every number but the signs comes from s and from the small matrices of cosines U_aᵀU_b and V_aᵀV_b.
How much of one update lies in the top left directions of another is, up to a root, the subspace
alignment ratio of Marczak et al. (arXiv 2502.04959); LoRA updates meet less than those of full
fine-tuning (KnOTS, Stoica et al., arXiv 2410.19735). Opposite signs are the conflicts that
TIES-Merging resolves (Yadav et al., arXiv 2306.01708), which looks at the largest entries only.
"""

import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from analysis import CheckpointError, combine, decompose, metrics, table
from analysis.decompose import EPS, Decomposition, Spectrum
from analysis.store import Row
from analysis.update import LowRankUpdate, Update, float64

COLUMNS = (
    *("rank_90_a", "rank_99_a", "rank_90_b", "rank_99_b"),
    *("shared_left_a", "shared_right_a", "shared_both_a", "private_a"),
    *("shared_left_b", "shared_right_b", "shared_both_b", "private_b"),
    *("chance_left_a", "chance_right_a", "chance_left_b", "chance_right_b"),
    *("cosine", "norm_ratio", "opposite_sign", "sampled", "sample_seed"),
    *("sum_energy", "sum_spectral_norm", "sum_effective_rank"),
    *("sum_rank_90", "sum_rank_99", "sum_capacity"),
)

SIDES = ("left", "right")
TOP = 0.9  # the top directions of an update are those that hold this share of its energy
TIE = 1e4  # how many times their error two values must lie apart to be told apart
SAMPLE = 1000  # rows and columns of which signs are compared: 10⁶ entries

# With |cosine| below it, ‖ΔW_a + ΔW_b‖² is within 10 % of ‖ΔW_a‖² + ‖ΔW_b‖², whatever the norms.
UNRELATED = 0.1
# From it on, at most 5 % of the energy of two updates of one norm is off what they have in common.
SAME = 0.9
# Of the energy that chance leaves to one's own directions, how much lies in the other's.
SOME, MUCH = 0.1, 0.5
# Norm ratios: the smaller update has at most a tenth, at most a hundredth of the larger's energy.
LARGER, DWARFS = 10**0.5, 10.0

EXPLANATION = f"""\
ΔW = U diag(s) Vᵀ reads the directions V and writes the directions U; its top directions are those
that hold 90 % of its energy Σs². cosine: ⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖); a/b: ‖ΔW_a‖_F/‖ΔW_b‖_F;
writes, reads: share of the energy of one update that lies in the other's top left (output) and top
right (input) directions, in brackets what random directions would hold; opposite: share of the
entries of opposite sign, 0.5 by chance, and arccos(cosine)/π where the entries are Gaussian, from a
seeded sample of 10⁶ entries where there are more (standard error 0.0005 for independent entries, up
to 0.016 for those of very low rank); an entry that is exactly zero opposes nothing. Of the sum
ΔW_a + ΔW_b: energy: ‖ΔW_a + ΔW_b‖²/(‖ΔW_a‖² + ‖ΔW_b‖²), 1 where nothing is cancelled or
strengthened; ‖sum‖₂: s₁; eff. rank: exp of the entropy of s; 90 %, 99 %: how many directions it
needs for so much of its energy, as a and b do in "a 99 %" and "b 99 %". The average ½(ΔW_a + ΔW_b)
has half the s and half the norms, and the same ranks. Numbers are medians over modules.
In words: a cosine between −{UNRELATED:g} and {UNRELATED:g} is unrelated, from ±{SAME:g} on it is
nearly the same or opposite; of the energy that chance leaves outside the other's directions,
{100 * SOME:g} % inside are a partial overlap, {100 * MUCH:g} % an overlap; an update of less than
1/{DWARFS:g} of the other's norm hardly counts.
These numbers do not tell the accuracy of the merged model, which depends on the inputs and on all
layers together: only an evaluation on both tasks tells it. Updates that share nothing can disturb
one another through the layers between, and updates that conflict can merge well."""


def merge_row(
    a: Update, b: Update, found_a: Decomposition, found_b: Decomposition
) -> tuple[Row, np.ndarray]:
    """What merging a and b means, by COLUMNS, None where undefined; and s of ΔW_a + ΔW_b.

    With U_b and V_b the top directions of b, which hold 90 % of its energy (rank_90_b of them,
    those tied with the last included): shared_left_a = ‖U_bᵀΔW_a‖²/‖ΔW_a‖², what a writes there;
    shared_right_a = ‖ΔW_a V_b‖²/‖ΔW_a‖², what it reads there; shared_both_a =
    ‖U_bᵀΔW_aV_b‖²/‖ΔW_a‖², what it does at once; private_a = 1 − left − right + both, what it does
    neither; chance_left_a = rank_90_b/d_out and chance_right_a = rank_90_b/d_in, what random
    directions hold. Likewise b in a. All are in [0, 1], unchanged by scaling a or b, and by a
    rotation of both.

    norm_ratio: ‖ΔW_a‖_F/‖ΔW_b‖_F. opposite_sign: see there. sum_energy: ‖ΔW_a + ΔW_b‖² over
    ‖ΔW_a‖² + ‖ΔW_b‖², in [0, 2]. sum_rank_90, sum_rank_99: how many directions of the sum hold so
    much of its energy, of sum_capacity. The spectrum of the average is half the sum's: its ranks
    are the same. Where the sum vanishes up to rounding its s and norms are 0, its ranks None.
    Raises CheckpointError for different shapes, and where one of the updates is zero.
    """
    total = combine.weighted_sum([(1.0, a), (1.0, b)])
    for update, found in ((a, found_a), (b, found_b)):
        if found.rank == 0:
            raise CheckpointError(f"{update.source}: {update.name}: ΔW is zero; nothing to merge")
    d_out, d_in = a.shape
    norm_a, norm_b = (metrics.frobenius_norm(found.s) for found in (found_a, found_b))
    s_a, s_b = found_a.s / norm_a, found_b.s / norm_b
    left = found_a.left.against(found_b.left)
    right = found_a.right.against(found_b.right)
    top_a, top_b = top(found_a), top(found_b)
    share, sampled, seed = opposite_sign(a, b)
    row: Row = {
        "rank_90_a": top_a,
        "rank_99_a": int(metrics.energy_rank(s_a, 0.99)),
        "rank_90_b": top_b,
        "rank_99_b": int(metrics.energy_rank(s_b, 0.99)),
        **_shared("a", s_a, left[:, :top_b], right[:, :top_b]),
        **_shared("b", s_b, left[:top_a].T, right[:top_a].T),
        "chance_left_a": top_b / d_out,
        "chance_right_a": top_b / d_in,
        "chance_left_b": top_a / d_out,
        "chance_right_b": top_a / d_in,
        "cosine": float(np.clip(s_a @ (left * right) @ s_b, -1.0, 1.0)),
        "norm_ratio": norm_a / norm_b,
        "opposite_sign": share,
        "sampled": sampled,
        "sample_seed": seed,
        "sum_capacity": total.capacity,
    }
    spectrum = decompose.spectrum(total)
    s = np.zeros_like(spectrum.s) if _vanishes(spectrum, a, found_a, found_b) else spectrum.s
    row |= {"sum_spectral_norm": metrics.spectral_norm(s)}
    # Relative to the larger norm, so that no square overflows or vanishes.
    size = max(norm_a, norm_b)
    energy = (norm_a / size) ** 2 + (norm_b / size) ** 2
    row |= {"sum_energy": (metrics.frobenius_norm(s) / size) ** 2 / energy}
    if s[0] > 0:
        row |= {
            "sum_effective_rank": metrics.effective_rank(s),
            "sum_rank_90": int(metrics.energy_rank(s, 0.9)),
            "sum_rank_99": int(metrics.energy_rank(s, 0.99)),
        }
    return {column: row.get(column) for column in COLUMNS}, s


def top(found: Decomposition) -> int:
    """How many of the first directions hold 90 % of the energy, and what is tied with the last.

    Among equal values the directions rotate freely: the span is a property of ΔW only if it has
    all of them. ΔW = 0 has none: ValueError.
    """
    last = found.s[int(metrics.energy_rank(found.s, TOP)) - 1]
    return min(metrics.rank(found.s, last - TIE * found.error_bound), found.rank)


def _shared(which: str, s: np.ndarray, left: np.ndarray, right: np.ndarray) -> Row:
    """How the energy of an update, Σs² = 1, lies to the other's top directions.

    left, right (k, j): the cosines of its own directions with them.
    """
    written, read = s[:, None] * left, s[:, None] * right
    in_left, in_right = float(np.sum(written**2)), float(np.sum(read**2))
    in_both = float(np.sum((left.T @ read) ** 2))
    shares = {
        "shared_left": in_left,
        "shared_right": in_right,
        "shared_both": in_both,
        "private": 1.0 - in_left - in_right + in_both,
    }
    return {f"{name}_{which}": min(max(share, 0.0), 1.0) for name, share in shares.items()}


def _vanishes(
    spectrum: Spectrum, a: Update, found_a: Decomposition, found_b: Decomposition
) -> bool:
    """Whether nothing of the sum is told from the rounding of its terms."""
    of_terms = found_a.error_bound + found_b.error_bound
    rounding = max(a.shape) * EPS * (found_a.s[0] + found_b.s[0])
    return bool(spectrum.s[0] <= max(spectrum.error_bound, of_terms, rounding))


def opposite_sign(a: Update, b: Update) -> tuple[float, int, int | None]:
    """Share of the entries of opposite sign; of how many entries; the seed that chose them.

    In [0, 1], and 1/2 where signs are independent. An entry that is exactly zero on either side
    counts, and is not opposite. All entries where they are at most 10⁶, seed None; else 1,000 rows
    by 1,000 columns (more of the one where there are fewer of the other), the same for every pair
    of one shape and name. Computed in float64: the sign of an entry far below the others would be
    lost in float32.
    """
    seed, rows, cols = _sample(min(a.name, b.name), *a.shape)
    x, y = _entries(a, rows, cols), _entries(b, rows, cols)
    opposite = ((x > 0) & (y < 0)) | ((x < 0) & (y > 0))
    return float(opposite.mean()), opposite.size, seed


def _sample(name: str, d_out: int, d_in: int) -> tuple[int | None, np.ndarray, np.ndarray]:
    """Rows and columns of a matrix, ascending, and the seed that drew them."""
    if d_out * d_in <= SAMPLE**2:
        return None, np.arange(d_out), np.arange(d_in)
    seed = zlib.crc32(f"{name} {d_out} {d_in}".encode())
    rng = np.random.default_rng(seed)
    n_rows = min(d_out, max(SAMPLE, SAMPLE**2 // d_in))
    n_cols = min(d_in, SAMPLE**2 // n_rows)
    rows = np.sort(rng.choice(d_out, n_rows, replace=False))
    cols = np.sort(rng.choice(d_in, n_cols, replace=False))
    return seed, rows, cols


def _entries(update: Update, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """These entries of ΔW, up to a positive factor, (rows, cols)."""
    if isinstance(update, LowRankUpdate):
        sign = -1.0 if update.scale < 0 else 1.0
        return (sign * float64(update.B[rows])) @ float64(update.A[:, cols])
    return update.load()[np.ix_(rows, cols)]


def relation(row: Row) -> str:
    """How two updates of one module lie to one another, in a word or two; a key of `MEANING`."""
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
        return "almost independent" if chance < SOME else "independent, meeting as by chance"
    if min(writes, reads) >= MUCH:
        return "overlapping, with unrelated content"
    if writes >= MUCH and reads < SOME:
        return "writing the same directions, reading others"
    if reads >= MUCH and writes < SOME:
        return "reading the same directions, writing others"
    return "partly overlapping, with unrelated content"


def _excess(row: Row, side: str, one: str) -> float:
    """Of the energy that chance leaves outside the other's directions, what lies inside them.

    1: all; 0: as by chance, and also where the directions are all there are, which tells nothing.
    """
    shared, chance = row[f"shared_{side}_{one}"], row[f"chance_{side}_{one}"]
    return (shared - chance) / (1 - chance) if chance < 1 else 0.0


# What the sum does, by the relation of two updates of which neither dwarfs the other.
MEANING = {
    "nearly the same direction": "the sum counts what they share twice, the average once",
    "nearly opposite": "the sum cancels {cancelled} of their energy",
    "partly aligned": (
        "the sum strengthens what they share ({gained} more energy than the two apart)"
    ),
    "conflicting": "the sum cancels {cancelled} of their energy",
    "almost independent": "the sum keeps both",
    "independent, meeting as by chance": (
        "both fill so many directions that each changes what the other does; the sum cancels little"
    ),
    "overlapping, with unrelated content": (
        "each changes what the other does; the sum cancels little"
    ),
    "writing the same directions, reading others": (
        "the sum keeps both where an input holds the directions of one only"
    ),
    "reading the same directions, writing others": (
        "the sum answers one input with what both write"
    ),
    "partly overlapping, with unrelated content": (
        "where they meet, each changes what the other does; the sum keeps most of both"
    ),
}


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """What a person reads: for each two runs a table by projection, and a line in words on each."""
    for (run_a, step_a, run_b, step_b), of_pair in table.grouped(
        rows, "run_a", "step_a", "run_b", "step_b"
    ).items():
        for name, run, step in (("a", run_a, step_a), ("b", run_b, step_b)):
            methods = ", ".join(dict.fromkeys(row[f"method_{name}"] for row in of_pair))
            yield f"{name}: {run}{'' if step is None else f'  step {step}'}  ({methods})"
        kinds = {kind: group for (kind,), group in table.grouped(of_pair, "kind").items()}
        cells = [["kind", "modules", *(heading for heading, _ in PRINTED)]]
        for kind, group in [*kinds.items(), ("all", of_pair)]:
            numbers = [_cell(group, form) for _, form in PRINTED]
            cells.append([kind, str(len(group)), *numbers])
        yield from table.aligned(cells)
        yield ""
        for kind, group in kinds.items():
            yield f"{kind}: {sentence(group)}"
        yield ""


# Heading, and the columns and formats of a cell.
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


def _cell(rows: Sequence[Row], form: tuple[tuple[str, str], ...]) -> str:
    numbers = [(_median(rows, column), text) for column, text in form]
    return "".join("–" if number is None else text.format(number) for number, text in numbers)


def _median(rows: Sequence[Row], column: str) -> float | None:
    """Of a column; of a ratio, by its logarithm, so that exchanging a and b inverts it."""
    if column == "norm_ratio":
        return math.exp(float(np.median([math.log(row[column]) for row in rows])))
    return table.median(row[column] for row in rows)


def sentence(rows: Sequence[Row]) -> str:
    """The modules of a projection in words: the relation that most have, and which others have.

    Two modules are of one sort if their relation is, and which of the updates dwarfs the other.
    Numbers are medians over the modules of the commonest sort.
    """
    sorts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        sorts.setdefault((relation(row), _dwarfing(row["norm_ratio"])), []).append(row)
    (name, large), main = max(sorts.items(), key=lambda item: len(item[1]))
    words = f"{name} ({_evidence(main)}): {_consequence(name, large, main)}{_needs(main)}"
    if len(sorts) == 1:
        return words
    others = "; ".join(
        f"{len(group)} {name}{f', {large} much the larger' if large else ''}"
        for (name, large), group in sorts.items()
        if group is not main
    )
    return f"in {len(main)} of {len(rows)} modules {words}. Others: {others}"


def _dwarfing(norm_ratio: float) -> str:
    """Which of a and b has over 99 % of their energy; "" for neither."""
    return "a" if norm_ratio >= DWARFS else "b" if norm_ratio <= 1 / DWARFS else ""


def _evidence(rows: Sequence[Row]) -> str:
    """The cosine, and for either side the update of which more lies in the other's directions."""
    middle = {column: _median(rows, column) for column in COLUMNS}
    words = [f"cosine {round(middle['cosine'] or 0.0, 2) + 0.0:.2f}"]  # 0.0: no minus before zero
    for side, verb in zip(SIDES, ("written to", "read from"), strict=True):
        one = max("ab", key=lambda one: _excess(middle, side, one))
        share, chance = (_percent(middle[f"{x}_{side}_{one}"] or 0.0) for x in ("shared", "chance"))
        other = "b" if one == "a" else "a"
        words.append(f"{share} of {one}'s energy {verb} {other}'s directions, by chance {chance}")
    return "; ".join(words)


def _consequence(name: str, large: str, rows: Sequence[Row]) -> str:
    """What the sum does to both."""
    ratio = _median(rows, "norm_ratio") or 1.0
    times = max(ratio, 1 / ratio)
    if large:
        small = "b" if large == "a" else "a"
        return (
            f"{large} is {times:.3g} times as large as {small}, which will hardly count;"
            f" the sum is nearly {large} alone"
        )
    energy = _median(rows, "sum_energy") or 0.0
    words = MEANING[name].format(cancelled=_percent(1 - energy), gained=_percent(energy - 1))
    if times < LARGER:
        return words
    large, small = ("a", "b") if ratio > 1 else ("b", "a")
    return f"{large} is {times:.3g} times as large as {small} and outweighs it; {words}"


def _needs(rows: Sequence[Row]) -> str:
    """How many directions the sum needs, unless it vanishes."""
    needed, capacity = _median(rows, "sum_rank_99"), _median(rows, "sum_capacity")
    if needed is None:
        return ", and nothing is left"
    return f", and needs {needed:g} of {capacity:g} directions for 99 % of its energy"


def _percent(share: float) -> str:
    """In words' precision: 3 %, 0.4 %, below 0.1 %."""
    percent = 100 * share
    if percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.2g} %" if percent < 1 else f"{percent:.0f} %"
