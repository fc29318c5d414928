"""Claims that were judged → the table that is printed, claims.md, claims.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.numerics.statistics import Difference, Outcome, Verdict
from analysis.tables import text
from multilora.reproduction.claims.evidence import (
    Found,
    Judged,
    Part,
    listed,
    number_text,
    says,
    words_of,
)

# What is written

HEADINGS = ("", "claim", "primary measure", "n", "mean [95 % interval]", "claimed", "on that side")


def _claimed(part: Part) -> str:
    side = "above" if part.claim.direction > 0 else "below"
    bound = part.claim.direction * part.claim.delta
    form = ".3g" if part.against or not bound else "+.3g"
    return f"{side} {part.against + bound:{form}}"


def _rows(judged: Judged, strong: str = "") -> list[list[str]]:
    """The cells by HEADINGS and the verdict: a row a part; one for all where nothing was measured.

    Where the parts differ, each row has its own verdict beside that of the whole.
    """
    stated = judged.stated
    first = [stated.number, stated.words]
    whole = f"{strong}{judged.outcome}{strong}"
    if judged.outcome is Outcome.NOT_MEASURED:
        others = " …" if len(stated.parts) > 1 else ""
        return [[*first, stated.parts[0].what + others, *"––––", whole]]
    differ = len({verdict.outcome for verdict in judged.verdicts}) > 1
    rows = []
    for part, verdict in _verdicts(judged):
        own = f"(this part: {verdict.outcome})" if differ else ""
        rows.append([*first, part.what, *_measured(part, judged.found), f"{whole} {own}".strip()])
        first, whole = ["", ""], ""
    return rows


def _measured(part: Part, found: Found) -> list[str]:
    """n, mean and interval, what is claimed, and how many runs are on that side."""
    difference = found.differences.get(part.claim.primary)
    if difference is None:
        return ["0", "–", _claimed(part), "–"]
    n = len(difference.values)
    on_side = difference.positive if part.claim.direction > 0 else difference.negative
    return [str(n), number_text(difference, part.against), _claimed(part), f"{on_side} of {n}"]


def summary(judged: Sequence[Judged]) -> str:
    """Which claims have which verdict, in one line."""
    by_outcome = {
        outcome: [one.stated.number for one in judged if one.outcome is outcome]
        for outcome in (
            *(Outcome.SUPPORTED, Outcome.CONTRADICTED),
            *(Outcome.UNDECIDED, Outcome.NOT_MEASURED),
        )
    }
    said = [f"{outcome}: {listed(numbers) or 'none'}" for outcome, numbers in by_outcome.items()]
    return "; ".join(said)


def as_text(judged: Sequence[Judged]) -> str:
    """The table of claims, as it is printed."""
    heading = ["", *HEADINGS[2:], "verdict"]
    rows = [[row[0], *row[2:]] for one in judged for row in _rows(one)]
    return "\n".join(
        [
            "Claims, differences paired by seed (words and secondary measures in claims.md):",
            *text.aligned([heading, *rows]),
            summary(judged),
        ]
    )


def as_markdown(judged: Sequence[Judged], made_by: Mapping[str, Any] | None = None) -> str:
    """claims.md: the table of claims, then a section a claim with all that was measured."""
    lines = ["# The claims, and what was measured", "", f"{summary(judged).capitalize()}."]
    lines += ["", EXPLANATION, ""]
    if made_by:
        lines += [_conditions(made_by), ""]
    rows = [row for one in judged for row in _rows(one, "**")]
    lines += _markdown_table([[*HEADINGS, "verdict"], *rows])
    for one in judged:
        lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


EXPLANATION = """\
What is claimed, by which primary measure, on which side and by how much stands in code, and was
written before seeds 2 to 4 were run and after seeds 0 and 1 had been seen. Changed after results
were seen: some secondary measures of 4a and 8, how claim 7 counts its settings, and the unit of
claim 9. The interval is Student's, over runs (seeds) of this one base. *Supported*: it lies wholly
beyond the bound on the claimed side; *contradicted*: wholly on the other side of zero (of the
bound, where one method is measured against a constant); else *undecided*; *not measured*: not run
here. A claim with several parts needs all of them. Secondary measures decide nothing; where one
surely says the opposite, that is said."""


def _conditions(made_by: Mapping[str, Any]) -> str:
    """Machine and seeds, of what the record tells."""
    at, given = made_by.get("environment", {}), made_by.get("arguments", {})
    told = [
        f"seeds {listed(made_by['seed'])}" if isinstance(made_by.get("seed"), list) else "",
        f"{given['steps']} steps" if "steps" in given else "",
        f"{at['device']}, {at['cpus']} cores" if "device" in at and "cpus" in at else "",
        f"base {Path(made_by['base']).name}" if "base" in made_by else "",
    ]
    return f"Made with {', '.join(filter(None, told))}."


def _section(judged: Judged) -> list[str]:
    stated, found = judged.stated, judged.found
    lines = [f"## {stated.number}. {stated.words}: {judged.outcome}", ""]
    if judged.outcome is not Outcome.NOT_MEASURED:
        lines += [_sentence(part, found, verdict) for part, verdict in _verdicts(judged)]
    else:
        lines += [f"- Primary: {part.what}; claimed {_claimed(part)}." for part in stated.parts]
    lines += [line for part in stated.parts for line in _secondary(part, found)]
    if judged.disagree:
        lines.append(f"- **Measures disagree**: {', '.join(map(words_of, judged.disagree))}.")
    if found.notes:
        lines += ["", " ".join(found.notes)]
    for beside in found.beside:
        lines += ["", f"{beside.title}:", "", *_markdown_table(beside.cells)]
    return lines


def _verdicts(judged: Judged) -> Iterable[tuple[Part, Verdict]]:
    return zip(judged.stated.parts, judged.verdicts, strict=True)


def _sentence(part: Part, found: Found, verdict: Verdict) -> str:
    difference = found.differences.get(part.claim.primary)
    number = "no run" if difference is None else number_text(difference, part.against)
    n = 0 if difference is None else len(difference.values)
    return (
        f"- Primary: {part.what}: {number}, n = {n}; claimed {_claimed(part)} ({part.why}):"
        f" **{verdict.outcome}**."
    )


SAID = {1: "as claimed", -1: "**the opposite of what is claimed**", 0: "undecided"}


def _secondary(part: Part, found: Found) -> list[str]:
    return [
        f"- {words_of(name)}: {number_text(found.differences[name])},"
        f" {SAID[says(found.differences[name], direction)]}."
        for name, direction in part.claim.secondary.items()
        if name in found.differences
    ]


def _markdown_table(cells: Sequence[Sequence[str]]) -> list[str]:
    heading, *rows = cells
    return [
        f"| {' | '.join(heading)} |",
        f"|{'---|' * len(heading)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def as_json(judged: Sequence[Judged]) -> dict[str, Any]:
    """claims.json: everything in claims.md as numbers; None where there is none."""
    return {"claims": [_claim_object(one) for one in judged]}


def _claim_object(judged: Judged) -> dict[str, Any]:
    return {
        "number": judged.stated.number,
        "words": judged.stated.words,
        "outcome": str(judged.outcome),
        "disagree": judged.disagree,
        "parts": [_part_object(p, judged.found, v) for p, v in _verdicts(judged)],
        "notes": judged.found.notes,
        "beside": [{"title": b.title, "cells": b.cells} for b in judged.found.beside],
    }


def _part_object(part: Part, found: Found, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": part.claim.name,
        "what": part.what,
        "primary": part.claim.primary,
        "direction": part.claim.direction,
        "delta": part.claim.delta,
        "against": part.against,
        "outcome": str(verdict.outcome),
        "measured": _object(found.differences.get(part.claim.primary)),
        "secondary": {
            name: {"direction": direction, "measured": _object(found.differences.get(name))}
            for name, direction in part.claim.secondary.items()
        },
        "disagree": list(verdict.disagree),
        "line": verdict.line,
    }


def _object(difference: Difference | None) -> dict[str, Any] | None:
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
