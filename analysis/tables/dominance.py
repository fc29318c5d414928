"""Print which of two checkpoints is more dominated, and by which measures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.pairs import dominance
from analysis.pairs.dominance import Agreement, Finding
from analysis.results import grouped
from analysis.tables.text import Block, Statement, Table, cell, counted

EXPLANATION = """\
Numbers are medians over the modules that both have, a − b too. k: the smaller capacity; eff. rank
and Gini are those of s[:k], and held is its share of the energy. More dominated: a larger share or
Gini, a smaller eff. rank; clear if so in 3/4 of the modules and by 0.01 of the measure's range.
Beyond (chance): a − b of what each is beyond the mean of random updates of its own shape, capacity
and kind (eff. rank: divided by that mean). A difference must be clear there too, by 2.5 standard
deviations between random updates; if it is not, unlike capacities or kinds explain it.
log s: rms distance of log(s/‖s‖_F); Wasserstein: of all min(d_out, d_in) values of s/‖s‖_F. Last
column of one-line comparisons: "all" = every measure agrees; "both" = at least one energy share and
one of eff. rank and Gini; "shares only"; "s[:k] only" = eff. rank or Gini only."""
MEASURES = (("top_share_1", "+.3f"), ("effective_rank_k", "+.2f"), ("gini_k", "+.3f"))
FULL = 3  # more comparisons than this are printed on one line each
LISTED = 3  # modules that are named in a line before an ellipsis
WIDEST = 16  # characters of a checkpoint's name in a column
# The columns that a narrow terminal leaves out, the first of them first.
LEAVING = ("Wasserstein", "log s", "held a", "held b", "Gini a − b", "k", "modules")
SHORT = {
    Agreement.ALL: "all",
    Agreement.BOTH: "both",
    Agreement.SHARES: "shares only",
    Agreement.WITHIN: "s[:k] only",
    Agreement.DISAGREE: "disagree",
    Agreement.NONE: "not clear",
    Agreement.CAPACITY: "by capacity",
    Agreement.EXPLAINED: "by capacity",
    Agreement.NOTHING: "nothing to compare",
}
BY_CAPACITY = (Agreement.EXPLAINED, Agreement.CAPACITY)
ORDERS = 3  # statements that one is more dominated than others, before only a count is given
# By which measures one is more dominated than others, for a reader who knows none of them.
BY = {
    Agreement.ALL: "by all measures",
    Agreement.BOTH: "by energy shares and by how uneven the top values are",
    Agreement.SHARES: "by energy shares only",
    Agreement.WITHIN: "by how uneven the top values are, not clearly by energy shares",
}


def statement(findings: Sequence[Finding]) -> Statement:
    """Return the result of all comparisons, of which there is at least one, in one sentence."""
    if len(findings) == 1:
        return Statement(findings[0].sentence)
    wins = Counter(name for finding in findings if (name := more_dominated(finding)))
    if not wins:
        explained = sum(finding.agreement in BY_CAPACITY for finding in findings)
        why = f"; in {explained} the capacities explain the difference" if explained else ""
        return Statement(
            f"None of {len(findings)} comparisons shows which side is more dominated{why}."
        )
    open_ = len(findings) - wins.total()
    rest = f"; {open_} of {len(findings)} comparisons {_is(open_)} not clear." if open_ else "."
    orders = _orders(findings)
    if len(orders) <= ORDERS:
        return Statement("; ".join(orders) + rest)
    (first, most), *others = wins.most_common()
    if others and others[0][1] == most:
        tied = _listed([name for name, count in wins.items() if count == most])
        return Statement(
            f"{tied} are most often the more dominated side, in {most} comparisons each{rest}"
        )
    pairs = sum(first in full_names(finding) for finding in findings)
    result = f"{first} is the more dominated side in {most} of its {pairs} comparisons"
    return Statement(f"{result}, more often than any other{rest}")


def contrary(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield one sentence if the first direction alone points the other way than a result does.

    It does so where the median of its share beyond chance is larger in the less dominated side. If
    that were clear the measures would disagree, and the comparison would have no result.
    """
    turned = []
    for finding in findings:
        if finding.more and finding.readings["top_share_1"].modules:
            sign = 1 if finding.more == "a" else -1
            if sign * finding.readings["top_share_1"].beyond < 0:
                turned.append(finding)
    if not turned:
        return
    more = more_dominated(turned[0])
    (less,) = (name for name in full_names(turned[0]) if name != more)
    others = f", and likewise in {counted(len(turned) - 1, 'more comparison')}" * (len(turned) > 1)
    yield (
        f"The first direction alone points the other way, though not clearly: its share is further"
        f" beyond chance in {less} than in {more}{others}."
    )


