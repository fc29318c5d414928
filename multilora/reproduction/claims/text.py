"""Write judged claims as a printed table, as claims.md and as claims.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.numerics.statistics import Difference, Outcome, Verdict
from analysis.tables import text
from multilora.reproduction.claims.evidence import Evidence, Judgement, Part, agreement
from multilora.reproduction.claims.wording import listed, number_text, words_of
from multilora.reproduction.tables import LOSS, SCORE

HEADINGS = ("", "claim", "primary measure", "n", "mean [95 % interval]", "claimed", "on that side")
EXPLANATION = """\
The primary measure of each claim, the claimed side, the bound and what is compared are fixed in
code: {when}. The interval is Student's over seeds; over adapters for claim 9. *Supported*: the
interval lies wholly beyond the bound on the claimed side. *Contradicted*: it lies wholly beyond
zero on the other side. *Undecided*: neither. *Not measured*: there are no runs for it here. A claim
with several parts needs all of them. Claims 5 and 7 get no verdict: one is arithmetic, the other
counts settings. Secondary measures decide nothing; the text says so if one clearly contradicts the
claim or its verdict."""
# When the claims were fixed, by what they are judged by.
WHEN = {
    SCORE: "after seeds 0 to 4 had been seen, and before any run of seeds 5 to 9, which are"
    " therefore a\nblind replication",
    LOSS: "before any run of these seeds, after the built-in models had been seen",
}
AGREEMENT = {1: "as claimed", -1: "**the opposite of the claim**", 0: "undecided"}


def summary(judged: Sequence[Judgement]) -> str:
    """Return one line with the claims that have each outcome."""
    numbers = {
        outcome: [one.statement.number for one in judged if one.outcome is outcome]
        for outcome in (
            Outcome.SUPPORTED,
            Outcome.CONTRADICTED,
            Outcome.UNDECIDED,
            Outcome.NOT_MEASURED,
        )
    }
    return "; ".join(f"{outcome}: {listed(of) or 'none'}" for outcome, of in numbers.items())


def as_text(judged: Sequence[Judgement]) -> str:
    """Return the table of claims for the terminal."""
    heading = ["", *HEADINGS[2:], "verdict"]
    tested = [one for one in judged if one.outcome is not None]
    rows = [[row[0], *row[2:]] for one in tested for row in _rows(one)]
    results = [
        f"{one.statement.number}: {one.evidence.result}" for one in judged if not one.outcome
    ]
    return "\n".join(
        [
            "Claims, by differences paired by seed (wording and secondary measures: claims.md):",
            *text.aligned([heading, *rows]),
            *results,
            summary(judged),
        ]
    )


def as_markdown(
    judged: Sequence[Judgement],
    made_by: Mapping[str, Any] | None = None,
    earlier: Sequence[Judgement] = (),
) -> str:
    """Return claims.md: the table of claims, then one section per claim with all measures.

    made_by: the record of the results, for seeds, steps and machine.
    earlier: the same claims judged from the tables of seeds that had been seen before; their means
        are shown in a column of their own.
    """
    lines = ["# The claims and what was measured", "", f"{summary(judged).capitalize()}."]
    by = (made_by or {}).get("arguments", {}).get("judged_by") or SCORE
    lines += ["", EXPLANATION.format(when=WHEN[by]), ""]
    if made_by:
        lines += [_conditions(made_by), ""]
    before = _before(earlier)
    heading = [*HEADINGS, "verdict", *(["seeds 0–4"] if earlier else [])]
    rows = [
        row + ([before.get((one.statement.number, row[2]), "n/a")] if earlier else [])
        for one in judged
        for row in _rows(one, strong="**")
    ]
    lines += _markdown_table([heading, *rows])
    for one in judged:
        lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


def as_json(judged: Sequence[Judgement], earlier: Sequence[Judgement] = ()) -> dict[str, Any]:
    """Return claims.json: everything in claims.md as numbers; None for undefined ones."""
    objects: dict[str, Any] = {"claims": [_claim_object(one) for one in judged]}
    if earlier:
        objects["earlier"] = [_claim_object(one) for one in earlier]
    return objects


def _before(earlier: Sequence[Judgement]) -> dict[tuple[str, str], str]:
    """Return (claim, what is measured) -> mean and interval in earlier results."""
    return {
        (one.statement.number, part.what): number_text(difference)
        for one in earlier
        for part in one.statement.parts
        if (difference := one.evidence.differences.get(part.claim.primary))
    }


def _rows(judgement: Judgement, strong: str = "") -> list[list[str]]:
    """Return the cells under HEADINGS and the verdict, one row per part.

    A claim without parts or measurements has one row. If the verdicts on the parts differ, each row
    also gives its own. strong: put around the outcome of the whole.
    """
    statement = judgement.statement
    first = [statement.number, statement.words]
    if judgement.outcome is None:
        return [[*first, judgement.evidence.result, *"––––", "no verdict"]]
    whole = f"{strong}{judgement.outcome}{strong}"
    if judgement.outcome is Outcome.NOT_MEASURED:
        what = statement.parts[0].what if statement.parts else "–"
        others = " …" if len(statement.parts) > 1 else ""
        return [[*first, what + others, *"––––", whole]]
    differ = len({verdict.outcome for verdict in judgement.verdicts}) > 1
    rows = []
    for part, verdict in _verdicts(judgement):
        own = f"(this part: {verdict.outcome})" if differ else ""
        numbers = _measured(part, judgement.evidence)
        rows.append([*first, part.what, *numbers, f"{whole} {own}".strip()])
        first, whole = ["", ""], ""
    return rows


def _measured(part: Part, evidence: Evidence) -> list[str]:
    """Return n, mean with interval, the claimed side and bound, and the runs on that side."""
    difference = evidence.differences.get(part.claim.primary)
    if difference is None:
        return ["0", "–", _claimed(part), "–"]
    n = len(difference.values)
    on_side = difference.positive if part.claim.direction > 0 else difference.negative
    return [str(n), number_text(difference), _claimed(part), f"{on_side} of {n}"]


def _claimed(part: Part) -> str:
    """Return the claimed side and bound, as "above +0.1"."""
    side = "above" if part.claim.direction > 0 else "below"
    return f"{side} {part.claim.direction * part.claim.delta:+.3g}"


def _conditions(made_by: Mapping[str, Any]) -> str:
    """Return a sentence with the seeds, steps and machine that the record names."""
    at, given = made_by.get("environment", {}), made_by.get("arguments", {})
    machines = made_by.get("trained_on") or [at]
    conditions = [
        f"seeds {listed(made_by['seed'])}" if isinstance(made_by.get("seed"), list) else "",
        f"{given['steps']} steps" if "steps" in given else "",
        " and ".join(dict.fromkeys(str(m["cpu"]) for m in machines if m.get("cpu"))),
    ]
    known = [condition for condition in conditions if condition]
    return f"Made with {', '.join(known)}." if known else "The record does not say how it was made."


def _section(judgement: Judgement) -> list[str]:
    """Return the lines of one claim's section of claims.md."""
    statement, evidence = judgement.statement, judgement.evidence
    outcome = "no verdict" if judgement.outcome is None else judgement.outcome
    lines = [f"## {statement.number}. {statement.words}: {outcome}", ""]
    if judgement.outcome is None:
        lines.append(f"- {evidence.result}.")
    elif judgement.outcome is not Outcome.NOT_MEASURED:
        lines += [_sentence(part, evidence, verdict) for part, verdict in _verdicts(judgement)]
    else:
        lines += [f"- Primary: {part.what}; claimed {_claimed(part)}." for part in statement.parts]
    lines += [line for part in statement.parts for line in _secondary(part, evidence)]
    if judgement.disagree:
        lines.append(f"- **Measures disagree**: {', '.join(map(words_of, judgement.disagree))}.")
    if evidence.notes:
        lines += ["", " ".join(evidence.notes)]
    for supplement in evidence.supplements:
        lines += ["", f"{supplement.title}:", "", *_markdown_table(supplement.cells)]
    return lines


