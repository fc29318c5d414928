"""Print spectra in function space, beside those of ΔW, and what updates do to their base."""

from collections.abc import Iterator, Sequence

from analysis.base.landing import DECILES
from analysis.numerics.statistics import median
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from analysis.tables.text import Block, Table, cell, run_heading

EXPLANATION = """\
With --activations: x are the inputs of a module, with C = E[x xᵀ]. E‖ΔW x‖² = ‖ΔW C^½‖²_F is the
energy in function space. aligned: E‖ΔW x‖² / (‖ΔW‖²_F E‖x‖²/d_in), 1 for inputs without a preferred
direction. top-1 and eff. rank: of the singular values of ΔW, and of those of ΔW C^½. top k carry:
the share of the energy in function space that the top k directions of ΔW carry,
Σ_{i≤k} sᵢ² E(vᵢᵀx)² / E‖ΔW x‖². rank corr.: Spearman's correlation of sᵢ with sᵢ² E(vᵢᵀx)²."""
BASE_EXPLANATION = """\
With --base-deciles: unseen: share of ΔW's nonzero entries that W0 + ΔW, rounded to bfloat16, does
not show. s: change of Σs over the largest and the smallest tenth of W0's singular values. left,
right: share of the subspace of these tenths that is kept, the mean squared cosine of principal
angles, minus chance k/d; in brackets the most there can be, 1 − k/d."""

# Heading, column, format.
PRINTED = (
    ("aligned", "function_alignment", ".3g"),
    ("top-1 ΔW", "top_share_1", ".3f"),
    ("ΔW C^½", "function_top_share_1", ".3f"),
    ("eff. rank ΔW", "effective_rank", ".2f"),
    ("ΔW C^½", "function_effective_rank", ".2f"),
    ("top 1 carries", "function_carried_1", ".3f"),
    ("4", "function_carried_4", ".3f"),
    ("16", "function_carried_16", ".3f"),
    ("rank corr.", "function_rank_correlation", ".2f"),
)
ENDS = (1, DECILES)  # the printed deciles


def lines(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield one table per checkpoint of medians over modules whose inputs are known."""
    known = [row for row in rows if row["function_alignment"] is not None]
    for (run, step), of_run in grouped(known, "run", "step").items():
        yield f"{run_heading(run, step)}  in function space"
        cells = [["kind", "modules", *(heading for heading, _, _ in PRINTED)]]
        for kind, group in _by_kind(of_run):
            numbers = (cell(median(row[column] for row in group), f) for _, column, f in PRINTED)
            cells.append([kind, str(len(group)), *numbers])
        yield Table(cells)
        yield ""


def base_lines(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield one table per checkpoint of medians of `base.deciles` over modules."""
    for (run, step), of_run in grouped(rows, "run", "step").items():
        yield f"{run_heading(run, step)}  the spectrum of its base"
        ends = ("first", "last")
        cells = [["kind", "modules", "unseen", *(f"s {end}" for end in ends)]]
        cells[0] += [f"{side} {end}" for side in SIDES for end in ends]
        for kind, group in _by_kind(of_run):
            numbers = [cell(median(row["unseen"] for row in group), ".3f")]
            for i in ENDS:
                numbers.append(cell(median(row[f"change_{i}"] for row in group), "+.2e"))
            for side in SIDES:
                most = cell(median(1 - row[f"{side}_chance"] for row in group), ".3f")
                for i in ENDS:
                    share = cell(median(row[f"{side}_kept_{i}"] for row in group), ".3f")
                    numbers.append(f"{share} ({most})")
            cells.append([kind, str(len(group)), *numbers])
        yield Table(cells)
        yield ""


def _by_kind(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows by kind of module, then all of them."""
    kinds = {kind: group for (kind,), group in grouped(rows, "kind").items()}
    return [*kinds.items(), ("all", list(rows))]