def _orders(findings: Sequence[Finding]) -> list[str]:
    """Return "a and b are more dominated than c (by …)" for the pairs of which one side is."""
    losers: dict[tuple[str, Agreement], list[str]] = {}
    for finding in findings:
        if more := more_dominated(finding):
            less = next(name for name in full_names(finding) if name != more)
            losers.setdefault((more, finding.agreement), []).append(less)
    winners: dict[tuple[tuple[str, ...], Agreement], list[str]] = {}
    for (more, agreement), less_dominated in losers.items():
        winners.setdefault((tuple(less_dominated), agreement), []).append(more)
    return [
        f"{_listed(more)} {_is(len(more))} more dominated than {_listed(less)} ({BY[agreement]})"
        for (less, agreement), more in winners.items()
    ]


def _listed(names: Sequence[str]) -> str:
    """Return names as in a sentence: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def full_names(finding: Finding) -> tuple[str, str]:
    """Return the names of the two checkpoints of a finding, as in keys."""
    return dominance.name(finding.comparison.a), dominance.name(finding.comparison.b)


def more_dominated(finding: Finding) -> str | None:
    """Return the name of the more dominated checkpoint of a finding; None if neither is."""
    return full_names(finding)["ab".index(finding.more)] if finding.more else None


def lines(findings: Sequence[Finding]) -> Iterator[Block]:
    """Yield the printed comparisons: a block for each, or one line each if there are many.

    The sentence of a single finding is left out: it stands above everything.
    """
    if len(findings) > FULL:
        yield from _overview(findings)
        yield ""
        return
    for finding in findings:
        yield from _block(finding)
        if len(findings) > 1:
            yield Statement(finding.sentence)
        yield ""


def _block(finding: Finding) -> Iterator[Block]:
    """Yield the comparison of two checkpoints: a line per measure, then one per kind of module."""
    comparison = finding.comparison
    heading = f"{dominance.name(comparison.a)} (a) against {dominance.name(comparison.b)} (b)"
    if not comparison.rows or finding.held is None:
        yield heading
        yield from _left_out(finding)
        return
    k = dominance.k_range(comparison.rows)
    held = " and ".join(format(share, ".3f") for share in finding.held)
    modules = counted(len(comparison.rows), "common module")
    yield f"{heading}: {modules}; k = {k}, held {held}"
    yield from _left_out(finding)
    yield _measures(finding, k)
    log, wasserstein = cell(finding.log_distance, ".2f"), cell(finding.wasserstein, ".2g")
    yield f"distance: log s {log}, Wasserstein {wasserstein}"
    kinds = grouped(comparison.rows, "kind")
    if len(kinds) > 1:
        yield ""
        of_kinds = [dominance.judge(replace(comparison, rows=rows)) for rows in kinds.values()]
        labels = [kind for (kind,) in kinds]
        yield _one_line_each("kind", labels, of_kinds, [("a", "b")] * len(labels))


def _measures(finding: Finding, k: str) -> Table:
    """One line per measure: both medians, their difference, the more dominated side.

    Between unlike updates also their difference beyond chance.
    """
    unlike = any(map(dominance.unlike, finding.comparison.rows))
    cells = [["", "a", "b", "a − b", *["beyond"] * unlike, "more dominated", ""]]
    for measure, reading in finding.readings.items():
        if reading.modules or reading.difference:
            form = ".2f" if measure == "effective_rank_k" else ".3f"
            numbers = [format(value, form) for value in (reading.a, reading.b)]
            numbers.append(_signed(reading.difference, "+" + form))
            if unlike:
                numbers.append(_signed(reading.beyond, "+.3f"))
            cells.append([dominance.heading(measure, k), *numbers, *_majority(reading)])
    return Table(cells)


def _majority(reading: dominance.Reading) -> tuple[str, str]:
    """The side that is more dominated, in how many modules, and whether that is clear."""
    if not reading.modules:
        return "set by capacity", ""
    if reading.more_a == reading.more_b:
        return f"each in {reading.more_a} of {reading.modules}", ""
    count, side = max((reading.more_a, "a"), (reading.more_b, "b"))
    clear = "clear" if reading.more else "by capacity" if reading.by_capacity else ""
    return f"{side} in {count} of {reading.modules}", clear


def _overview(findings: Sequence[Finding]) -> Iterator[Block]:
    """Yield one line per comparison; for steps of one run, also a verdict on first and last."""
    one_run = len({run for f in findings for run, _ in (f.comparison.a, f.comparison.b)}) == 1
    names = [_names(finding, one_run) for finding in findings]
    labels = [f"{a} – {b}" for a, b in names]
    run = findings[0].comparison.a[0] if one_run else "a – b"
    yield _one_line_each(run, labels, findings, names)
    for finding, label in zip(findings, labels, strict=True):
        left_out = "; ".join(_left_out(finding, names=False))
        if left_out:
            yield f"{label}: {left_out}"
    if one_run:
        yield Statement(findings[-1].sentence)


def _one_line_each(
    heading: str,
    labels: Sequence[str],
    findings: Sequence[Finding],
    names: Sequence[tuple[str, str]],
) -> Table:
    """A table with one line per finding.

    heading: of the first column.
    labels: the first cell of each line.
    findings: the comparisons.
    names: of the two checkpoints of each.
    """
    unlike = any(dominance.unlike(row) for f in findings for row in f.comparison.rows)
    cells = [
        [
            heading,
            "modules",
            "k",
            "held a",
            "held b",
            "top-1 a − b",
            *["beyond chance"] * unlike,
            "eff. rank a − b",
            "Gini a − b",
            "log s",
            "Wasserstein",
            "more dominated",
        ]
    ]
    for label, finding, (a, b) in zip(labels, findings, names, strict=True):
        more = {"a": f"{a}: ", "b": f"{b}: ", None: ""}[finding.more] + SHORT[finding.agreement]
        rows = finding.comparison.rows
        if not rows or finding.held is None:
            cells.append([label, "0", *["–"] * (len(cells[0]) - 3), more])
            continue
        numbers = [format(share, ".3f") for share in finding.held]
        for measure, form in MEASURES:
            numbers.append(_signed(finding.readings[measure].difference, form))
            if unlike and measure == "top_share_1":
                numbers.append(_signed(finding.readings[measure].beyond, form))
        numbers += [cell(finding.log_distance, ".2f"), cell(finding.wasserstein, ".2g")]
        cells.append([label, str(len(rows)), dominance.k_range(rows), *numbers, more])
    return Table(cells, LEAVING)


def _left_out(finding: Finding, names: bool = True) -> Iterator[str]:
    """Yield one line per reason why modules were not compared, with their number and `names`."""
    a, b = _names(finding)
    comparison = finding.comparison
    for reason, modules in (
        (f"only in {a}", comparison.only_a),
        (f"only in {b}", comparison.only_b),
        ("left out, ΔW = 0 on one side", comparison.zero),
        ("left out, different shapes", comparison.shapes),
        ("left out, too many shapes for a null model of each", comparison.undrawn),
    ):
        if modules:
            listed = ", ".join(modules[:LISTED]) + (", …" if len(modules) > LISTED else "")
            yield f"{reason}: {len(modules)}" + (f" ({listed})" if names else "")


def _names(finding: Finding, one_run: bool = False) -> tuple[str, str]:
    """Short names of the two checkpoints; `one_run`: only their steps."""
    comparison = finding.comparison
    return _name(comparison.a, one_run), _name(comparison.b, one_run)


def _name(checkpoint: dominance.Checkpoint, one_run: bool) -> str:
    if one_run:
        return "end" if checkpoint[1] is None else f"{checkpoint[1]}"
    full = dominance.name(checkpoint)
    return full if len(full) <= WIDEST else f"…{full[1 - WIDEST :]}"


def _signed(value: float, form: str) -> str:
    """A number with its sign; + if it rounds to zero."""
    text = format(value, form)
    return text if float(text) else text.replace("-", "+")
