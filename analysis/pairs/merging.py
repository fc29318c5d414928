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

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError, checkpoint, names
from analysis.formats import Options
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Decomposition, Spectrum
from analysis.numerics.subspaces import TIE
from analysis.pairs import combine, meeting
from analysis.pairs.meeting import Pairs
from analysis.pairs.members import PAIR, Members, over_modules, pair_columns
from analysis.results import Merging, Row
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

ROW_COLUMNS = (*PAIR, *COLUMNS)
TOP = 0.9  # the top directions of an update are those that hold this share of its energy
SAMPLE = 1000  # rows and columns of which signs are compared: 10⁶ entries


def analyse(
    paths: Sequence[str | Path | checkpoint.Run],
    *,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    progress: bool = False,
) -> Merging:
    """Of the two checkpoints at `paths`, module by module, what adding them keeps and cancels.

    Arguments as for `similarity.analyse`. Raises ValueError where they are not two.
    """
    runs = checkpoint.runs(paths)
    if len(runs) != 2:
        raise UserError(f"--merge: {len(runs)} checkpoints; expected two")
    collected = meeting.collect(runs, options or Options(), names.expression(modules), rename)
    pairs = meeting.sharing([(runs[0], runs[1])], collected)
    found = Merging(skipped=collected.skipped, other=collected.other)
    for lines in over_modules(partial(_rows, pairs=pairs), collected, progress):
        for line, s in lines:
            found.rows.append(line)
            found.s[line["key"]] = s
    return found


def _rows(members: Members, pairs: Pairs) -> list[tuple[Row, np.ndarray]]:
    """The lines of one module, each with the spectrum of the sum."""
    lines = []
    for a, b in members.pairs(pairs):
        try:
            line, s = merge_row(a.update, b.update, a.found, b.found)
            lines.append((pair_columns(a, b) | line, s))
        except CheckpointError as error:
            members.skip(a.run, str(error))
    return lines


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
