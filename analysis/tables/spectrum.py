"""Summarise the rows of `analysis.spectrum` by kind of module, and print the summary."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from analysis import results
from analysis.numerics import statistics
from analysis.results import Row, grouped
from analysis.tables.text import aligned, cell, counted, run_heading

EXPLANATION = """\
‖ΔW‖₂ = s₁, ‖ΔW‖_F = √Σs²; top-k: share of the energy in the k largest values; eff. rank: exp of
the entropy of s/Σs; stable: Σs²/s₁²; used: eff. rank / capacity; democracy: eff. rank / its mean
for random updates of that shape and capacity (1: as even as chance); zero: modules with ΔW = 0.
Numbers are medians over modules. Compare them only within one capacity; between capacities, as
below for several checkpoints, every measure is compared beyond chance."""

# The columns whose medians make the summary.
MEASURES = (
    *results.COLUMNS[results.COLUMNS.index("capacity") : results.COLUMNS.index("algorithm")],
    *results.DENOISED,
)
SHOWN = ("effective_rank", "top_share_1")  # the measures that are printed without noise
NOTICED = 0.01  # an effective rank is shown without noise if that changes it by this share

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


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one row per checkpoint and kind, then one with kind "all".

    Each has the number of modules, how many of them have ΔW = 0 (`zero`), and the median of each of
    MEASURES over the modules in which it is defined; None if it is defined in none.
    """
    summarised = []
    for (run, step), of_run in grouped(rows, "run", "step").items():
        kinds = [(kind, group) for (kind,), group in grouped(of_run, "kind").items()]
        for kind, of_kind in [*kinds, ("all", of_run)]:
            line: Row = {"run": run, "step": step, "kind": kind, "modules": len(of_kind)}
            line["zero"] = sum(row["spectral_norm"] == 0 for row in of_kind)
            line |= {name: statistics.median(row[name] for row in of_kind) for name in MEASURES}
            summarised.append(line)
    return summarised


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the printed summary: one table per checkpoint, one line per kind of module."""
    summarised = grouped(summary(rows), "run", "step")
    for (run, step), of_run in grouped(rows, "run", "step").items():
        methods = ", ".join(dict.fromkeys(row["method"] for row in of_run))
        yield f"{run_heading(run, step)}  ({methods})"
        cells = [["kind", "modules", "d_out×d_in", *(heading for heading, _, _ in PRINTED)]]
        shapes = _shapes(of_run)
        for line in summarised[run, step]:
            numbers = [cell(line[column], form) for _, column, form in PRINTED]
            cells.append([line["kind"], str(line["modules"]), shapes[line["kind"]], *numbers])
        yield from aligned(cells)
        yield ""


def _shapes(rows: Iterable[Row]) -> dict[str, str]:
    """d_out×d_in of the modules of each kind and of "all", or the number of different shapes."""
    shapes: dict[str, dict[str, None]] = {}
    for row in rows:
        for kind in (row["kind"], "all"):
            shapes.setdefault(kind, {})[f"{row['d_out']}×{row['d_in']}"] = None
    return {
        kind: next(iter(found)) if len(found) == 1 else f"{len(found)} shapes"
        for kind, found in shapes.items()
    }


def remarks(rows: Iterable[Row], other: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield what the table does not show: what noise does, and which tensors are left out."""
    rows = list(rows)
    for of_run in grouped(rows, "run", "step").values():
        yield from _without_noise(of_run)
    faint = sum(_mostly_below_floor(row) for row in rows)
    if faint:
        modules = counted(faint, "module")
        yield f"In {modules} more than half of the values lie below the rounding noise."
    undrawn = sum(row["democracy"] is None and row["spectral_norm"] > 0 for row in rows)
    if undrawn:
        modules = counted(undrawn, "module")
        yield f"No democracy in {modules}: too many shapes to draw random updates of each."
    other = [line for line in other if "kind" not in line]
    if other:
        what = "heads, biases and the like"
        yield f"{counted(len(other), 'item')} without ΔW ({what}): --json lists them."


def _without_noise(rows: Sequence[Row]) -> Iterator[str]:
    """Yield medians of one checkpoint without its rounding noise, if the difference is noticed."""
    known = [row for row in rows if row["effective_rank_denoised"] is not None]
    if not known:
        return
    raw, estimate = (
        [float(statistics.median(row[f"{name}{end}"] for row in known) or 0.0) for name in SHOWN]
        for end in ("", "_denoised")
    )
    if abs(raw[0] - estimate[0]) > NOTICED * raw[0]:
        run = run_heading(known[0]["run"], known[0]["step"])
        yield (
            f"{run}: eff. rank {estimate[0]:.2f} (for {raw[0]:.2f}) and top-1 {estimate[1]:.3f}"
            f" (for {raw[1]:.3f}) without the rounding noise, estimated in"
            f" {counted(len(known), 'module')} of {len(rows)}."
        )


def _mostly_below_floor(row: Row) -> bool:
    """True if more than half of the values that the capacity allows lie below the noise floor."""
    moved = row["spectral_norm"] > 0
    return row["floor"] is not None and moved and 2 * row["above_floor"] < row["capacity"]
