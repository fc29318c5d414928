"""Rows → what a person reads: a summary by projection, a comparison, aligned in columns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from analysis import compare, statistics, store
from analysis.compare import Finding, Outcome
from analysis.store import Row

EXPLANATION = """\
‖ΔW‖₂ = s₁, ‖ΔW‖_F = √Σs²; top-k: share of the energy in the k largest values; eff. rank: exp of
the entropy of s; stable: Σs²/s₁²; used: eff. rank / capacity; democracy: eff. rank / its mean for
a random update of that capacity (1: as even as chance). Numbers are medians over modules. Eff.
rank, used and democracy hold within one capacity; between capacities compare the energy shares."""

# Rows are summarised by the median of each of these.
MEASURES = store.COLUMNS[store.COLUMNS.index("capacity") : store.COLUMNS.index("algorithm")]


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line a run, step and kind, then kind "all": counts, and medians where defined."""
    summarised = []
    for (run, step), of_run in _grouped(rows, "run", "step").items():
        kinds = _grouped(of_run, "kind")
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
    summarised = _grouped(summary(rows), "run", "step")
    for (run, step), of_run in _grouped(rows, "run", "step").items():
        methods = ", ".join(dict.fromkeys(row["method"] for row in of_run))
        yield f"{run}{'' if step is None else f'  step {step}'}  ({methods})"
        cells = [["kind", "modules", "d_out×d_in", *(heading for heading, _, _ in PRINTED)]]
        for line in summarised[run, step]:
            numbers = [_cell(line[column], form) for _, column, form in PRINTED]
            shape = _shape(of_run, line["kind"])
            cells.append([line["kind"], str(line["modules"]), shape, *numbers])
        yield from aligned(cells)
        yield ""


def _shape(rows: Iterable[Row], kind: str) -> str:
    """d_out×d_in of the modules of a kind, or how many different shapes they have."""
    shapes = {f"{row['d_out']}×{row['d_in']}" for row in rows if kind in (row["kind"], "all")}
    return shapes.pop() if len(shapes) == 1 else f"{len(shapes)} shapes"


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _signed(value: float, form: str) -> str:
    """A number with its sign, but no minus before a zero."""
    text = format(value, form)
    return text if float(text) else text.replace("-", "+")


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns two blanks apart, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *padded]).rstrip()


def _grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values in `columns`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for line in rows:
        groups.setdefault(tuple(line[column] for column in columns), []).append(line)
    return groups


COMPARED = """\
Medians over the modules that both have, a − b too. k: the smaller capacity, which eff. rank and
Gini are of; held: the share of the energy in s[:k]. More dominated: a larger share or Gini, a
smaller eff. rank; clear in 3/4 of the modules and by 0.01 of the measure's range. log s: rms
distance of log(s/‖s‖_F); Wasserstein: of all min(d_out, d_in) values of s/‖s‖_F. In one word: by
all measures; both, some energy shares and eff. rank or Gini; shares only; s[:k] only."""
PAIRED = (("top_share_1", "+.3f"), ("effective_rank_k", "+.2f"), ("gini_k", "+.3f"))
FULL = 3  # comparisons: more of them are one line each
LISTED = 3  # names of modules that stand in a line
WIDEST = 28  # letters of a checkpoint's name in the heading of a column
SHORT = {
    Outcome.ALL: "all",
    Outcome.BOTH: "both",
    Outcome.SHARES: "shares only",
    Outcome.WITHIN: "s[:k] only",
    Outcome.DISAGREE: "disagree",
    Outcome.NONE: "not clear",
    Outcome.CAPACITY: "by capacity",
    Outcome.NOTHING: "nothing to compare",
}


def comparison_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """What a person reads of the comparisons: a block each, or a line each where they are many."""
    if len(findings) <= FULL:
        for finding in findings:
            yield from (*_block(finding), finding.sentence, "")
    else:
        yield from (*_overview(findings), "")
    yield from COMPARED.splitlines()


def _overview(findings: Sequence[Finding]) -> Iterator[str]:
    """A line a comparison; of the steps of one run, what became of the first in words."""
    one_run = len({run for f in findings for run, _ in (f.comparison.a, f.comparison.b)}) == 1
    names = [_names(finding, one_run) for finding in findings]
    labels = [f"{a} – {b}" for a, b in names]
    run = findings[0].comparison.a[0] if one_run else "a – b"
    yield from _one_line_each(run, labels, findings, names)
    for finding, label in zip(findings, labels, strict=True):
        left_out = "; ".join(_left_out(finding, names=False))
        if left_out:
            yield f"{label}: {left_out}"
    if one_run:
        yield findings[-1].sentence


