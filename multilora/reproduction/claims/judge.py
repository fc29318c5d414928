"""Judge the claims from the tables in a results directory."""

from collections.abc import Sequence
from pathlib import Path

from analysis import UserError, store
from analysis.numerics import statistics
from analysis.numerics.statistics import Outcome
from multilora.reproduction.claims import beyond, cuts, runs, subspaces
from multilora.reproduction.claims.evidence import Evidence, Judgement, Statement
from multilora.reproduction.claims.text import as_json, as_markdown
from multilora.reproduction.tables import LOSS, SCORE, Tables, load

EARLIER = "earlier"  # the directory of earlier tables in the directory of the results


def _claims(by: str) -> tuple[Statement, ...]:
    """Return the claims, with the benefit of training judged by SCORE or LOSS."""
    return (
        Statement(
            "1a",
            "LoRA's ΔW is dominated by a small number of top singular vectors",
            parts=runs.DOMINANCE,
            gather=runs.dominance,
        ),
        Statement(
            "1b",
            "these few directions carry what LoRA has learned",
            parts=cuts.CARRIED,
            gather=cuts.carried,
        ),
        Statement(
            "2",
            "full fine-tuning rests on many less important unitary transforms",
            parts=cuts.MANY[by],
            gather=cuts.many,
        ),
        Statement(
            "3a",
            "MultiLoRA reduces the dominance of the first direction",
            parts=runs.HEAD,
            gather=runs.head,
        ),
        Statement(
            "3b",
            "MultiLoRA uses its directions more evenly",
            parts=runs.TAIL,
            gather=runs.tail,
        ),
        Statement(
            "4a left",
            "MultiLoRA's start makes its modules depend less on one another: left directions",
            parts=subspaces.INDEPENDENT["left"],
            gather=subspaces.independent_left,
        ),
        Statement(
            "4a right",
            "the same: right directions",
            parts=subspaces.INDEPENDENT["right"],
            gather=subspaces.independent_right,
        ),
        Statement(
            "4b",
            "MultiLoRA's update is nearer to that of full fine-tuning: left directions",
            parts=subspaces.NEARER["left"],
            gather=subspaces.nearer_left,
        ),
        Statement(
            "4c",
            "the same: right directions",
            parts=subspaces.NEARER["right"],
            gather=subspaces.nearer_right,
        ),
        Statement(
            "4d",
            "the same: shape of the spectrum",
            parts=subspaces.SHAPE,
            gather=subspaces.nearer_in_shape,
        ),
        Statement(
            "5",
            "MultiLoRA needs only 2.5 % of additional parameters",
            parts=(),
            gather=beyond.affordable,
        ),
        Statement(
            "6a",
            "MultiLoRA outperforms single LoRA",
            parts=runs.BETTER["lora", by],
            gather=runs.better_than_lora,
        ),
        Statement(
            "6b",
            "MultiLoRA outperforms full fine-tuning",
            parts=runs.BETTER["full", by],
            gather=runs.better_than_full,
        ),
        Statement(
            "7",
            "these hold across r, n, width, steps and learning rate",
            parts=(),
            gather=beyond.holds,
        ),
        Statement(
            "8a",
            "dominance matters between MultiLoRA and LoRA (beyond the paper)",
            parts=cuts.MATTERS["multilora", "lora"],
            gather=cuts.matters_between_adapters,
        ),
        Statement(
            "8b",
            "dominance matters between LoRA and full fine-tuning (beyond the paper)",
            parts=cuts.MATTERS["lora", "full"],
            gather=cuts.matters_against_full,
        ),
        Statement(
            "9",
            "adapters in the wild are dominated (beyond the paper)",
            parts=beyond.WILD,
            gather=beyond.wild,
        ),
    )


# Fixed before any run that is judged by them, seeds 5 to 9 of the preset full and all seeds of the
# preset smollm2: measures, directions, bounds and what is compared. Changing them after results
# were seen makes the verdicts worthless as a replication.
CLAIMS = {by: _claims(by) for by in (SCORE, LOSS)}


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
        for statement in CLAIMS[measured.judged_by]
    ]


def _left_out(measured: Tables) -> set[str]:
    """Return the claims that are missing from the preset's list, as "1a,4,5"; 4 names all of 4.

    An empty list leaves none out. Raises UserError for an unknown claim.
    """
    given = measured.record.get("arguments", {}).get("claims", "")
    if not given:
        return set()
    wanted = {number.strip() for number in given.split(",")}
    numbers = [one.number for one in CLAIMS[SCORE]]
    names = {number: {number, number.split()[0], number[0]} for number in numbers}
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
    outcome: Outcome | None
    if verdicts:
        outcome = _weakest([verdict.outcome for verdict in verdicts])
    else:
        outcome = None if evidence.result else Outcome.NOT_MEASURED
    return Judgement(statement, evidence, verdicts, outcome)


def _weakest(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a claim that needs all of its parts: one contradiction decides."""
    if Outcome.CONTRADICTED in outcomes:
        return Outcome.CONTRADICTED
    return outcomes[0] if len(set(outcomes)) == 1 else Outcome.UNDECIDED


def write(directory: Path) -> list[Judgement]:
    """Judge the tables in `directory`, write claims.json and claims.md there, return the claims.

    The tables of an earlier reproduction in directory/EARLIER are judged apart and shown beside.
    """
    judged, measured, earlier = of_results(directory)
    store.write_text(directory / "claims.json", store.strict_json(as_json(judged, earlier)) + "\n")
    store.write_text(directory / "claims.md", as_markdown(judged, measured.record, earlier))
    return judged


def of_results(directory: Path) -> tuple[list[Judgement], Tables, list[Judgement]]:
    """Return the claims of a directory of results, its tables, and the claims of the earlier ones.

    The last is empty if there is no directory/EARLIER.
    """
    measured = load(directory)
    before = directory / EARLIER
    return judge(measured), measured, judge(load(before)) if before.is_dir() else []
