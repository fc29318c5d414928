"""Judge the claims from the tables in a results directory."""

from collections.abc import Sequence
from pathlib import Path

from analysis import UserError, store
from analysis.numerics import statistics
from analysis.numerics.statistics import Outcome
from multilora.reproduction.claims import beyond, runs
from multilora.reproduction.claims.evidence import Evidence, Judgement, Statement
from multilora.reproduction.claims.text import as_json, as_markdown
from multilora.reproduction.tables import Tables, load

CLAIMS = (
    Statement(
        "1",
        "LoRA's ΔW is dominated by a small number of top singular vectors",
        parts=runs.DOMINANCE,
        gather=runs.dominance,
    ),
    Statement(
        "2",
        "full fine-tuning decomposes into many less important unitary transforms",
        parts=runs.MANY,
        gather=runs.many,
    ),
    Statement(
        "3",
        "MultiLoRA reduces that dominance at the same budget",
        parts=runs.REDUCED,
        gather=runs.reduced,
    ),
    Statement(
        "4a",
        "MultiLoRA's modules depend less on one another",
        parts=runs.INDEPENDENT,
        gather=runs.independent,
    ),
    Statement(
        "4b",
        "MultiLoRA's update is nearer to that of full fine-tuning: left directions",
        parts=runs.NEARER["left"],
        gather=runs.nearer_left,
    ),
    Statement(
        "4c",
        "MultiLoRA's update is nearer to that of full fine-tuning: right directions",
        parts=runs.NEARER["right"],
        gather=runs.nearer_right,
    ),
    Statement(
        "5",
        "MultiLoRA needs only 2.5 % of additional parameters",
        parts=beyond.AFFORDABLE,
        gather=beyond.affordable,
    ),
    Statement(
        "6",
        "MultiLoRA outperforms single LoRA and full fine-tuning",
        parts=runs.BETTER,
        gather=runs.better,
    ),
    Statement(
        "7",
        "claims 1, 3 and 4 hold across r, n, width, steps and learning rate",
        parts=beyond.HOLDS,
        gather=beyond.holds,
    ),
    Statement(
        "8", "dominance matters (beyond the paper)", parts=beyond.MATTERS, gather=beyond.matters
    ),
    Statement(
        "9",
        "adapters in the wild are dominated (beyond the paper)",
        parts=beyond.WILD,
        gather=beyond.wild,
    ),
)


def judge(measured: Tables) -> list[Judgement]:
    """Judge each claim; a claim that the preset leaves out counts as not measured.

    Raises UserError if the record names a claim that does not exist.
    """
    left_out = _left_out(measured)
    return [
        _judged(
            statement,
            Evidence(notes=["This preset does not measure it."])
            if statement.number in left_out
            else statement.gather(measured),
        )
        for statement in CLAIMS
    ]


def _left_out(measured: Tables) -> set[str]:
    """Return the claims that are missing from the preset's list, as "1,2,4,5"; 4 names 4a to 4c.

    An empty list leaves none out. Raises UserError for an unknown claim.
    """
    given = measured.record.get("arguments", {}).get("claims", "")
    if not given:
        return set()
    wanted = {number.strip() for number in given.split(",")}
    names = {one.number: {one.number, one.number.rstrip("abc")} for one in CLAIMS}
    if unknown := wanted - set().union(*names.values()):
        raise UserError(
            f"claims is {given!r}: unknown claim {', '.join(sorted(unknown))}; expected numbers"
            f" from {', '.join(names)}"
        )
    return {number for number, own in names.items() if not own & wanted}


def _judged(statement: Statement, evidence: Evidence) -> Judgement:
    verdicts = tuple(
        statistics.verdict(part.claim, evidence.differences) for part in statement.parts
    )
    outcome = _weakest([verdict.outcome for verdict in verdicts])
    return Judgement(statement, evidence, verdicts, outcome)


def _weakest(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim that needs all of its parts: one contradiction decides."""
    if Outcome.CONTRADICTED in outcomes:
        return Outcome.CONTRADICTED
    return outcomes[0] if len(set(outcomes)) == 1 else Outcome.UNDECIDED


def write(directory: Path) -> list[Judgement]:
    """Judge the tables in `directory`, write claims.json and claims.md there, return the claims."""
    measured = load(directory)
    judged = judge(measured)
    store.write_text(directory / "claims.json", store.strict_json(as_json(judged)) + "\n")
    store.write_text(directory / "claims.md", as_markdown(judged, measured.record))
    return judged
