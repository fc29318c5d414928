"""Score finished runs with every ΔW cut, to see if the top directions carry the skill.

With ΔW = U diag(s) Vᵀ, the cut "keep" k leaves the top k directions of every module and "remove" k
takes them away. Keep 0 is the base, and remove 0 the run as it was trained.
"""

import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis import checkpoint
from analysis.formats import Options
from analysis.results import Row
from analysis.update import Update
from multilora import cuts, delta
from multilora.cuts import COUNTS
from multilora.reproduction.tables import LOSS, SCORE
from multilora.reproduction.trained import Trained
from multilora.tasks.example import Example
from multilora.tasks.scoring import score


def table(runs: Iterable[Trained], base: Path, per_task: int) -> list[Row]:
    """Return cuts.csv: the curves of runs of one base, on `per_task` test items of each task."""
    model, tokenizer = delta.load_base(str(base))
    rows = []
    for run in runs:
        of_run = {"method": run.method, "seed": run.seed}
        updates = checkpoint.read(run.path, options=Options(base=base))
        items = run.held_out("test", per_task)
        rows += [of_run | row for row in curve(updates, model, tokenizer, items, run.decodes)]
    return rows


def curve(
    updates: Iterable[Update],
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    decode: bool = True,
    counts: Sequence[int] = COUNTS,
) -> list[Row]:
    """Return the scores of a base with cut updates, as rows {kind, k, NAME_FAMILY, NAME}.

    updates: of one checkpoint, grouped by `cuts.by_part`.
    model, tokenizer: the base; it has its own weights again afterwards.
    examples: the items to score.
    decode: as for `scoring.predict`.
    counts: values of k, as for `cuts.curve`.

    NAME is score, the share of right answers in [0, 1], and nll, the loss per token of the right
    answers in nats. Raises UserError as `cuts.curve` and `cuts.by_part`.
    """
    groups = [
        (group, partial(_by_task, model, tokenizer, items, decode))
        for group, items in cuts.by_part(updates, examples)
    ]
    family_of = {example.task: example.family for example in examples}
    rows = cuts.curve(groups, model, counts)
    return [
        {"kind": row["kind"], "k": row["k"]}
        | _means(row, SCORE, family_of)
        | _means(row, LOSS, family_of)
        for row in rows
    ]


def _by_task(
    model: Any, tokenizer: Any, examples: Sequence[Example], decode: bool
) -> dict[str, float]:
    """Return "score TASK" → share of right answers, and "nll TASK" → loss per token."""
    scores = score(model, tokenizer, examples, decode)
    by_name = {SCORE: scores["tasks"], LOSS: scores["nll"]["tasks"]}
    return {f"{name} {task}": n for name, of in by_name.items() for task, n in of.items()}


def _means(row: Row, name: str, family_of: dict[str, str]) -> dict[str, float]:
    """Return the means by family and over them; row: has the number of each task."""
    families = {
        f"{name}_{family}": statistics.fmean(
            row[f"{name} {task}"] for task, of_task in family_of.items() if of_task == family
        )
        for family in dict.fromkeys(family_of.values())
    }
    return families | {name: statistics.fmean(families.values())}
