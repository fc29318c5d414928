"""Results → what a page says first: a sentence, where it holds, a table, and warnings.

Every sentence is made from the numbers, and holds beyond the null: a checkpoint is called more
dominated only if `pairs.dominance` says so, and a module more concentrated than a random update
only beyond `dominance.SPREADS` standard deviations between random updates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from analysis.names import printable
from analysis.numerics import statistics
from analysis.pages.data import Results, chance, skipped_by_base
from analysis.pairs import dominance
from analysis.pairs.dominance import Finding
from analysis.results import Row, grouped
from analysis.tables import dominance as dominance_table
from analysis.tables import spectrum as spectrum_table
from analysis.tables.text import cell, counted

NAMED = 3  # modules that are named as those that differ most
LISTED = 40  # skipped modules that are listed one by one

# Heading, column of `spectrum_table.summary`, format.
MEDIANS = (
    ("capacity", "capacity", "g"),
    ("‖ΔW‖_F", "frobenius_norm", ".3g"),
    ("top-1 share", "top_share_1", ".3f"),
    ("eff. rank", "effective_rank", ".2f"),
    ("eff. rank / chance", "democracy", ".3f"),
)


@dataclass(frozen=True)
class Summary:
    """The first screen of a page, as plain text.

    sentence: the result.
    where: numbers in words, and in which projections and modules the result holds.
    comparisons: the sentence of each pair of checkpoints.
    table: lines of cells; the first line and the first column are headings.
    warnings: what is missing or assumed.
    """

    title: str
    sentence: str
    where: list[str]
    comparisons: list[str]
    table: list[list[str]]
    warnings: list[str]


def summarise(results: Results) -> Summary:
    """Return the first screen of the page of `results`, which has at least one row."""
    rows = results.spectra.rows
    names = [printable(dominance.name(c)) for c in dominance.checkpoints(rows)]
    return Summary(
        title=_title(names),
        sentence=printable(_sentence(rows, results.findings)),
        where=[
            printable(text)
            for text in (
                spectrum_table.statement(rows),
                *dominance_table.contrary(results.findings),
                *_where(results.findings),
            )
        ],
        comparisons=[printable(finding.sentence) for finding in results.findings],
        table=_table(rows),
        warnings=[printable(text) for text in _warnings(results)],
    )


def _title(names: Sequence[str]) -> str:
    shown = " and ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} others"
    return f"Spectra of {shown}"


def _sentence(rows: Sequence[Row], findings: Sequence[Finding]) -> str:
    """Return the result of all comparisons in one sentence, or that of a single checkpoint."""
    return dominance_table.statement(findings) if findings else _alone(rows)


def _alone(rows: Sequence[Row]) -> str:
    """Return what a single checkpoint comes to."""
    name, modules = dominance.name((rows[0]["run"], rows[0]["step"])), counted(len(rows), "module")
    moved = [row for row in rows if row["spectral_norm"] > 0]
    if not moved:
        return f"{name}: {modules}, all with ΔW = 0."
    known = [row for row in moved if row["democracy"] is not None and row["capacity"] > 1]
    if not known and all(row["capacity"] == 1 for row in moved):
        return f"{name}: {modules} of capacity 1, which are neither more nor less dominated."
    if not known:
        return f"{name}: {modules}, too many different shapes to draw random updates of each."
    more = sum(map(concentrated, known))
    median = statistics.median(row["democracy"] for row in known)
    return (
        f"{name}: {more} of {counted(len(known), 'module')} are more concentrated than random"
        f" updates of their shape and capacity; the median eff. rank is {cell(median, '.0%')} of"
        " chance."
    )


def concentrated(row: Row) -> bool:
    """Return whether a row's effective rank is below its chance by more than its spread allows."""
    if row["democracy"] is None:
        return False
    by_chance = chance(row)["effective_rank_k"]
    return bool(row["effective_rank"] < by_chance.mean - dominance.SPREADS * by_chance.spread)