def _verdicts(judgement: Judgement) -> Iterable[tuple[Part, Verdict]]:
    return zip(judgement.statement.parts, judgement.verdicts, strict=True)


def _sentence(part: Part, evidence: Evidence, verdict: Verdict) -> str:
    difference = evidence.differences.get(part.claim.primary)
    number = "no run" if difference is None else number_text(difference)
    n = 0 if difference is None else len(difference.values)
    return (
        f"- Primary: {part.what}: {number}, n = {n}; claimed {_claimed(part)} ({part.why}):"
        f" **{verdict.outcome}**."
    )


def _secondary(part: Part, evidence: Evidence) -> list[str]:
    """Return one line per secondary measure of a part."""
    lines = []
    for name, direction in part.claim.secondary.items():
        if name in evidence.differences:
            difference = evidence.differences[name]
            verdict = AGREEMENT[agreement(difference, direction)]
            lines.append(f"- {words_of(name)}: {number_text(difference)}, {verdict}.")
    return lines


def _markdown_table(cells: Sequence[Sequence[str]]) -> list[str]:
    heading, *rows = cells
    return [
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _claim_object(judgement: Judgement) -> dict[str, Any]:
    statement, evidence = judgement.statement, judgement.evidence
    return {
        "number": statement.number,
        "words": statement.words,
        "outcome": "no verdict" if judgement.outcome is None else str(judgement.outcome),
        "result": judgement.evidence.result,
        "disagree": judgement.disagree,
        "parts": [_part_object(part, evidence, verdict) for part, verdict in _verdicts(judgement)],
        "notes": list(evidence.notes),
        "beside": [{"title": one.title, "cells": one.cells} for one in evidence.supplements],
    }


def _part_object(part: Part, evidence: Evidence, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": part.claim.name,
        "what": part.what,
        "primary": part.claim.primary,
        "direction": part.claim.direction,
        "delta": part.claim.delta,
        "outcome": str(verdict.outcome),
        "measured": _difference_object(evidence.differences.get(part.claim.primary)),
        "secondary": {
            name: {
                "direction": direction,
                "measured": _difference_object(evidence.differences.get(name)),
            }
            for name, direction in part.claim.secondary.items()
        },
        "disagree": list(verdict.disagree),
        "line": verdict.line,
    }


def _difference_object(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    known = not math.isnan(difference.low)
    return {
        "n": len(difference.values),
        "values": list(difference.values),
        "mean": difference.mean,
        "low": difference.low if known else None,
        "high": difference.high if known else None,
        "positive": int(difference.positive),
        "negative": int(difference.negative),
    }
