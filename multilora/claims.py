"""Says of each of the paper's claims what the tables of a results directory say of it.

    python -m multilora.claims DIR [--json]

DIR holds what multilora.reproduce wrote, as figures/quick. Nothing is written; the verdicts follow
from the tables alone. What is claimed, by which measure, on which side and by how much is fixed
in CLAIMS. The tables (CSV; a claim whose table is absent is not measured):

methods.csv       a row a run: method, seed, k, measures of ΔW and scores (multilora.measures)
sweep.csv         a row a run of the sweep: method, learning_rate, the measures of methods.csv,
                  chosen (0, 1)
nearness.csv      a row a run and method: φ(k, k) with that method's runs of other seeds
overlap.csv       a row a run of MultiLoRA: φ(r, r) between its modules
llama_budget.csv  a row a LLaMA and n: the r that is nearest to 2.5 % of its parameters
grid.csv          a row a run: setting, value, seed, method, k, the measures of methods.csv; for
                  claims 4a to 4c overlap_above_chance, left_phi_k, right_phi_k (with full)
cuts.csv          a row a run and cut: method, seed, kind (keep, remove), k, score_<family>, score
wild.csv          a row a module: adapter, step, module, kind, r, top_share_1, null_top_share_1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import statistics, store
from analysis.statistics import Outcome
from multilora import command
from multilora import evidence_beyond as beyond
from multilora import evidence_runs as runs
from multilora.claims_text import as_json, as_markdown, as_text
from multilora.evidence import Found, Judged, Stated
from multilora.tables import Tables, read

__all__ = ["CLAIMS", "Judged", "as_json", "as_markdown", "as_text", "judge", "main", "read"]

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
        raise ValueError(f"claims {listed!r}: there is no claim {', '.join(sorted(unknown))}")
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
    measured = read(directory)
    judged = judge(measured)
    store.write_text(directory / "claims.json", store.strict_json(as_json(judged)) + "\n")
    store.write_text(directory / "claims.md", as_markdown(judged, measured.record))
    return judged


def _answer(argv: Sequence[str] | None) -> str:
    parser = argparse.ArgumentParser(
        prog="python -m multilora.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="what multilora.reproduce wrote")
    parser.add_argument("--json", action="store_true", help="print claims.json instead")
    arguments = parser.parse_args(argv)
    measured = read(arguments.directory)
    for note in measured.notes:
        print(f"multilora.claims: {note}", file=sys.stderr)
    judged = judge(measured)
    if arguments.json:
        return json.dumps(as_json(judged), indent=1, allow_nan=False)
    return as_markdown(judged, measured.record).rstrip("\n")


def main(argv: Sequence[str] | None = None) -> int:
    return command.run("multilora.claims", lambda: _answer(argv))


if __name__ == "__main__":
    sys.exit(main())
