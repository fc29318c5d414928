"""Measure, before two updates are merged, what adding or averaging them keeps and cancels.

Merging adds ΔW_a + ΔW_b to the same base (task arithmetic, Ilharco et al., arXiv 2212.04089), or
their average ½(ΔW_a + ΔW_b). ΔW = U diag(s) Vᵀ: an update reads the directions V and writes the
directions U. Two updates that read and write different directions do not interfere in this layer;
where they overlap they strengthen or cancel one another, as the cosine shows.

Every number except the signs is computed from s and from the small matrices of cosines U_aᵀU_b and
V_aᵀV_b. The share of one update that lies in the top left directions of another is, up to a root,
the subspace alignment ratio of Marczak et al. (arXiv 2502.04959); LoRA updates overlap less than
those of full fine-tuning (KnOTS, Stoica et al., arXiv 2410.19735). Opposite signs are the conflicts
that TIES-Merging resolves (Yadav et al., arXiv 2306.01708), which looks only at the largest
entries.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from analysis import CheckpointError
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Decomposition, Spectrum
from analysis.numerics.subspaces import TIE
from analysis.pairs import combine
from analysis.pairs.members import PAIR
from analysis.results import Row
from analysis.update import KroneckerUpdate, LowRankUpdate, Update, float64

COLUMNS = (
    "rank_90_a", "rank_99_a", "rank_90_b", "rank_99_b",
    "shared_left_a", "shared_right_a", "shared_both_a", "private_a",
    "shared_left_b", "shared_right_b", "shared_both_b", "private_b",
    "chance_left_a", "chance_right_a", "chance_left_b", "chance_right_b",
    "cosine", "norm_ratio", "opposite_sign", "sampled", "sample_seed",
    "sum_energy", "sum_spectral_norm", "sum_effective_rank",
    "sum_rank_90", "sum_rank_99", "sum_capacity",
)  # fmt: skip
ROW_COLUMNS = (*PAIR, *COLUMNS)
TOP = 0.9  # the top directions of an update hold at least this share of its energy
LOST = 0.01  # of the span of the top directions: the cut is moved if rounding replaced more of it
SAMPLE = 1000  # signs are compared in a sample of this many rows and columns: 10⁶ entries


def merge_row(
    a: Update, b: Update, decomposition_a: Decomposition, decomposition_b: Decomposition
) -> tuple[Row, np.ndarray]:
    """Return the effect of merging a and b, by COLUMNS, and the singular values of ΔW_a + ΔW_b.

    U_b and V_b are the top directions of b: rank_90_b of them hold 90 % of its energy, those tied
    with the last included (see `top`); rank_99_b of its directions hold 99 %.

    shared_left_a: ‖U_bᵀΔW_a‖²/‖ΔW_a‖², the share that a writes to the top directions of b.
    shared_right_a: ‖ΔW_a V_b‖²/‖ΔW_a‖², the share that it reads from them.
    shared_both_a: ‖U_bᵀΔW_aV_b‖²/‖ΔW_a‖², the share that does both.
    private_a: 1 − shared_left_a − shared_right_a + shared_both_a, the share that does neither.
    chance_left_a, chance_right_a: rank_90_b/d_out and rank_90_b/d_in, the shares in random
        directions.
    …_b: the same with a and b exchanged.
    cosine, norm_ratio: ⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖) and ‖ΔW_a‖/‖ΔW_b‖, Frobenius norms.
    opposite_sign, sampled, sample_seed: see `opposite_sign`.
    sum_energy: ‖ΔW_a + ΔW_b‖²/(‖ΔW_a‖² + ‖ΔW_b‖²), in [0, 2].
    sum_spectral_norm, sum_effective_rank, sum_capacity: of the sum.
    sum_rank_90, sum_rank_99: the numbers of its directions that hold 90 % and 99 % of its energy.

    All shares are in [0, 1], unchanged by scaling a or b, and by a rotation of both. The spectrum
    of the average is half that of the sum, so its ranks are the same. If the sum is
    indistinguishable from rounding, its singular values and norms are 0 and its ranks None. Raises
    CheckpointError if the shapes differ or an update is zero.
    """
    total = combine.weighted_sum([(1.0, a), (1.0, b)])
    for update, decomposition in ((a, decomposition_a), (b, decomposition_b)):
        if decomposition.rank == 0:
            raise CheckpointError(f"{update.source}: {update.name}: ΔW is zero; nothing to merge")
    d_out, d_in = a.shape
    norm_a, norm_b = (
        metrics.frobenius_norm(decomposition.s)
        for decomposition in (decomposition_a, decomposition_b)
    )
    s_a, s_b = decomposition_a.s / norm_a, decomposition_b.s / norm_b
    left = decomposition_a.left.against(decomposition_b.left)
    right = decomposition_a.right.against(decomposition_b.right)
    top_a, top_b = top(decomposition_a), top(decomposition_b)
    share, sampled, seed = opposite_sign(a, b)
    row: Row = {
        "rank_90_a": top_a,
        "rank_99_a": int(metrics.energy_rank(s_a, 0.99)),
        "rank_90_b": top_b,
        "rank_99_b": int(metrics.energy_rank(s_b, 0.99)),
        **_shared("a", s_a, left=left[:, :top_b], right=right[:, :top_b]),
        **_shared("b", s_b, left=left[:top_a].T, right=right[:top_a].T),
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
    gone = vanishes(spectrum, [decomposition_a, decomposition_b], a.shape)
    s = np.zeros_like(spectrum.s) if gone else spectrum.s
    row |= {f"sum_{name}": value for name, value in of_sum(s, [norm_a, norm_b]).items()}
    return {column: row.get(column) for column in COLUMNS}, s


def of_sum(s: np.ndarray, norms: Sequence[float]) -> Row:
    """Return the columns of a sum from its singular values and the Frobenius norms of its terms.

    The effective rank and the ranks are missing if the sum is zero.
    """
    size = max(norms)  # so that no square overflows or vanishes
    energy = sum((norm / size) ** 2 for norm in norms)
    row: Row = {
        "energy": float((metrics.frobenius_norm(s) / size) ** 2 / energy),
        "spectral_norm": metrics.spectral_norm(s),
    }
    if s[0] > 0:
        row["effective_rank"] = metrics.effective_rank(s)
        row["rank_90"] = int(metrics.energy_rank(s, 0.9))
        row["rank_99"] = int(metrics.energy_rank(s, 0.99))
    return row


def top(decomposition: Decomposition) -> int:
    """Return the number of top directions, which hold a share TOP of the energy.

    Directions tied with the last one are included: among equal values the directions rotate
    freely, and their span is a property of ΔW only if it has all of them. Values are tied if the
    computation cannot tell them apart, or if rounding at storage has replaced more than a share
    LOST of the span. Raises ValueError for ΔW = 0.
    """
    s, rank, turning = decomposition.s, decomposition.rank, decomposition.turning
    last = s[int(metrics.energy_rank(s, TOP)) - 1]
    n = min(metrics.rank(s, last - TIE * decomposition.error_bound), rank)
    if turning is not None:
        while n < rank and turning.lost[n - 1] > LOST * n:
            n += 1
    return n


def _shared(which: str, s: np.ndarray, left: np.ndarray, right: np.ndarray) -> Row:
    """Return the shares of an update's energy in the top directions of the other update.

    which: "a" or "b", the end of the columns.
    s: (k,), the singular values of the update, scaled to Σs² = 1.
    left, right: (k, j), the cosines of its own directions with the j top ones of the other.
    """
    in_left = float(np.sum((s[:, None] * left) ** 2))
    in_right = float(np.sum((s[:, None] * right) ** 2))
    in_both = float(np.sum((left.T @ (s[:, None] * right)) ** 2))
    shares = {
        "shared_left": in_left,
        "shared_right": in_right,
        "shared_both": in_both,
        "private": 1.0 - in_left - in_right + in_both,
    }
    return {f"{name}_{which}": min(max(share, 0.0), 1.0) for name, share in shares.items()}


def vanishes(
    total: Spectrum | Decomposition, terms: Sequence[Decomposition], shape: tuple[int, int]
) -> bool:
    """Return whether a sum is indistinguishable from the rounding error of its terms."""
    of_terms = sum(term.error_bound for term in terms)
    rounding = max(shape) * EPS * sum(float(term.s[0]) for term in terms)
    return bool(total.s[0] <= max(total.error_bound, of_terms, rounding))


def opposite_sign(a: Update, b: Update) -> tuple[float, int, int | None]:
    """Return the share of entries with opposite signs, their number, and the seed of the sample.

    The share is in [0, 1], and 1/2 if signs are independent. An entry that is exactly zero in
    either update counts as not opposite. Up to 10⁶ entries are all used, with seed None; of larger
    matrices 1,000 rows by 1,000 columns (more of one if there are fewer of the other), the same for
    every pair of the same shape and name. Computed in float64: float32 would lose the signs of
    entries far below the others.
    """
    return conflict([a, b])


def conflict(updates: Sequence[Update]) -> tuple[float, int, int | None]:
    """Return the share of entries that are positive in one update and negative in another.

    updates: two or more of one shape. Number of entries, seed and sample as for `opposite_sign`,
    which is the same for two; 1 − 2^(1−n) if the signs of n updates are independent.
    """
    seed, rows, cols = _sample(min(update.name for update in updates), *updates[0].shape)
    positive = np.zeros((rows.size, cols.size), bool)
    negative = np.zeros((rows.size, cols.size), bool)
    for update in updates:
        entries = _entries(update, rows, cols)
        positive |= entries > 0
        negative |= entries < 0
    return float((positive & negative).mean()), positive.size, seed


def _sample(name: str, d_out: int, d_in: int) -> tuple[int | None, np.ndarray, np.ndarray]:
    """Return the seed and the rows and columns of the sample, ascending; see `opposite_sign`."""
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
    """Return the entries of ΔW in these rows and columns, up to a positive factor."""
    if isinstance(update, KroneckerUpdate):
        W1, W2 = update.first.dense(), update.second.dense()
        (m, n), sign = W2.shape, -1.0 if update.scale < 0 else 1.0
        return sign * W1[np.ix_(rows // m, cols // n)] * W2[np.ix_(rows % m, cols % n)]
    if isinstance(update, LowRankUpdate):
        sign = -1.0 if update.scale < 0 else 1.0
        return (sign * float64(update.B[rows])) @ float64(update.A[:, cols])
    return update.load()[np.ix_(rows, cols)]
