"""Paired spectra → what a person reads: which is the more dominated, by which measures."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.pairs import dominance
from analysis.pairs.dominance import Agreement, Finding
from analysis.results import grouped
from analysis.tables.text import aligned, cell

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
    Agreement.ALL: "all",
    Agreement.BOTH: "both",
    Agreement.SHARES: "shares only",
    Agreement.WITHIN: "s[:k] only",
    Agreement.DISAGREE: "disagree",
    Agreement.NONE: "not clear",
    Agreement.CAPACITY: "by capacity",
    Agreement.NOTHING: "nothing to compare",
}


def lines(findings: Sequence[Finding]) -> Iterator[str]:
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
    heading = f"{dominance.name(comparison.a)} (a) against {dominance.name(comparison.b)} (b)"
    if not comparison.rows or finding.held is None:
        yield heading
        yield from _left_out(finding)
        return
    k = dominance.k_range(comparison.rows)
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
            cells.append([dominance.heading(measure, k), *numbers, *_majority(reading)])
    yield from aligned(cells)
    log, far = cell(finding.log_distance, ".2f"), cell(finding.wasserstein, ".2g")
    yield f"distance: log s {log}, Wasserstein {far}"
    kinds = grouped(comparison.rows, "kind")
    if len(kinds) > 1:
        of_kinds = [dominance.judge(replace(comparison, rows=rows)) for rows in kinds.values()]
        labels = [kind for (kind,) in kinds]
        yield from _one_line_each("kind", labels, of_kinds, [("a", "b")] * len(labels))


def _majority(reading: dominance.Reading) -> tuple[str, str]:
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
        more = {"a": f"{a}: ", "b": f"{b}: ", None: ""}[finding.more] + SHORT[finding.agreement]
        rows = finding.comparison.rows
        if not rows or finding.held is None:
            cells.append([label, "0", *["–"] * (len(cells[0]) - 3), more])
            continue
        numbers = [format(share, ".3f") for share in finding.held]
        numbers += [_signed(finding.readings[measure].difference, form) for measure, form in PAIRED]
        numbers += [cell(finding.log_distance, ".2f"), cell(finding.wasserstein, ".2g")]
        cells.append([label, str(len(rows)), dominance.k_range(rows), *numbers, more])
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


def _name(checkpoint: dominance.Checkpoint, one_run: bool) -> str:
    if one_run:
        return "end" if checkpoint[1] is None else f"{checkpoint[1]}"
    full = dominance.name(checkpoint)
    return full if len(full) <= WIDEST else f"…{full[1 - WIDEST :]}"


def _signed(value: float, form: str) -> str:
    """A number with its sign, but no minus before a zero."""
    text = format(value, form)
    return text if float(text) else text.replace("-", "+")