def _block(finding: Finding) -> Iterator[str]:
    """The comparison of two checkpoints: a line a measure, then a line a projection."""
    comparison = finding.comparison
    heading = f"{compare.name(comparison.a)} (a) against {compare.name(comparison.b)} (b)"
    if not comparison.rows or finding.held is None:
        yield heading
        yield from _left_out(finding)
        return
    k = compare.k_range(comparison.rows)
    held = " and ".join(format(share, ".3f") for share in finding.held)
    plural = "s" if len(comparison.rows) > 1 else ""
    modules = f"{len(comparison.rows)} module{plural} that both have"
    yield f"{heading}: {modules}; k = {k}, held {held}"
    yield from _left_out(finding)
    cells = [["", "a", "b", "a − b", "more dominated", ""]]
    for measure, reading in finding.readings.items():
        if reading.modules or reading.difference:
            form = ".2f" if measure == "effective_rank_k" else ".3f"
            numbers = [format(value, form) for value in (reading.a, reading.b)]
            numbers.append(_signed(reading.difference, "+" + form))
            cells.append([compare.heading(measure, k), *numbers, *_majority(reading)])
    yield from aligned(cells)
    log, far = _cell(finding.log_distance, ".2f"), _cell(finding.wasserstein, ".2g")
    yield f"distance: log s {log}, Wasserstein {far}"
    kinds = _grouped(comparison.rows, "kind")
    if len(kinds) > 1:
        of_kinds = [compare.judge(replace(comparison, rows=rows)) for rows in kinds.values()]
        labels = [kind for (kind,) in kinds]
        yield from _one_line_each("kind", labels, of_kinds, [("a", "b")] * len(labels))


def _majority(reading: compare.Reading) -> tuple[str, str]:
    """Which side is the more dominated in how many modules, and whether that is clear."""
    if not reading.modules:
        return "by capacity", ""
    if reading.more_a == reading.more_b:
        return f"each in {reading.more_a} of {reading.modules}", ""
    count, side = max((reading.more_a, "a"), (reading.more_b, "b"))
    return f"{side} in {count} of {reading.modules}", "clear" if reading.more else ""


def _one_line_each(
    heading: str,
    labels: Sequence[str],
    findings: Sequence[Finding],
    names: Sequence[tuple[str, str]],
) -> Iterator[str]:
    cells = [[heading, "modules", "k", "held a", "b"]]
    cells[0] += ["top-1 a − b", "eff. rank a − b", "Gini a − b"]
    cells[0] += ["log s", "Wasserstein", "more dominated"]
    for label, finding, (a, b) in zip(labels, findings, names, strict=True):
        more = {"a": f"{a}: ", "b": f"{b}: ", None: ""}[finding.more] + SHORT[finding.outcome]
        rows = finding.comparison.rows
        if not rows or finding.held is None:
            cells.append([label, "0", *["–"] * (len(cells[0]) - 3), more])
            continue
        numbers = [format(share, ".3f") for share in finding.held]
        numbers += [_signed(finding.readings[measure].difference, form) for measure, form in PAIRED]
        numbers += [_cell(finding.log_distance, ".2f"), _cell(finding.wasserstein, ".2g")]
        cells.append([label, str(len(rows)), compare.k_range(rows), *numbers, more])
    yield from aligned(cells)


def _left_out(finding: Finding, names: bool = True) -> Iterator[str]:
    """What could not be compared, counted and named."""
    a, b = _names(finding)
    comparison = finding.comparison
    for what, modules in (
        (f"only in {a}", comparison.only_a),
        (f"only in {b}", comparison.only_b),
        ("left out, ΔW = 0 on a side", comparison.zero),
        ("left out, different shapes", comparison.shapes),
    ):
        if modules:
            listed = ", ".join(modules[:LISTED]) + (", …" if len(modules) > LISTED else "")
            yield f"{what}: {len(modules)}" + (f" ({listed})" if names else "")


def _names(finding: Finding, one_run: bool = False) -> tuple[str, str]:
    """What the two checkpoints are called in a column: of one run, by their steps."""
    comparison = finding.comparison
    return _name(comparison.a, one_run), _name(comparison.b, one_run)


def _name(checkpoint: compare.Checkpoint, one_run: bool) -> str:
    if one_run:
        return "end" if checkpoint[1] is None else f"{checkpoint[1]}"
    full = compare.name(checkpoint)
    return full if len(full) <= WIDEST else f"…{full[1 - WIDEST :]}"
