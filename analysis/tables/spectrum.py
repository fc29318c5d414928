"""Summarise the rows of `analysis.spectrum` by kind of module, and print the summary."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from analysis import results
from analysis.names import run_key
from analysis.numerics import null, statistics
from analysis.results import Row, Spectra, grouped
from analysis.tables.text import (
    Block,
    Statement,
    Table,
    cell,
    counted,
    percent,
    run_heading,
    shortened,
    sparkline,
)

EXPLANATION = """\
spectrum: s/s₁ from the first value to the last, at up to 8 of them; ‖ΔW‖₂ = s₁, ‖ΔW‖_F = √Σs²;
top-k: share of the energy in the k largest values; by chance: the mean of top-1 for random updates
of that shape and capacity; eff. rank: exp of the entropy of s/Σs, the number of directions in even
use; stable: Σs²/s₁²; used: eff. rank / capacity; democracy: eff. rank / its mean for random updates
of that shape and capacity (1: as even as chance); zero: modules with ΔW = 0. Numbers are medians
over modules. Compare them only within one capacity; between capacities, as for several checkpoints,
every measure is compared beyond chance."""

# The columns whose medians make the summary.
MEASURES = (
    *results.COLUMNS[results.COLUMNS.index("capacity") : results.COLUMNS.index("algorithm")],
    *results.DENOISED,
    "hill",
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
# The columns that a narrow terminal leaves out, the first of them first.
LEAVING = (
    *("zero", "stable", "d_out×d_in", "‖ΔW‖₂", "top-4", "used", "modules", "‖ΔW‖_F"),
    *("democracy", "capacity"),
)
# The measures of several checkpoints, and those of them that are shown for each kind.
COMPARED = ("‖ΔW‖_F", "top-1", "eff. rank", "used", "democracy")
BY_KIND = ("top-1", "democracy")
DRAWN = 8  # values in a sparkline
NAMED = 3  # checkpoints whose shares are all given in words
WIDEST = 16  # characters of a checkpoint's name above a column


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


def lines(spectra: Spectra) -> Iterator[Block]:
    """Yield the summary: of one checkpoint, one line per kind; of several, one column for each."""
    of_runs = grouped(spectra.rows, "run", "step")
    if len(of_runs) == 1:
        yield _by_kind(spectra)
    elif of_runs:
        yield _by_checkpoint(spectra)


def _by_kind(spectra: Spectra) -> Table:
    """One line per kind of module of one checkpoint, and one for all of them."""
    shapes = _shapes(spectra.rows)
    cells = [["kind", "spectrum", "modules", "d_out×d_in", *(heading for heading, _, _ in PRINTED)]]
    summarised = summary(spectra.rows)
    for line in summarised:
        numbers = [cell(line[column], form) for _, column, form in PRINTED]
        of_kind = [row for row in spectra.rows if line["kind"] in (row["kind"], "all")]
        drawn = _sparkline(of_kind, spectra.s)
        cells.append([line["kind"], drawn, str(line["modules"]), shapes[line["kind"]], *numbers])
    unmoved = any(line["zero"] for line in summarised)
    return Table(cells, [heading for heading in LEAVING if heading != "zero" or not unmoved])


def _by_checkpoint(spectra: Spectra) -> Table:
    """One column per checkpoint with its measures, those of BY_KIND also by kind of module."""
    of_runs = grouped(spectra.rows, "run", "step")
    totals = [[line] for line in summary(spectra.rows) if line["kind"] == "all"]
    rows = list(of_runs.values())
    kinds = dict.fromkeys(row["kind"] for row in spectra.rows)
    by_kind = {
        kind: [[row for row in of_run if row["kind"] == kind] for of_run in rows] for kind in kinds
    }
    cells = [
        _headings(list(of_runs)),
        ["method", *(", ".join(dict.fromkeys(row["method"] for row in of)) for of in rows)],
        ["modules", *(str(len(of_run)) for of_run in rows)],
        ["zero", *(str(line["zero"]) for (line,) in totals)],
        _medians("capacity", "capacity", "g", totals),
        ["spectrum", *(_sparkline(of_run, spectra.s) for of_run in rows)],
    ]
    if not any(line["zero"] for (line,) in totals):
        del cells[3]
    for heading, column, form in PRINTED:
        if heading in COMPARED:
            cells.append(_medians(heading, column, form, totals))
        if heading in BY_KIND and len(kinds) > 1:
            cells += [_medians(f"  {kind}", column, form, of) for kind, of in by_kind.items()]
        if heading == "top-1":
            cells.append(["  by chance", *(cell(_chance(of_run), form) for of_run in rows)])
    return Table(cells)


def _headings(checkpoints: Sequence[tuple[str, int | None]]) -> list[str]:
    """The run and its steps if there is one run only, else the names of the checkpoints."""
    runs = {run for run, _ in checkpoints}
    if len(runs) == 1:
        return [*runs, *("end" if step is None else f"step {step}" for _, step in checkpoints)]
    return ["", *shortened([run_key(*checkpoint) for checkpoint in checkpoints], WIDEST)]


def _medians(heading: str, column: str, form: str, groups: Iterable[Sequence[Row]]) -> list[str]:
    """A heading and the median of a column in each of several groups of rows."""
    medians = (statistics.median(row[column] for row in group) for group in groups)
    return [heading, *(cell(median, form) for median in medians)]


def _sparkline(rows: Sequence[Row], spectra: Mapping[str, np.ndarray]) -> str:
    """s/s₁ of the modules at up to DRAWN places, by their medians; a dash if all have ΔW = 0."""
    moved = [spectra[row["key"]] for row in rows if row["spectral_norm"] > 0]
    if not moved:
        return "–"
    size = min(DRAWN, max(s.size for s in moved))
    shapes = [s[np.linspace(0, s.size - 1, size).round().astype(int)] / s[0] for s in moved]
    return sparkline(np.median(shapes, axis=0))


def _chance(rows: Iterable[Row]) -> float | None:
    """Median of the top-1 share of random updates in the place of these; None if not drawn."""
    drawn = [row for row in rows if row["democracy"] is not None]
    return statistics.median(null.of_row(row, 1)["top_share_1"].mean for row in drawn)


def statement(rows: Sequence[Row]) -> Statement:
    """Say in words how much the first direction of each checkpoint holds, beside chance.

    Of one checkpoint also how many directions are in use; of more than NAMED the two extremes.
    Which is more dominated is for `dominance.judge` to say. Numbers are medians over modules.
    rows: of `spectrum.analyse`, at least one.
    """
    of_runs = grouped(rows, "run", "step")
    words = _one(rows) if len(of_runs) == 1 else _several(of_runs)
    zero = sum(row["spectral_norm"] == 0 for row in rows)
    if zero:
        words += f" ΔW = 0 in {zero} of {counted(len(rows), 'module')}."
    return Statement(words)


def _one(rows: Sequence[Row]) -> str:
    """The statement about one checkpoint."""
    run, step = rows[0]["run"], rows[0]["step"]
    name = run if step is None else f"{run} step {step}"
    methods = ", ".join(dict.fromkeys(row["method"] for row in rows))
    ranks = sorted({row["r"] for row in rows if row["r"] is not None})
    words = f"{name} ({methods}{_ranks(ranks)}):"
    (line,) = (line for line in summary(rows) if line["kind"] == "all")
    where = f"in the median of {len(rows)} modules" if len(rows) > 1 else "in its one module"
    if line["top_share_1"] is None:
        return f"{words} nothing has moved."
    if line["capacity"] == 1:
        return f"{words} {where} one direction is all there is."
    used, capacity = line["effective_rank"], line["capacity"]
    by_chance = _chance(rows)
    beside = "" if by_chance is None else f" ({percent(by_chance)} in a random update)"
    first = f"{words} {where} the first direction holds {percent(line['top_share_1'])} of ΔW's"
    if used is None:
        return f"{first} energy{beside}; how many of {capacity:g} are in use was not computed."
    return f"{first} energy{beside}, and {used:.3g} of {capacity:g} directions are in use."


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    return f", rank {ranks[0]}" if len(ranks) == 1 else f", ranks {ranks[0]} to {ranks[-1]}"


def _several(of_runs: Mapping[tuple[str, int | None], Sequence[Row]]) -> str:
    """The statement about several checkpoints."""
    found = []
    for (run, step), rows in of_runs.items():
        share = statistics.median(row["top_share_1"] for row in rows)
        by_chance = _chance(rows)
        if share is not None and by_chance is not None:
            words = f"{run_key(run, step)} ({percent(share)}, by chance {percent(by_chance)})"
            found.append((share, words))
    if not found:
        return f"{len(of_runs)} checkpoints, none of which can be compared with chance."
    result = "Share of ΔW's energy in the first direction, median over modules:"
    if len(found) <= NAMED:
        return f"{result} {', '.join(words for _, words in found)}."
    return f"{result} from {min(found)[1]} to {max(found)[1]}."


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
    yield from _partial(rows)
    whole = [row for row in rows if row["algorithm"] not in results.PARTIAL]
    undrawn = sum(row["democracy"] is None and row["spectral_norm"] > 0 for row in whole)
    if undrawn:
        modules = counted(undrawn, "module")
        yield f"No democracy in {modules}: too many shapes to draw random updates of each."
    other = [line for line in other if "kind" not in line]
    if other:
        what = "heads, biases and the like"
        yield f"{counted(len(other), 'item')} without ΔW ({what}): --json lists them."


def _partial(rows: Sequence[Row]) -> Iterator[str]:
    """Yield in how many modules only the largest values were computed, and what that means."""
    counts = [sum(row["algorithm"] == name for row in rows) for name in results.PARTIAL]
    if counts[0]:
        yield (
            f"In {counted(counts[0], 'module')} by topk: the largest values alone, and shares of"
            " the exact energy; --json and --out have the bounds of the rest."
        )
    if counts[1]:
        yield (
            f"In {counted(counts[1], 'module')} by density: eff. rank and the like are estimates;"
            " --json and --out have their intervals."
        )


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
    above = row["above_floor"]
    known = row["floor"] is not None and above is not None
    return known and moved and 2 * above < row["capacity"]
