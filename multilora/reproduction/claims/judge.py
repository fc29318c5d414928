"""Judge the claims from the tables in a results directory."""

from collections.abc import Sequence
from pathlib import Path

from analysis import UserError, store
from analysis.numerics import statistics
from analysis.numerics.statistics import Outcome
from multilora.reproduction.claims import beyond, runs
from multilora.reproduction.claims.evidence import Found, Judged, Stated
from multilora.reproduction.claims.text import as_json, as_markdown
from multilora.reproduction.tables import Tables, load

CLAIMS = (
    Stated(
        "1",
        "LoRA's ΔW is dominated by a small number of top singular vectors",
        runs.DOMINANCE,
        runs.dominance,
    ),
    Stated(
        "2",
        "full fine-tuning decomposes into many less important unitary transforms",
        runs.MANY,
        runs.many,
    ),
    Stated(
        "3",
        "MultiLoRA reduces that dominance at the same budget",
        runs.REDUCED,
        runs.reduced,
    ),
    Stated("4a", "its modules are less dependent", runs.INDEPENDENT, runs.independent),
    Stated(
        "4b",
        "its update is nearer to full fine-tuning's: left",
        runs.NEARER["left"],
        runs.left,
    ),
    Stated(
        "4c",
        "its update is nearer to full fine-tuning's: right",
        runs.NEARER["right"],
        runs.right,
    ),
    Stated(
        "5",
        "it needs only 2.5 % of additional parameters",
        beyond.AFFORDABLE,
        beyond.affordable,
    ),
    Stated("6", "it outperforms single LoRA and full fine-tuning", runs.BETTER, runs.better),
    Stated(
        "7",
        "1, 3 and 4 hold across r, n, width, steps, learning rate",
        beyond.HOLDS,
        beyond.holds,
    ),
    Stated("8", "dominance matters (beyond the paper)", beyond.MATTERS, beyond.matters),
    Stated("9", "adapters in the wild are dominated (beyond the paper)", beyond.WILD, beyond.wild),
)


def judge(measured: Tables) -> list[Judged]:
    """The verdict on each claim; those that the preset leaves out are not measured."""
    left_out = _left_out(measured)
    return [
        _judged(
            stated,
            Found(notes=["This preset does not measure it."])
            if stated.number in left_out
            else stated.measured(measured),
        )
        for stated in CLAIMS
    ]


def _left_out(measured: Tables) -> set[str]:
    """The claims that a preset which names its claims, as "1,2,4,5", does not name.

    4 stands for 4a, 4b and 4c. ValueError for a claim that there is not.
    """
    listed = measured.record.get("arguments", {}).get("claims", "")
    if not listed:
        return set()
    wanted = {number.strip() for number in listed.split(",")}
    names = {stated.number: {stated.number, stated.number.rstrip("abc")} for stated in CLAIMS}
    if unknown := wanted - set().union(*names.values()):
        raise UserError(f"claims {listed!r}: there is no claim {', '.join(sorted(unknown))}")
    return {number for number, of in names.items() if not of & wanted}


def _judged(stated: Stated, found: Found) -> Judged:
    verdicts = tuple(statistics.verdict(part.claim, found.differences) for part in stated.parts)
    return Judged(stated, found, verdicts, _weakest([verdict.outcome for verdict in verdicts]))


def _weakest(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim that needs all of its parts: one contradiction contradicts it."""
    if Outcome.CONTRADICTED in outcomes:
        return Outcome.CONTRADICTED
    return outcomes[0] if len(set(outcomes)) == 1 else Outcome.UNDECIDED


def write(directory: Path) -> list[Judged]:
    """Judge a results directory's tables; claims.json and claims.md beside them."""
    measured = load(directory)
    judged = judge(measured)
    store.write_text(directory / "claims.json", store.strict_json(as_json(judged)) + "\n")
    store.write_text(directory / "claims.md", as_markdown(judged, measured.record))
    return judged
