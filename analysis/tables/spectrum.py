"""Rows → what a person reads: a summary by projection, aligned in columns."""

from collections.abc import Iterable, Iterator, Sequence

from analysis import results
from analysis.numerics import statistics
from analysis.results import Row, grouped
from analysis.tables.text import aligned, cell

EXPLANATION = """\
‖ΔW‖₂ = s₁, ‖ΔW‖_F = √Σs²; top-k: share of the energy in the k largest values; eff. rank: exp of
the entropy of s; stable: Σs²/s₁²; used: eff. rank / capacity; democracy: eff. rank / its mean for
a random update of that capacity (1: as even as chance). Numbers are medians over modules. Eff.
rank, used and democracy hold within one capacity; between capacities compare the energy shares."""

# Rows are summarised by the median of each of these.
MEASURES = results.COLUMNS[results.COLUMNS.index("capacity") : results.COLUMNS.index("algorithm")]


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line a run, step and kind, then kind "all": counts, and medians where defined."""
    summarised = []
    for (run, step), of_run in grouped(rows, "run", "step").items():
        kinds = grouped(of_run, "kind")
        for kind, of_kind in [
            *((kind[0], group) for kind, group in kinds.items()),
            ("all", of_run),
        ]:
            zero = sum(row["spectral_norm"] == 0 for row in of_kind)
            line: Row = {"run": run, "step": step, "kind": kind}
            line |= {"modules": len(of_kind), "zero": zero}
            line |= {name: statistics.median(row[name] for row in of_kind) for name in MEASURES}
            summarised.append(line)
    return summarised


# Heading, column of the summary, format.
PRINTED = (
    ("capacity", "capacity", "g"),
    ("‖ΔW‖₂", "spectral_norm", ".3g"),
    ("‖ΔW‖_F", "frobenius_norm", ".3g"),
    ("top-1", "top_share_1", ".3f"),
    ("top-4", "top_share_4", ".3f"),
    ("eff. rank", "effective_rank", ".2f"),
    ("stable", "stable_rank", ".2f"),
    ("used", "utilisation", ".3f"),
    ("democracy", "democracy", ".3f"),
    ("zero", "zero", "d"),
)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the summary that a person reads: a block a checkpoint, a line a projection."""
    summarised = grouped(summary(rows), "run", "step")
    for (run, step), of_run in grouped(rows, "run", "step").items():
        methods = ", ".join(dict.fromkeys(row["method"] for row in of_run))
        yield f"{run}{'' if step is None else f'  step {step}'}  ({methods})"
        cells = [["kind", "modules", "d_out×d_in", *(heading for heading, _, _ in PRINTED)]]
        for line in summarised[run, step]:
            numbers = [cell(line[column], form) for _, column, form in PRINTED]
            shape = _shape(of_run, line["kind"])
            cells.append([line["kind"], str(line["modules"]), shape, *numbers])
        yield from aligned(cells)
        yield ""


def _shape(rows: Iterable[Row], kind: str) -> str:
    """d_out×d_in of the modules of a kind, or how many different shapes they have."""
    shapes = {f"{row['d_out']}×{row['d_in']}" for row in rows if kind in (row["kind"], "all")}
    return shapes.pop() if len(shapes) == 1 else f"{len(shapes)} shapes"
