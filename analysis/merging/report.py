"""Measure what merging several updates keeps and cancels: every pair, every adapter, the whole.

`merge_row` has the pairs. Of each adapter: the share of its energy in the top directions of all the
others, and its alignment with the merged update. Of each module: the interference of all adapters,
the conflict of signs, and the spectrum before and after. All but the signs come from the singular
values and from matrices of cosines between singular vectors, which are small.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError, UserError, checkpoint, names
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.names import update_key
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Decomposition
from analysis.pairs import combine, meeting
from analysis.pairs.meeting import Collected
from analysis.pairs.members import ONE, Member, Members, over_modules, pair_columns
from analysis.pairs.merging import ROW_COLUMNS, conflict, merge_row, of_sum, top, vanishes
from analysis.results import Merging, Row
from analysis.update import Update

ADAPTER = (
    *ONE, "frobenius_norm", "effective_rank", "top_share_1",
    "shared_left", "shared_right", "chance_left", "chance_right",
    "alignment", "alignment_chance", "cosine",
)  # fmt: skip
MERGED = (
    "key", "part", "module", "layer", "kind", "d_out", "d_in", "adapters", "merged_by",
    "interference", "interference_relative", "sign_conflict", "sampled", "sample_seed",
    "norm_ratio", "effective_rank_before", "top_share_1_before",
    "capacity", "rank", "energy", "spectral_norm", "frobenius_norm", "effective_rank",
    "top_share_1", "rank_90", "rank_99", "alignment_rank", "alignment", "alignment_min", "error",
)  # fmt: skip
# Files of a report: pairs, adapters, the whole; the singular values of sums and of the whole.
PAIRS_TABLE, ADAPTERS_TABLE, MERGED_TABLE = "merging.csv", "adapters.csv", "merged.csv"
SUMS, SPECTRA = "sums.safetensors", "merged.safetensors"
FILES = (PAIRS_TABLE, ADAPTERS_TABLE, MERGED_TABLE, SUMS, SPECTRA)
SIGNS = ("opposite_sign", "sampled", "sample_seed")  # of a pair, its `conflict`
# The merged update's directions that an alignment looks at leave out a share 0.05 of its norm.
LEFT_OUT = 0.05
# The updates of one module → the merged one, and the relative error of its cut to a rank.
Merge = Callable[[Sequence[Update]], tuple[Update, float]]


def summed(updates: Sequence[Update]) -> tuple[Update, float]:
    """Return Σ ΔWᵢ, which is exact."""
    return combine.weighted_sum([(1.0, update) for update in updates]), 0.0


def analyse(
    paths: Sequence[str | Path | Run],
    *,
    options: Options | None = None,
    modules: str | None = None,
    rename: Sequence[meeting.Rename] = (),
    progress: bool = False,
) -> Merging:
    """Return, for each module of the checkpoints at `paths`, the effect of adding their updates.

    The arguments are those of `similarity.analyse`:

    paths: two checkpoints or more. Raises UserError if there are not two.
    options: what a checkpoint does not say of itself.
    modules: a regular expression that a module's name must contain.
    rename: (pattern, replacement), applied to the names before they are matched.
    progress: show a bar on stderr if dense modules take longer than two seconds.
    """
    options = options or Options()
    runs = checkpoint.runs(paths, options.revision)
    if len(runs) < 2:
        raise UserError(f"--merge: {len(runs)} checkpoint; expected two or more")
    collected = meeting.collect(runs, options, names.expression(modules), rename)
    return of_collected(runs, collected, summed, "sum", progress)[0]


def of_collected(
    runs: Sequence[Run],
    collected: Collected,
    merge: Merge,
    merged_by: str,
    progress: bool = False,
) -> tuple[Merging, list[Update]]:
    """Return the effect of merging updates, and the merged ones.

    runs: those of `collected`, in the order in which their updates are merged.
    merge: computes the merged update of a module from those that its runs have; one that a run
        lacks counts as ΔW = 0.
    merged_by: the name of the method.
    progress: as for `analyse`.
    """
    pairs = meeting.sharing(list(itertools.combinations(runs, 2)), collected)
    result, updates = Merging(skipped=collected.skipped, other=collected.other), []
    job = partial(_of_module, runs=runs, pairs=pairs, merge=merge, merged_by=merged_by)
    for seen in over_modules(job, collected, progress):
        for row, s in seen.pairs:
            result.rows.append(row)
            result.s[row["key"]] = s
        result.adapters.extend(seen.adapters)
        for row, s in seen.merged:
            result.merged.append(row)
            result.merged_s[row["key"]] = s
        updates.extend(seen.updates)
    return result, updates


@dataclass(frozen=True, eq=False)
class _Seen:
    """What merging does to one module: rows with spectra, rows, and the merged updates."""

    pairs: list[tuple[Row, np.ndarray]] = field(default_factory=list)
    adapters: list[Row] = field(default_factory=list)
    merged: list[tuple[Row, np.ndarray]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)


def _of_module(
    members: Members, runs: Sequence[Run], pairs: meeting.Pairs, merge: Merge, merged_by: str
) -> _Seen:
    seen = _Seen()
    for a, b in members.pairs(pairs):
        try:
            row, s = merge_row(a.update, b.update, a.decomposition, b.decomposition)
            seen.pairs.append((pair_columns(a, b) | row, s))
        except CheckpointError as error:
            members.skip(a.run, str(error))
    signs = {row["key"]: tuple(row[name] for name in SIGNS) for row, _ in seen.pairs}
    for group in _by_part(members, runs):
        try:
            update, lost = merge([member.update for member in group])
            seen.updates.append(update)
            nonzero = [member for member in group if member.decomposition.rank > 0]
            if len(nonzero) > 1:
                pair = pair_columns(*nonzero)["key"] if len(nonzero) == 2 else ""
                adapters, merged, s = whole(nonzero, update, signs.get(pair))
                seen.adapters.extend(adapters)
                seen.merged.append((merged | {"merged_by": merged_by, "error": lost}, s))
        except CheckpointError as error:
            members.skip(group[0].run, str(error))
    return seen


def _by_part(members: Members, runs: Sequence[Run]) -> Iterator[list[Member]]:
    """Yield the members of each part of a module, in the order of `runs`, all of one shape.

    Updates of another shape than the first are left out: the comparison of pairs names them.
    """
    by_part: dict[str, list[Member]] = {}
    for run in runs:
        for member in members.of(run):
            group = by_part.setdefault(member.update.part, [])
            if not group or group[0].update.shape == member.update.shape:
                group.append(member)
    yield from by_part.values()


def tables(found: Merging) -> dict[str, tuple[Sequence[Row], Sequence[str]]]:
    """Return the tables of a report: file name -> rows and columns."""
    return {
        PAIRS_TABLE: (found.rows, ROW_COLUMNS),
        ADAPTERS_TABLE: (found.adapters, ADAPTER),
        MERGED_TABLE: (found.merged, MERGED),
    }


def tensors(found: Merging) -> dict[str, dict[str, np.ndarray]]:
    """Return the singular values of a report: file name -> arrays by key."""
    return {SUMS: found.s, SPECTRA: found.merged_s}


def listed(found: Merging) -> dict[str, Any]:
    """Return what --json prints of a report, but for what was skipped."""
    rows = {"merging": found.rows, "adapters": found.adapters, "merged": found.merged}
    return rows | {"other": found.other}


def whole(
    members: Sequence[Member], merged: Update, signs: tuple[Any, ...] | None = None
) -> tuple[list[Row], Row, np.ndarray]:
    """Return a row for each adapter, one for the merged update, and the latter's singular values.

    members: those of two adapters or more whose ΔW is not zero; `merged` is made of them.
    signs: their `conflict`, if it is known.

    Of an adapter, by ADAPTER: shared_left, shared_right, the shares of its energy in the span of
    the top directions of all others (see `top`), of which random directions would hold chance_left
    and chance_right; alignment, ‖Π ΔWᵢ‖_F/‖ΔWᵢ‖_F, where Π projects on the merged
    update's top left directions, the fewest that leave out at most 5 % of its norm (the subspace
    alignment ratio of Marczak et al., arXiv 2502.04959); alignment_chance, that of random
    directions; cosine, of ΔWᵢ with the merged update.

    Of the merged update, by MERGED: interference, the sum of the absolute entries of
    (UᵀU − I) Σ (VᵀV − I) over the directions of all adapters, in units of ΔW (the singular task
    interference of Gargiulo et al., arXiv 2412.00081), 0 if no two adapters share directions of
    both sides, and relative to Σσ; sign_conflict, the share of entries that are positive in one
    adapter and negative in another, from a sample (see `conflict`); norm_ratio, the largest
    ‖ΔWᵢ‖_F by the smallest; …_before, the mean over the adapters; energy, ‖ΔW‖²/Σ‖ΔWᵢ‖²;
    alignment and alignment_min, the mean and the least over the adapters.
    """
    found = [member.decomposition for member in members]
    after = decompose.decomposition(merged)
    left, right = _cosines(found, "left"), _cosines(found, "right")
    adapters = [_adapter(i, members, after, left=left, right=right) for i in range(len(members))]
    norms = np.array([row["frobenius_norm"] for row in adapters])
    share, sampled, seed = signs or conflict([member.update for member in members])
    sigma = np.concatenate([d.s[: d.rank] for d in found])
    crossed = np.abs(((left - np.eye(sigma.size)) * sigma) @ (right - np.eye(sigma.size))).sum()
    first = members[0].columns
    row: Row = {name: first[name] for name in MERGED if name in first} | {
        "key": update_key(
            "+".join(member.run.key for member in members),
            members[0].update.name,
            members[0].update.part,
        ),
        "adapters": len(members),
        "interference": float(crossed),
        "interference_relative": float(crossed / sigma.sum()),
        "sign_conflict": share,
        "sampled": sampled,
        "sample_seed": seed,
        "norm_ratio": float(norms.max() / norms.min()),
        "effective_rank_before": float(np.mean([row["effective_rank"] for row in adapters])),
        "top_share_1_before": float(np.mean([row["top_share_1"] for row in adapters])),
        "capacity": merged.capacity,
    }
    s = np.zeros_like(after.s) if vanishes(after, found, merged.shape) else after.s
    row |= of_sum(s, norms.tolist()) | {"frobenius_norm": metrics.frobenius_norm(s)}
    row |= {"rank": after.rank, "top_share_1": metrics.top_share(s, 1)} if s[0] > 0 else {"rank": 0}
    if row["rank"]:
        alignments = [adapter["alignment"] for adapter in adapters]
        row["alignment_rank"] = int(metrics.energy_rank(s, 1 - LEFT_OUT**2))
        row["alignment"] = float(np.mean(alignments))
        row["alignment_min"] = float(np.min(alignments))
    else:
        for adapter in adapters:
            adapter |= dict.fromkeys(("alignment", "alignment_chance", "cosine"))
    return adapters, {column: row.get(column) for column in MERGED}, s


def _cosines(found: Sequence[Decomposition], side: str) -> np.ndarray:
    """Return the cosines between the directions of all updates, (Σ rank, Σ rank)."""
    return np.block(
        [
            [getattr(a, side).against(getattr(b, side))[: a.rank, : b.rank] for b in found]
            for a in found
        ]
    )


def _adapter(
    i: int,
    members: Sequence[Member],
    after: Decomposition,
    *,
    left: np.ndarray,
    right: np.ndarray,
) -> Row:
    """Return the row of adapter i; left, right: the cosines between the directions of all."""
    member, found = members[i], members[i].decomposition
    s = found.s[: found.rank]
    norm = metrics.frobenius_norm(s)
    shares = s / norm
    ends = np.cumsum([m.decomposition.rank for m in members])
    own = np.arange(ends[i] - found.rank, ends[i])
    others = np.concatenate(
        [
            np.arange(top(m.decomposition)) + end - m.decomposition.rank
            for j, (m, end) in enumerate(zip(members, ends, strict=True))
            if j != i
        ]
    )
    row = member.columns | {
        "frobenius_norm": norm,
        "effective_rank": metrics.effective_rank(s),
        "top_share_1": metrics.top_share(s, 1),
    }
    for side, cosines, d in zip(("left", "right"), (left, right), member.update.shape, strict=True):
        held, dimension = _in_span(cosines[np.ix_(own, others)], cosines[np.ix_(others, others)])
        row[f"shared_{side}"] = float(np.clip(held @ shares**2, 0.0, 1.0))
        row[f"chance_{side}"] = dimension / d
    to_merged = found.left.against(after.left)[: found.rank]
    k = int(metrics.energy_rank(after.s, 1 - LEFT_OUT**2)) if after.s[0] > 0 else 0
    inside = np.sqrt(np.sum((shares[:, None] * to_merged[:, :k]) ** 2))
    row["alignment"] = float(min(inside, 1.0))
    row["alignment_chance"] = float(np.sqrt(k / member.update.shape[0]))
    reads = found.right.against(after.right)[: found.rank]
    size = metrics.frobenius_norm(after.s)
    cosine = shares @ (to_merged * reads) @ (after.s / size) if size > 0 else 0.0
    row["cosine"] = float(np.clip(cosine, -1.0, 1.0))
    return {column: row[column] for column in ADAPTER}


def _in_span(C: np.ndarray, G: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the squared lengths of unit vectors inside a span, (k,), and the span's dimension.

    C (k, n): the vectors' inner products with n vectors that span it; G (n, n): those of the n
    vectors with one another.
    """
    values, Q = np.linalg.eigh(G)
    kept = values > len(values) * EPS * values[-1]
    inside = C @ Q[:, kept] / np.sqrt(values[kept])
    return np.sum(inside**2, axis=1), int(kept.sum())