def _where(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield in which projections and modules the only comparison is decided; nothing for several.

    A projection is judged like a whole checkpoint, by its own modules.
    """
    if len(findings) != 1 or not findings[0].comparison.rows:
        return
    (finding,) = findings
    comparison = finding.comparison
    kinds = grouped(comparison.rows, "kind")
    if len(kinds) > 1:
        sides: dict[str | None, list[str]] = {}
        for (kind,), rows in kinds.items():
            more = dominance_table.more_dominated(dominance.judge(replace(comparison, rows=rows)))
            sides.setdefault(more, []).append(kind)
        parts = [
            f"{more} in {', '.join(of_side)}" if more else f"not clear in {', '.join(of_side)}"
            for more, of_side in sides.items()
        ]
        yield f"More dominated, by projection: {'; '.join(parts)}."
    if finding.more:
        sign = 1 if finding.more == "b" else -1
        far = sorted(comparison.rows, key=lambda row: -sign * _gap(row))[:NAMED]
        far = [row for row in far if sign * _gap(row) > 0]
        if far:
            named = ", ".join(row["module"] for row in far)
            yield f"It differs most, in eff. rank beyond chance, in {named}."


def _gap(row: Row) -> float:
    """Return the effective rank of a minus that of b, each over its chance."""
    return float(row["effective_rank_k_beyond_a"] - row["effective_rank_k_beyond_b"])


def _table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table of medians, one column per checkpoint."""
    of_all = [line for line in spectrum_table.summary(rows) if line["kind"] == "all"]
    of_runs = list(grouped(rows, "run", "step").values())
    names = [printable(dominance.name((line["run"], line["step"]))) for line in of_all]
    methods = [", ".join(dict.fromkeys(str(row["method"]) for row in of)) for of in of_runs]
    lines = [
        ["median over modules", *names],
        ["method", *map(printable, methods)],
        ["modules", *(str(line["modules"]) for line in of_all)],
    ]
    for heading, column, form in MEDIANS:
        if any(line[column] is not None for line in of_all):
            lines.append([heading, *(cell(line[column], form) for line in of_all)])
    known = [sum(row["democracy"] is not None for row in of) for of in of_runs]
    if any(known):
        beyond = [sum(map(concentrated, of)) for of in of_runs]
        shares = (f"{n} of {k}" if k else "–" for n, k in zip(beyond, known, strict=True))
        lines.append(["more concentrated than chance", *shares])
    if any(line["zero"] for line in of_all):
        lines.append(["ΔW = 0", *(str(line["zero"]) for line in of_all)])
    return lines


def _warnings(results: Results) -> Iterator[str]:
    """Yield what is missing, what was assumed, and what noise does."""
    spectra = results.spectra
    for skipped, what in (
        (spectra.skipped, "analysed"),
        (skipped_by_base(results), "compared with the base"),
    ):
        for skip in skipped[:LISTED]:
            yield f"Not {what}: {skip['reason']}"
        if len(skipped) > LISTED:
            yield f"{counted(len(skipped) - LISTED, 'more module')} not {what}."
    for (run, step), of_run in grouped(spectra.rows, "run", "step").items():
        zero = sum(row["spectral_norm"] == 0 for row in of_run)
        if zero:
            which = "every module" if zero == len(of_run) else counted(zero, "module")
            yield f"{dominance.name((run, step))}: ΔW = 0 in {which}."
    yield from spectrum_table.remarks(spectra.rows, other=[])
    others = sum("kind" not in other for other in spectra.other)
    if others:
        yield f"{counted(others, 'item')} without ΔW, such as heads and biases, not shown."
    for other in spectra.other:
        if "kind" in other:
            yield f"{other['run']}: {other['what']}"
    for finding in results.findings:
        yield from _left_out(finding)
    yield from _without_phi(results)


def _without_phi(results: Results) -> Iterator[str]:
    """Yield how many modules have no φ for a reason of their own, and one such reason."""
    if results.similarity is None:
        return
    known = [*results.spectra.skipped, *results.similarity.zero]
    skipped = [skip for skip in results.similarity.skipped if skip not in known]
    if skipped:
        yield f"No φ(i, j) in {counted(len(skipped), 'case')}, such as: {skipped[0]['reason']}"


def _left_out(finding: Finding) -> Iterator[str]:
    """Yield which modules could not be compared."""
    comparison, (a, b) = finding.comparison, dominance_table.full_names(finding)
    for modules, why in (
        (comparison.only_a, f"only in {a}"),
        (comparison.only_b, f"only in {b}"),
        (comparison.shapes, f"of different shapes in {a} and {b}"),
    ):
        if modules:
            yield f"{counted(len(modules), 'module')} {why}, such as {modules[0]}."
